"""Directories and files of layers are extracted as they show, and files that have not all of their data are refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from layers.errors import LayerError, Refused
from layers.explore import data, waste
from layers.explore.extract import extract
from layers.explore.marks import METACOPY_MARK, PARTIAL_MARK, marks_of
from layers.explore.tree_index import ROOT
from tests.layers import trees
from tests.layers.explore.building import Member, of_directories, of_tars, tree_of
from tests.layers.trees import File

BASE: tuple[Member, ...] = (
    ("d/old", {}, b"old"),
    ("d/kept", {"mode": 0o6755, "mtime": 1_600_000_000}, b"kept"),
    ("d/in/deep", {}, b"z" * 70_000),
    ("d/away", {"type": b"2", "linkname": "../../../etc"}, b""),
    ("d/fifo", {"type": b"6"}, b""),
    ("other", {}, b"not below d"),
)
TOP: tuple[Member, ...] = (
    ("d/.wh.old", {}, b""),
    ("d/new", {}, b"new"),
    ("d/name", {"type": b"1", "linkname": "d/new"}, b""),
)


def content(top: Path) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for directory, _, files in os.walk(top):
        for name in files:
            path = Path(directory, name)
            found[str(path.relative_to(top))] = os.readlink(path) if path.is_symlink() else path.read_bytes()
    return found


def test_a_directory_is_extracted_as_a_level_shows_it(scratch: Path) -> None:
    layers = of_tars(BASE, TOP)
    with tree_of(layers) as tree:
        told = extract(tree, layers, tree.find(b"d"), 1, str(scratch / "top"))
        extract(tree, layers, tree.find(b"d"), 0, str(scratch / "below"))
        extract(tree, layers, ROOT, 1, str(scratch / "all"))
    assert content(scratch / "top") == {
        "kept": b"kept", "in/deep": b"z" * 70_000, "new": b"new", "name": b"new", "away": "../../../etc",
    }  # fmt: skip
    assert (told.files, told.size, told.left_out) == (4, 70_000 + 7, 1)
    assert content(scratch / "below")["old"] == b"old"
    assert content(scratch / "all")["other"] == b"not below d"
    kept, names = (scratch / "top/kept").stat(), [(scratch / "top" / name).stat().st_ino for name in ("new", "name")]
    assert (stat.S_IMODE(kept.st_mode), kept.st_mtime) == (0o755, 1_600_000_000), "set-id bits are not kept"
    assert names[0] == names[1]


def test_nothing_is_overwritten_or_left_of_a_damaged_layer(scratch: Path) -> None:
    layers = of_tars(BASE)
    with tree_of(layers) as tree:
        (scratch / "there").write_text("mine")
        with pytest.raises(FileExistsError):
            extract(tree, layers, ROOT, 0, str(scratch / "there"))
        assert (scratch / "there").read_text() == "mine"
        layers[0].tar = layers[0].tar[:40_000]  # it has changed since it was indexed
        with pytest.raises(Refused):
            extract(tree, layers, ROOT, 0, str(scratch / "new"))
        layers[0].tar = trees.tar_of([(name, header, data_.upper()) for name, header, data_ in BASE])
        with pytest.raises(Refused, match="the tar has changed since it was indexed"):
            extract(tree, layers, tree.find(b"d"), 0, str(scratch / "new"))
    assert os.listdir(scratch) == ["there"]


@pytest.mark.parametrize(("value", "mark", "stored"), [(b"", METACOPY_MARK, 0), (b"\x01", PARTIAL_MARK, 4096)])
def test_files_without_all_of_their_data_are_marked_and_not_read(
    scratch: Path, value: bytes, mark: str, stored: int
) -> None:
    lower = trees.make(scratch / "lower", {"f": File(b"x" * 200_000)})
    upper = trees.make(scratch / "upper", {})
    with (upper / "f").open("wb") as file:
        file.write(b"y" * stored)
        file.truncate(200_000)
    os.setxattr(upper / "f", "user.overlay.metacopy", value)
    layers = of_directories(lower, upper)
    with tree_of(layers) as tree:
        node = tree.find(b"f")
        assert marks_of(tree, node, 1) == mark
        assert marks_of(tree, node, 0) == ""
        assert list(waste.hidden(tree)) == [], "the lower's data show"
        assert tree.layers[1].content(0) == tree.layers[1].content(1) == b""
        record = tree.record_of[tree.shown(node, 1)]
        with pytest.raises(LayerError, match="are in a lower layer"):
            list(data.parts(layers[1], tree.layers[1], record))
        with pytest.raises(LayerError, match="are in a lower layer"):
            extract(tree, layers, ROOT, 1, str(scratch / "out"))
        assert not (scratch / "out").exists()
