"""Copies of a merge that are written through to the device while further ones are made."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from tests.containers.fork_world import World, look
from unionfs.containers import early_sync, merge
from unionfs.containers.errors import ContainerError
from unionfs.containers.merge import OURS
from unionfs.syscalls import files

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the containers of root need no user namespace")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A parent and its fork, with ten files that a merge must copy if the fork stays."""
    monkeypatch.setattr(early_sync, "_FILES", 3)
    world = World(tmp_path)
    world.make("a", "/d", "+d/x=x")
    world.fork("a", "b")
    world.edit("b", "+d/x=b", "/e", *(f"+{directory}/{number}={number}" for directory in "de" for number in range(5)))
    world.edit("a", "+d/x=a")
    return world


def test_the_last_sync_follows_all_copies(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[tuple[bool, int]] = []  # for each sync: whether it is early, and the files that were there
    staging = Path(world.find("a").directory, "merging", "upper")
    syncfs = files.syncfs

    def counting(fd: int) -> None:
        is_early = threading.current_thread() is not threading.main_thread()
        copied.append((is_early, sum(path.is_file() for path in staging.rglob("*"))))
        syncfs(fd)

    monkeypatch.setattr(files, "syncfs", counting)
    merge.merge(world.find("b"), world.find("a"), choice=OURS, keep=True)
    assert copied[-1] == (False, 10)
    assert {is_early for is_early, _ in copied[:-1]} == {True}
    expected = {**look(world.plain("b")), "d/x": look(world.plain("a"))["d/x"]}
    assert world.shown("a") == expected
    world.check("b")


def test_an_early_sync_that_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "syncfs", failing)
    threads = threading.active_count()
    with pytest.raises(ContainerError, match="Input/output error"):
        merge.merge(world.find("b"), world.find("a"), choice=OURS, keep=True)
    world.check("a", "b")
    assert not os.path.lexists(os.path.join(world.find("a").directory, "merging"))
    assert threading.active_count() == threads
