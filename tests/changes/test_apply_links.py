"""A file of the target with several names, of which the upper changed one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.changes.applying import say_it_was_copied_up, setting

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_other_names_of_a_changed_file_are_reported(tmp_path: Path) -> None:
    change = setting(tmp_path, "a=1 b==a c==a", "a=2")
    (warning,) = change.plan().warnings
    assert (warning.path, warning.why) == (b"/a", "has 2 more names on this machine, which keep the old content")


def test_changed_names_are_not_reported_as_other_names(tmp_path: Path) -> None:
    change = setting(tmp_path, "a=1 b==a c==a", "a=2 b==a .wh.c")
    assert change.plan().warnings == []
    change.apply()
    assert os.lstat(change.target / "a").st_ino == os.lstat(change.target / "b").st_ino
    assert change.listed() == []


@pytest.mark.parametrize("upper", ["a=1:0600", "a=1@7", pytest.param("a=1:,5,5", marks=NEEDS_ROOT)])
def test_a_file_with_one_attribute_changed_stays_the_same_file(upper: str, tmp_path: Path) -> None:
    """Its other names show the change as well, and who has it open or locked keeps it."""
    change = setting(tmp_path, "a=1 b==a", upper)
    say_it_was_copied_up(change, "a")
    before = os.lstat(change.target / "a").st_ino
    assert change.plan().warnings == []
    change.apply()
    assert os.lstat(change.target / "a").st_ino == os.lstat(change.target / "b").st_ino == before
    assert change.listed() == []


def test_what_is_moved_stays_the_same_file(tmp_path: Path) -> None:
    """Its other names are names of it still: it is not copied."""
    change = setting(tmp_path, "c/a/ a/a=1 b==a/a", ".wh.a c/ c/a/{user.overlay.redirect=/a}")
    before = os.lstat(change.target / "b").st_ino
    change.apply()
    assert os.lstat(change.target / "c/a/a").st_ino == os.lstat(change.target / "b").st_ino == before
