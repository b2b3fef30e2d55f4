"""The sizes of layers in a stack: which bytes show, which are hidden by which layer, and how `layers` prints it."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layers.cli import command
from layers.pieces import TarPieces, of_directory
from layers.size_report import EQUAL, REMOVED, REPLACED, effects, measure
from layers.tree import LayerTrees
from tests.layers import images, trees
from tests.layers.trees import Dir, File, Link, Node, Thing

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="overlayfs's whiteouts are devices")


Member = tuple[str, dict[str, Any], bytes]


def tar(*members: Member) -> TarPieces:
    return TarPieces(io.BytesIO(trees.tar_of(members)))


BASE: tuple[Member, ...] = (
    ("etc", {"type": b"5"}, b""),
    ("etc/kept", {}, b"12345"),
    ("etc/changed", {}, b"1234567"),
    ("etc/touched", {}, b"123"),
    ("old/a", {}, b"1"),
    ("old/b", {}, b"22"),
    ("opaque/x", {}, b"4444"),
    ("dir/inside", {}, b"55555"),
)
TOP: tuple[Member, ...] = (
    ("etc/changed", {}, b"new"),
    ("etc/touched", {"mode": 0o600}, b"123"),
    (".wh.old", {}, b""),
    ("opaque/y", {}, b"4444"),
    ("opaque/.wh..wh..opq", {}, b""),
    ("dir", {}, b"a file now"),
)


def test_hidden_bytes_are_found_with_their_reason() -> None:
    report = measure([tar(*BASE), tar(*TOP)])
    assert {(b"/".join(one.file.path), one.file.layer, one.by, one.how) for one in report.hidden} == {
        (b"etc/changed", 0, 1, REPLACED),
        (b"etc/touched", 0, 1, EQUAL),
        (b"old/a", 0, 1, REMOVED),
        (b"old/b", 0, 1, REMOVED),
        (b"opaque/x", 0, 1, REMOVED),
        (b"dir/inside", 0, 1, REPLACED),
    }
    assert sorted(b"/".join(one.path) for one in report.visible) == [
        b"dir", b"etc/changed", b"etc/kept", b"etc/touched", b"opaque/y",
    ]  # fmt: skip
    assert [layer.hidden for layer in report.layers] == [7 + 3 + 1 + 2 + 4 + 5, 0]
    assert report.efficiency == pytest.approx(1 - 22 / (27 + 20))
    assert report.layers[1].whiteouts == report.layers[1].opaque == {"oci": 1}


def test_marks_hide_lower_layers_only_at_any_place_in_the_tar() -> None:
    whiteout: Member = (".wh.f", {}, b"")
    file: Member = ("f", {}, b"3")
    for members in ([whiteout, file], [file, whiteout]):
        report = measure([tar(("d/a", {}, b"1"), ("f", {}, b"2")), tar(*members)])
        assert [(one.path, one.layer) for one in report.visible if one.path == (b"f",)] == [((b"f",), 1)]


def test_the_same_content_twice_is_found_across_layers() -> None:
    report = measure([tar(("a", {}, b"x" * 50), ("b", {}, b"y")), tar(("c", {}, b"x" * 50), ("d", {}, b""))])
    assert [[one.path for one in group] for group in report.duplicates()] == [[(b"a",), (b"c",)]]


@pytest.mark.parametrize("dialect", ["aufs", "overlay"])
def test_directories_weigh_what_their_tars_weigh(scratch: Path, dialect: str) -> None:
    things: dict[str, Thing] = {"d/a": File(b"1"), "d/b": File(b"22"), "e/f": File(b"333"), "l": Link("d/a")}
    lower = trees.make(scratch / "lower", things)
    marks: dict[str, Thing] = (
        {"d/.wh.a": File(), "e/.wh..wh..opq": File()}
        if dialect == "aufs"
        else {"d/a": Node(stat.S_IFCHR), "e": Dir(xattrs={"trusted.overlay.opaque": b"y"})}
    )
    upper = trees.make(scratch / "upper", {**marks, "d/b": File(b"44")})
    with LayerTrees() as branches:
        report = measure([of_directory(branches.open(os.fspath(one))) for one in (lower, upper)])
    assert sorted(b"/".join(one.path) for one in report.visible) == [b"d/b", b"l"]
    assert sorted((b"/".join(one.file.path), one.how) for one in report.hidden) == [
        (b"d/b", REPLACED), (b"e/f", REMOVED),
    ]  # fmt: skip
    assert report.stored - sum(one.hidden for one in report.layers) == sum(one.piece.stored for one in report.visible)


def test_data_with_a_name_that_shows_are_not_hidden() -> None:
    """A layer replaces the first name of a file; the second name still shows the data."""
    link: dict[str, Any] = {"type": b"1", "linkname": "a"}
    base: tuple[Member, ...] = (("a", {}, b"x" * 100), ("b", link, b""), ("c", link, b""))
    report = measure([tar(*base), tar((".wh.a", {}, b""))])
    assert report.efficiency == 1.0
    assert report.hidden == []
    assert sorted((one.path, one.piece.stored) for one in report.visible) == [((b"b",), 100), ((b"c",), 0)]
    report = measure([tar(*base), tar(("a", {}, b"x" * 100))])
    assert report.efficiency == 1.0
    assert [sorted(one.path for one in group) for group in report.duplicates()] == [[(b"a",), (b"b",)]]
    report = measure([tar(*base), tar((".wh.a", {}, b""), (".wh.b", {}, b""), (".wh.c", {}, b""))])
    assert report.efficiency == 0.0
    assert report.layers[0].hidden == 100


def test_a_redirected_directory_still_shows_its_files(scratch: Path) -> None:
    lower = trees.make(scratch / "lower", {"old/a": File(b"1"), "old/b": File(b"22")})
    upper = trees.make(
        scratch / "upper",
        {"old": Node(stat.S_IFCHR), "new": Dir(xattrs={"trusted.overlay.redirect": b"/old"}), "new/b": File(b"3")},
    )
    with LayerTrees() as branches:
        report = measure([of_directory(branches.open(os.fspath(one))) for one in (lower, upper)])
    assert sorted((b"/".join(one.path), one.layer) for one in report.visible) == [(b"new/a", 0), (b"new/b", 1)]
    assert [(b"/".join(one.file.path), one.how) for one in report.hidden] == [(b"old/b", REPLACED)]


_NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)


@given(st.lists(st.dictionaries(_NAMES, st.booleans(), max_size=6), min_size=1, max_size=4))
def test_visible_entries_equal_those_of_merged_trees(layers: list[dict[str, bool]]) -> None:
    """Random layers of files and whiteouts, beside the plainest model: apply them to a dictionary, one by one."""
    shown: dict[str, int] = {}
    stack = []
    for number, layer in enumerate(layers):
        # A file and something below it in one layer is no layer that could be.
        names = {n: real for n, real in layer.items() if not any(o != n and n.startswith(o + "/") for o in layer)}
        for name, real in names.items():
            gone = [known for known in shown if known == name or known.startswith(name + "/")]
            gone += [known for known in shown if real and name.startswith(known + "/")]
            for known in gone:
                del shown[known]
            if real:
                shown[name] = number
        stack.append(tar(*((name, {}, b"x") if real else (_whiteout(name), {}, b"") for name, real in names.items())))
    report = measure(stack)
    assert {b"/".join(one.path).decode(): one.layer for one in report.visible} == shown
    assert sum(layer.stored for layer in report.layers) == len(report.visible) + len(report.hidden)


def _whiteout(name: str) -> str:
    above, _, last = name.rpartition("/")
    return f"{above}/.wh.{last}" if above else f".wh.{last}"


def test_acts_of_each_layer_on_a_path() -> None:
    def told(path: str) -> list[tuple[int, str, bytes]]:
        found = effects([tar(*BASE), tar(*TOP)], tuple(path.encode().split(b"/")))
        return [(effect.layer, effect.what, b"/".join(effect.at)) for effect in found]

    assert told("etc/changed") == [(0, "brings", b"etc/changed"), (1, "brings", b"etc/changed")]
    assert told("old/a") == [(0, "brings", b"old/a"), (1, "hides", b"old")]
    assert told("old") == [(0, "passes through", b"old"), (1, "hides", b"old")]
    assert told("opaque/x") == [(0, "brings", b"opaque/x"), (1, "empties", b"opaque")]
    assert told("dir/inside") == [(0, "brings", b"dir/inside"), (1, "covers", b"dir")]
    assert told("nowhere") == []


# -- the commands ------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(scratch: Path) -> Path:
    """A store with the image two:1, whose upper layer hides much of the lower one."""
    images.layout(scratch / "root/images", [trees.tar_of(BASE), trees.tar_of(TOP)], name="two:1")
    return scratch / "root"


def layers(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> str:
    assert command.main([str(word) for word in words]) == status, capsys.readouterr()
    told = capsys.readouterr()
    return told.out + told.err


def test_inspect_of_an_image_a_stack_and_a_tar(root: Path, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (scratch / "base.tar").write_bytes(trees.tar_of(BASE))
    (scratch / "top.tar").write_bytes(trees.tar_of([*TOP, ("a\nb\x1b[31m\u202e", {}, b"x")]))
    (image,) = json.loads(layers(capsys, "inspect", "--root", root, "--json", "two:1"))
    (stack,) = json.loads(layers(capsys, "inspect", "--stack", "--json", scratch / "top.tar", scratch / "base.tar"))
    assert [layer["hidden"] for layer in image["layers"]] == [layer["hidden"] for layer in stack["layers"]] == [22, 0]
    assert image["hidden_files"][0] == {
        "path": "/etc/changed", "size": 7, "layer": 0, "by": 1, "how": REPLACED,
    }  # fmt: skip
    assert image["layers"][0]["diff_id"] == stack["layers"][0]["diff_id"]
    text = layers(capsys, "inspect", "--root", root, "two:1")
    assert "efficiency 53.2%" in text
    assert EQUAL in text
    shown = layers(capsys, "inspect", scratch / "top.tar")
    assert r"/a\x0ab\x1b[31m\xe2\x80\xae" in shown  # nothing that moves a cursor
    assert "efficiency" not in shown
    layers(capsys, "inspect", "--root", root, "--min-efficiency", "90", "two:1", status=3)
    layers(capsys, "inspect", "--root", root, "--min-efficiency", "50", "two:1")
    assert "percentage" in layers(capsys, "inspect", "--min-efficiency", "ninety", "two:1", status=2)


def test_why_of_an_image(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("why", "--root", root, "two:1")
    lines = layers(capsys, *at, "/etc/changed").splitlines()
    assert lines[1].split()[:2] == ["->", "1"]
    assert lines[2].split()[0] == "0"
    assert "3 B" in lines[1]
    assert "is not visible" in layers(capsys, *at, "/old/a")
    told = json.loads(layers(capsys, *at, "--json", "etc"))
    assert told["shows"]
    assert [(one["layer"], one["does"], one["shows"], one["files"]) for one in told["layers"]] == [
        (1, "passes through", True, 2), (0, "brings", True, 3),
    ]  # fmt: skip
    assert told["layers"][1]["entry"]["type"] == "directory"
    assert "no layer has it" in layers(capsys, *at, "/nowhere", status=5)
    assert "'..'" in layers(capsys, *at, "/../etc", status=4)


def test_diff_lists_the_differences(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = trees.make(
        scratch / "old",
        {"f": File(b"1"), "x": File(b"1", xattrs={"user.a": b"1", "user.b": b"1"}), "t": File(b"1")},
    )
    new = trees.make(
        scratch / "new",
        {
            "f": File(b"1234", mode=0o4755, uid=7),
            "x": File(b"1", xattrs={"user.a": b"2", "user.c": b""}),
            "t": File(b"1", mtime_ns=1),
            "n": File(b"12", gid=5),
        },
    )
    text = layers(capsys, "diff", old, new, status=3)
    assert "C /f  (mode 0644 -> 4755, owner 0:0 -> 7:0, content, 1 B -> 4 B)" in text
    assert "C /x  (attributes ~user.a -user.b +user.c)" in text
    assert "A /n  (-rw-r--r-- 0:5 2 B)" in text
    assert "C /t  (time)" in text
    assert "/t" not in layers(capsys, "diff", "--ignore-times", "--names", old, new, status=3)
    assert layers(capsys, "diff", "--quiet", old, new, status=3) == ""
    assert layers(capsys, "diff", "--quiet", old, old) == ""
    told = {one["path"]: one for one in json.loads(layers(capsys, "diff", "--json", old, new, status=3))}
    assert told["/f"]["old"]["mode"] == "0644"
    assert told["/f"]["new"] | {"mtime_ns": 0} == {
        "type": "file", "mode": "4755", "uid": 7, "gid": 0, "size": 4, "mtime_ns": 0,
    }  # fmt: skip
    assert told["/x"]["new"]["attributes"] == {"user.a": "32", "user.c": ""}


def test_images_tars_and_directories_alike(root: Path, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--root", root)
    layers(capsys, "convert", *at, "--to", "overlay", "two:1", scratch / "out")
    assert sorted(os.listdir(scratch / "out")) == ["0", "1"]
    assert stat.S_ISCHR((scratch / "out/1/old").lstat().st_mode)
    layers(capsys, "convert", *at, "--to", "oci", "two:1", scratch / "tars")
    assert layers(capsys, "diff", scratch / "tars/1.tar", scratch / "out/1") == ""
    layers(capsys, "unpack", *at, "--fingerprints", "two:1", scratch / "flat")
    assert "opaque/y" in trees.names(scratch / "flat")
    assert "opaque/x" not in trees.names(scratch / "flat")
    assert layers(capsys, "diff", *at, "two:1", scratch / "flat") == ""
    assert layers(capsys, "verify", scratch / "flat") == ""
    (scratch / "flat/etc/kept").write_bytes(b"54321")
    assert "/etc/kept: time, content" in layers(capsys, "verify", scratch / "flat", status=3)
    assert "there are no fingerprints" in layers(capsys, "verify", scratch / "out/0", status=5)
    packed = layers(capsys, "pack", scratch / "out/0", "-o", scratch / "a.tar", "--compression", "none").split()
    again = layers(capsys, "pack", scratch / "a.tar", "-o", scratch / "b.tar", "--compression", "none").split()
    assert packed == again
    assert layers(capsys, "verify", scratch / "a.tar") == ""
    (scratch / "a.tar").write_bytes((scratch / "a.tar").read_bytes()[:700])
    assert "truncated" in layers(capsys, "verify", scratch / "a.tar", status=3)
    assert layers(capsys, "verify", *at, "--blobs", "two:1") == ""
    blobs = list((root / "images/blobs/sha256").iterdir())
    assert len(blobs) == 4
    for blob in blobs:  # layers, configuration, manifest
        whole = blob.read_bytes()
        blob.write_bytes(whole[:-1] + b"x")
        assert blob.name in layers(capsys, "verify", *at, "--blobs", "two:1", status=3)
        blob.write_bytes(whole)
