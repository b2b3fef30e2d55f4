"""`layers explore` without a terminal: each kind of subject, what is refused, and what happens to it meanwhile."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from layers.cli import command, stacks
from layers.errors import NotFound
from layers.explore import data
from layers.explore.indexes import open_tree
from layers.store import Store
from tests.layers import images, trees
from tests.layers.explore.building import Member, of_directories, tree_of

BASE: tuple[Member, ...] = (("etc/a", {}, b"one"), ("old", {}, b"x" * 2000))
TOP: tuple[Member, ...] = (("etc/a", {"mode": 0o600}, b"one"), (".wh.old", {}, b""))


@pytest.fixture
def tars(scratch: Path) -> list[Path]:
    """A stack of two layers, bottom first."""
    made = [scratch / "base.tar", scratch / "top.tar"]
    for path, members in zip(made, (BASE, TOP), strict=True):
        path.write_bytes(trees.tar_of(list(members)))
    return made


def told(capfd: Any, *words: object, code: int = 0) -> str:
    assert command.main(["explore", *map(str, words)]) == code
    captured = capfd.readouterr()
    return str(captured.err if code else captured.out)


def test_tars_layouts_and_directories_are_told_in_words(scratch: Path, tars: list[Path], capfd: Any) -> None:
    text = told(capfd, "--stack", tars[1], tars[0])
    assert text.startswith(f"layer 1: {tars[1]}\n")
    assert "wasted, removed later: 2.0 kB in 1 files" in text
    assert "wasted, chown or chmod alone: 3 B in 1 files" in text
    layout = scratch / "layout"
    images.layout(layout, [tar.read_bytes() for tar in tars], name="any")
    before = sorted(str(path) for path in layout.rglob("*"))
    assert "wasted, removed later: 2.0 kB in 1 files" in told(capfd, layout)
    assert sorted(str(path) for path in layout.rglob("*")) == before, "a layout is only read"
    tree = trees.make(scratch / "tree", {"d/f": trees.File(b"12345")})
    assert "5 B in 1 files show" in told(capfd, f"dir:{tree}")
    two = told(capfd, tars[0], tree)
    assert two.startswith(f"{tars[0]}\n")
    assert f"\n\n{tree}\n" in two


def test_what_cannot_be_shown_is_refused(scratch: Path, tars: list[Path], capfd: Any) -> None:
    root = f"--root={scratch / 'store'}"
    assert "are too many" in told(capfd, *tars, tars[0], code=2)
    assert "it is not in the store" in told(capfd, root, "nothing:1", code=5)
    assert "no such file" in told(capfd, "./nothing", code=5)
    tars[0].write_bytes(tars[0].read_bytes()[:514])
    assert "cut off" in told(capfd, tars[0], code=4)


def test_a_missing_screen_is_said_with_what_brings_it(
    tars: list[Path], capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "textual", None)
    monkeypatch.delitem(sys.modules, "layers.screen.app", raising=False)
    for module in [name for name in sys.modules if name.startswith("textual.")]:
        monkeypatch.setitem(sys.modules, module, None)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "pip install 'unionfs[explore]'" in told(capfd, tars[0], code=1)


def test_an_image_that_is_removed_meanwhile_is_shown_on_and_its_data_said_to_be_gone(scratch: Path) -> None:
    images.layout(scratch / "images", [trees.tar_of(list(one)) for one in (BASE, TOP)], name="docker.io/library/t:1")
    store = Store(os.fspath(scratch))
    with ExitStack() as keep:
        stack = stacks.of_image(store, store.find("t:1"))
        tree = open_tree(stack.layers, store, keep)
        node = tree.find(b"etc/a")
        entry = tree.shown(node, 1)
        index, record = tree.layers[1], tree.record_of[entry]
        assert b"".join(data.parts(stack.layers[1], index, record)) == b"one"
        for directory in ("images/blobs", "indexes"):
            for path in (scratch / directory).rglob("*"):
                if path.is_file():
                    path.unlink()
        assert tree.size(0, 1) == (3, 1)
        assert tree.layer_entry(entry).mode == 0o600
        with pytest.raises(NotFound, match="not in the store"):
            list(data.parts(stack.layers[1], index, record))


def test_a_file_that_is_removed_from_a_directory_meanwhile_is_said_to_be_gone(scratch: Path) -> None:
    tree_path = trees.make(scratch / "tree", {"d/f": trees.File(b"12345"), "d/l": trees.Link("d/f")})
    layers = of_directories(tree_path)
    with tree_of(layers) as tree:
        for name in (b"d/f", b"d/l"):
            entry = tree.shown(tree.find(name), 0)
            assert data.beginning(layers[0], tree.layers[0], tree.record_of[entry], 3) == b"123"
        (tree_path / "d/f").unlink()
        entry = tree.shown(tree.find(b"d/f"), 0)
        with pytest.raises(NotFound, match="removed meanwhile"):
            data.beginning(layers[0], tree.layers[0], tree.record_of[entry], 3)
