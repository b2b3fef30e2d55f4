"""The merged tree of a stack: the same as the size report tells, at every level, and as directories on disk show it."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layers import size_report
from layers.errors import Refused
from layers.explore import details, layer_index, tree_build, waste
from layers.explore.filters import Filter, matching
from layers.explore.tree_build import NEVER
from layers.explore.tree_index import ADDED, BELOW, CHANGED, METADATA, REMOVED_HERE, ROOT, SAME_HERE, TreeIndex
from tests.layers import trees
from tests.layers.explore.building import Layer, Member, of_directories, of_tars, shown, tree_of
from tests.layers.trees import Dir, File, Link, Node

HOWS = {size_report.REPLACED: "replaced", size_report.EQUAL: "same", size_report.REMOVED: "removed"}

BASE: tuple[Member, ...] = (
    ("etc", {"type": b"5"}, b""),
    ("etc/kept", {}, b"12345"),
    ("etc/changed", {}, b"1234567"),
    ("etc/touched", {}, b"123"),
    ("etc/again", {}, b"1234"),
    ("old/a", {}, b"1"),
    ("old/b", {}, b"22"),
    ("opaque/x", {}, b"4444"),
    ("dir/inside", {}, b"55555"),
)
TOP: tuple[Member, ...] = (
    ("etc/changed", {}, b"new"),
    ("etc/touched", {"mode": 0o600}, b"123"),
    ("etc/again", {}, b"1234"),
    (".wh.old", {}, b""),
    ("opaque/y", {}, b"4444"),
    ("opaque/.wh..wh..opq", {}, b""),
    ("dir", {}, b"a file now"),
)


def change(tree: TreeIndex, path: bytes, base: int = 0, level: int = 1) -> str:
    return tree.change(tree.find(path), base, level)


def test_changes_of_a_layer() -> None:
    with tree_of(of_tars(BASE, TOP)) as tree:
        expected = {
            b"etc": BELOW, b"etc/kept": SAME_HERE, b"etc/changed": CHANGED, b"etc/touched": METADATA,
            b"old": REMOVED_HERE, b"old/a": REMOVED_HERE, b"opaque": BELOW, b"opaque/x": REMOVED_HERE,
            b"opaque/y": ADDED, b"dir": CHANGED, b"dir/inside": REMOVED_HERE,
        }  # fmt: skip
        assert {path: change(tree, path) for path in expected} == expected
        assert change(tree, b"etc/kept", base=-1) == ADDED
        assert [tree.effects(layer) for layer in (0, 1)] == [(8, 0, 0), (2, 3, 4)]
        assert tree.find(b"nowhere") == tree.find(b"etc/kept/x") == -1
        assert [tree.name(child) for child in tree.children(ROOT, 0, 1)] == [b"dir", b"etc", b"old", b"opaque"]
        assert [tree.name(child) for child in tree.children(ROOT, 1, 1)] == [b"dir", b"etc", b"opaque"]


def test_sizes_of_directories_are_those_of_every_level() -> None:
    with tree_of(of_tars(BASE, TOP)) as tree:
        etc = tree.find(b"etc")
        assert tree.size(etc, 0) == (5 + 7 + 3 + 4, 4)
        assert tree.size(etc, 1) == (5 + 3 + 3 + 4, 4)
        assert tree.brought(etc, 1) == (3 + 3 + 4, 3)
        assert tree.size(ROOT, 0) == (5 + 7 + 3 + 4 + 1 + 2 + 4 + 5, 8)
        assert tree.size(ROOT, 1) == (5 + 3 + 3 + 4 + 4 + 10, 6)
        assert tree.brought(ROOT, 0) == tree.size(ROOT, 0)
        assert tree.brought(ROOT, 1) == (3 + 3 + 4 + 4 + 10, 5)
        assert tree.size(tree.find(b"old"), 1) == (0, 0)


def test_wasted_bytes_have_a_cause_and_a_layer() -> None:
    with tree_of(of_tars(BASE, TOP)) as tree:
        found = {tree.path(tree.node_of[one.entry]): (one.size, one.cause, one.by) for one in waste.hidden(tree)}
        assert found == {
            b"etc/changed": (7, waste.REPLACED, 1),
            b"etc/touched": (3, waste.METADATA, 1),
            b"etc/again": (4, waste.AGAIN, 1),
            b"old/a": (1, waste.REMOVED_LATER, 1),
            b"old/b": (2, waste.REMOVED_LATER, 1),
            b"opaque/x": (4, waste.REMOVED_LATER, 1),
            b"dir/inside": (5, waste.REPLACED, 1),
        }
        assert tree.hidden_in == [26, 0]
        sums = waste.sums(tree)
        assert sums[waste.REPLACED] == (12, 2)
        assert sums[waste.REMOVED_LATER] == (7, 3)
        assert sums[waste.TWICE] == (0, 0)
        assert [one.size for one in waste.largest(tree, 3)] == [7, 5, 4]
        assert [one.size for one in waste.largest(tree, 3, waste.REMOVED_LATER)] == [4, 2, 1]


def test_each_hidden_version_of_a_path_names_the_reason() -> None:
    with tree_of(of_tars(BASE, TOP)) as tree:

        def told(path: bytes) -> list[tuple[int, str, str]]:
            return [(one.layer, one.state, one.why) for one in details.versions(tree, tree.find(path), tree.top)]

        assert told(b"etc/touched") == [
            (1, details.SHOWS, ""), (0, details.HIDDEN, "layer 1 has the same data with another mode"),
        ]  # fmt: skip
        assert told(b"old/a") == [(0, details.HIDDEN, "layer 1 removes it by a whiteout of /old (oci)")]
        assert told(b"opaque/x") == [(0, details.HIDDEN, "layer 1 removes it by the opaque directory /opaque (oci)")]
        assert told(b"dir/inside") == [(0, details.HIDDEN, "layer 1 has something of another type there or above")]
        assert told(b"etc/kept") == [(0, details.SHOWS, "")]
        assert [one.state for one in details.versions(tree, tree.find(b"old/a"), 0)] == [details.SHOWS]


_names = st.sampled_from(["a", "b", "c"])
_paths = st.lists(_names, min_size=1, max_size=3).map("/".join)
_members: st.SearchStrategy[Any] = st.one_of(
    st.tuples(_paths, st.just({"type": b"5"}), st.just(b"")),
    st.tuples(_paths, st.sampled_from([{}, {"mode": 0o600}]), st.sampled_from([b"", b"1", b"22", b"333"])),
    st.tuples(_paths.map(lambda path: os.path.join(os.path.dirname(path), ".wh." + os.path.basename(path))),
              st.just({}), st.just(b"")),
    st.tuples(_paths.map(lambda path: path + "/.wh..wh..opq"), st.just({}), st.just(b"")),
    st.tuples(_paths, st.builds(lambda to: {"type": b"1", "linkname": to}, _paths), st.just(b"")).filter(
        lambda member: member[0] != member[1]["linkname"]
    ),
)  # fmt: skip


@given(st.lists(st.lists(_members, max_size=8), min_size=1, max_size=4))
def test_every_level_of_random_stacks_equals_the_size_report(stack: list[list[Member]]) -> None:
    layers = of_tars(*stack)
    with tree_of(layers) as tree:
        report = size_report.SizeReport()
        for level in range(len(layers)):
            report = size_report.measure(layer.pieces() for layer in layers[: level + 1])
            assert shown(tree, level) == {b"/".join(one.path): one.layer for one in report.visible}
            assert tree.size(ROOT, level)[1] == len(report.visible)
        assert tree.size(ROOT, tree.top)[0] == sum(one.piece.stored for one in report.visible)
        expected = sorted(
            (one.file.piece.stored, b"/".join(one.file.path), one.file.layer, one.by, HOWS[one.how])
            for one in report.hidden if one.file.piece.stored
        )  # fmt: skip
        names = {1: "replaced", 2: "removed", 3: "same"}
        found = sorted(
            (tree.stored[entry], tree.path(tree.node_of[entry]), tree.layer_of[entry], tree.by[entry],
             names[tree.how[entry]])
            for entry in tree.hidden()
        )  # fmt: skip
        assert found == expected
        assert tree.hidden_in == [layer.hidden for layer in report.layers]
        assert [len(group) for group in tree.duplicates()] == [len(group) for group in report.duplicates()]


def test_a_name_whose_first_name_is_gone_has_the_data_from_then_on() -> None:
    link: dict[str, Any] = {"type": b"1", "linkname": "d/a"}
    with tree_of(of_tars([("d/a", {}, b"x" * 100), ("e/b", link, b"")], [("d/.wh.a", {}, b"")])) as tree:
        sizes = [[tree.size(tree.find(path), level)[0] for path in (b"d", b"e", b"")] for level in (0, 1)]
        assert sizes == [[100, 0, 100], [0, 100, 100]]
        assert list(waste.hidden(tree)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="overlayfs's marks are trusted attributes")
def test_a_redirected_directory_shows_its_files_at_the_new_path(scratch: Path) -> None:
    lower = trees.make(scratch / "lower", {"old/a": File(b"1"), "old/b": File(b"22"), "new/c": File(b"4444")})
    upper = trees.make(
        scratch / "upper",
        {"old": Node(stat.S_IFCHR), "new": Dir(xattrs={"trusted.overlay.redirect": b"/old"}), "new/b": File(b"3")},
    )
    with tree_of(of_directories(lower, upper)) as tree:
        assert shown(tree, 1) == {b"new/a": 0, b"new/b": 1}
        assert shown(tree, 0) == {b"old/a": 0, b"old/b": 0, b"new/c": 0}
        (moved,) = details.versions(tree, tree.find(b"old/a"), 1)
        assert (moved.state, moved.why) == (details.HIDDEN, "layer 1 shows it at another path (redirect)")
        sizes = {tree.path(tree.node_of[one.entry]): one.size for one in waste.hidden(tree)}
        assert sizes == {b"new/b": 2, b"new/c": 4}
        assert tree.size(ROOT, 1) == (2, 2)


@pytest.mark.skipif(os.geteuid() != 0, reason="overlayfs's marks are trusted attributes")
def test_the_data_below_a_metacopy_file_is_not_wasted(scratch: Path) -> None:
    lower = trees.make(scratch / "lower", {"f": File(b"x" * 5000)})
    upper = trees.make(scratch / "upper", {"f": File(b"", size=5000, xattrs={"trusted.overlay.metacopy": b""})})
    with tree_of(of_directories(lower, upper)) as tree:
        assert list(waste.hidden(tree)) == []
        assert [one.state for one in details.versions(tree, tree.find(b"f"), 1)] == [details.SHOWS, details.HIDDEN]


def test_numbers_are_those_of_du_and_find(scratch: Path) -> None:
    things = {f"d{one}/f{two}": File(b"y" * (one * 37 + two)) for one in range(5) for two in range(7)}
    made = trees.make(scratch / "made", {**things, "d1/l": Link("d1/f1"), "s/deep/er/e": File(b"")})
    with tree_of(of_directories(made)) as tree:
        said = subprocess.run(
            ["find", ".", "-type", "f", "-printf", "%i %s\n"], cwd=made, capture_output=True, check=True
        )
        sizes = dict(line.split() for line in said.stdout.splitlines())
        assert tree.size(ROOT, 0)[0] == sum(map(int, sizes.values()))
        listed = subprocess.run(["find", ".", "!", "-type", "d"], cwd=made, capture_output=True, check=True)
        assert tree.size(ROOT, 0)[1] == len(listed.stdout.splitlines())
        for one in ("d1", "d4", "s/deep"):
            du = subprocess.run(["du", "-b", "--apparent-size", "-S", one], cwd=made, capture_output=True, check=True)
            files = sum(int(line.split()[0]) - os.stat(made / os.fsdecode(line.split(b"\t")[1])).st_size
                        for line in du.stdout.splitlines())  # fmt: skip
            assert tree.size(tree.find(os.fsencode(one)), 0)[0] == files


def test_names_are_found_and_paths_filtered() -> None:
    members: tuple[Member, ...] = (
        ("bin/su", {"mode": 0o4755}, b"\x7fELF" + b"x" * 100),
        ("tmp", {"type": b"5", "mode": 0o1777}, b""),
        ("tmp/open", {"mode": 0o666, "uid": 7}, b"text\n"),
        ("usr/su.txt", {}, b""),
    )
    with tree_of(of_tars(members, [("usr/new", {}, b"#!/bin/sh\n")])) as tree:

        def found(wanted: Filter) -> set[bytes]:
            return {tree.path(node) for node in matching(tree, wanted, 0, 1)}

        assert [tree.path(node) for node in tree.named(b"su")] == [b"bin/su", b"usr/su.txt"]
        assert list(tree.named(b"")) == list(tree.named(b"absent")) == []
        assert found(Filter(set_id=True)) == {b"", b"bin", b"bin/su"}
        assert found(Filter(world_writable=True)) == {b"", b"tmp", b"tmp/open"}
        assert found(Filter(owner=7)) == {b"", b"tmp", b"tmp/open"}
        assert found(Filter(min_size=50)) == {b"", b"bin", b"bin/su"}
        assert found(Filter(layer=1)) == {b"", b"usr", b"usr/new"}
        assert found(Filter(type="script")) == {b"", b"usr", b"usr/new"}
        assert found(Filter(type="elf")) == {b"", b"bin", b"bin/su"}
        assert found(Filter(name=b"su", changes=frozenset({SAME_HERE}))) == {
            b"",
            b"bin",
            b"bin/su",
            b"usr",
            b"usr/su.txt",
        }
        assert found(Filter(changes=frozenset({ADDED}))) == {b"", b"usr", b"usr/new"}


def test_an_empty_stack_and_an_empty_layer_are_trees() -> None:
    with tree_of(of_tars([])) as tree:
        assert (len(tree), tree.size(ROOT, 0), list(waste.hidden(tree))) == (1, (0, 0), [])
    with tree_of([Layer(trees.tar_of([("a" * 200 + "/" * 1, {"type": b"5"}, b"")]))]) as tree:
        assert tree.by[0] == NEVER


def test_a_stack_of_too_many_paths_or_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    deep: tuple[Member, ...] = (("/".join("abcdefgh"), {}, b"1"),)
    monkeypatch.setattr(tree_build, "NODES_MAX", 8)
    with pytest.raises(Refused, match="more than 8 paths"), tree_of(of_tars(deep)):
        pass
    monkeypatch.setattr(layer_index, "TEXT_MAX", 14)
    with pytest.raises(Refused, match="more than 14 bytes"), tree_of(of_tars(deep)):
        pass


def test_texts_of_many_lines_are_not_compared() -> None:
    assert details.text_difference(b"a\n" * details.LINES_MAX, b"a\n") is not None
    assert details.text_difference(b"a\n" * (details.LINES_MAX + 1), b"a\n") is None
