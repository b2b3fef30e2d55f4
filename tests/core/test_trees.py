"""The tools of these tests: the notation means what it says, and the flattening agrees with what the marks mean."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.core.children import as_user, in_child
from tests.core.conftest import needs_root
from tests.core.flatten import flatten
from tests.core.native import Native
from tests.core.snapshots import merged, snapshot
from tests.core.trees import MTIME_NS, parse, render, tree

TEXTS = (
    "a/",
    "a/b/c=hi",
    "a=x:0600",
    "a@12.000000003 b@-5",
    "a=1 b==a",
    "l->../else\\xffwhere",
    "p<fifo>:0620 s<sock>:0600",
    "f=z*5000 g=\\x00*41",
    "n\\x20\\x0a\\xff=\\x00",
    "a/:0700{user.k=v,user.z=} a/b{user.k=\\x00}",
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_tree_renders_as_it_was_written(text: str, tmp_path: Path) -> None:
    assert merged(Native(tree(tmp_path / "t", text))) == text


@needs_root
@pytest.mark.parametrize("text", ["f:4755,5,6", "m<b:7:9>:0600 n<c:1:3>:0620,0,7", "f{trusted.t=1}", "l->t:,5,6"])
def test_a_tree_of_root_renders_as_it_was_written(text: str, tmp_path: Path) -> None:
    assert merged(Native(tree(tmp_path / "t", text))) == text


def test_items_survive_render_and_parse() -> None:
    for text in TEXTS:
        assert parse(render(parse(text))) == sorted(parse(text))


def test_mtimes_are_long_ago_and_directories_keep_theirs(tmp_path: Path) -> None:
    root = tree(tmp_path / "t", "a/b=1 c/@5")
    tree(root, "a/d=2")
    assert {path: (root / path).stat().st_mtime_ns for path in (".", "a", "a/b", "c", "a/d")} == {
        ".": MTIME_NS, "a": MTIME_NS, "a/b": MTIME_NS, "c": 5 * 10**9, "a/d": MTIME_NS,
    }  # fmt: skip


FLATTENED = [
    (["a=1 b=2", "b=3"], "a=1 b=3"),
    (["a=1 b=2", ".wh.a"], "b=2"),
    (["d/a=1 d/b=2", "d/.wh..wh..opq d/c=3"], "d/c=3"),
    (["d/a=1", "d/{user.overlay.opaque=y} d/c=3"], "d/c=3"),
    (["d/a=1", ".wh.d d/c=3"], "d/c=3"),
    (["d/a=1", "d=file", "d/b=2"], "d/b=2"),
    (["a=1", "d/:0700{user.overlay.opaque=x} d/a{user.overlay.whiteout=y} .wh."], "a=1 d/:0700"),
    (["d/a=1 d/b=2", "d/{user.overlay.opaque=x} d/a{user.overlay.whiteout=y}"], "d/b=2"),
    (["l->d d/x=1", "l/.wh.x l/y=2"], "d/x=1 l/y=2"),
    (["a=1 b==a", ".wh.a"], "b=1"),
    (["a=1 b==a", "b/"], "a=1 b/"),
    (["d/:0700{user.k=v} d/a", "d/b"], "d/a d/b"),
]


@pytest.mark.parametrize(("layers", "text"), FLATTENED)
def test_flatten(layers: list[str], text: str, tmp_path: Path) -> None:
    assert merged(Native(flatten(tmp_path / "t", layers))) == text


def test_flatten_keeps_the_mtimes_of_directories_that_a_layer_does_not_have(tmp_path: Path) -> None:
    found = snapshot(Native(flatten(tmp_path / "t", ["d/@7 d/e/@9 d/e/f", "g", "d/e/.wh.f"])))
    assert [found[path].mtime_ns for path in (b"d", b"d/e")] == [MTIME_NS, MTIME_NS]
    assert snapshot(Native(flatten(tmp_path / "u", ["d/@7", "g"])))[b"d"].mtime_ns == 7 * 10**9


def test_a_child_brings_its_value_its_exception_and_its_death_home() -> None:
    assert in_child(lambda: 42).value == 42
    assert "ZeroDivisionError" in (in_child(lambda: 1 // 0).error or "")
    assert in_child(lambda: os._exit(7)).status == 7


@needs_root
def test_as_user_has_no_privileges(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0)
    tmp_path.chmod(0o755)

    def look() -> tuple[int, bool]:
        return os.geteuid(), os.access(tmp_path / "secret", os.R_OK)

    assert as_user(65534, 65534, look) == (65534, False)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0
