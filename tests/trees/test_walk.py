"""One rule of the union in three readers: `core.lower` with its cache, `changes` and `layers` on `trees.walk`.

Random stacks of every dialect, with marks that contradict each other; each name of each directory is looked up by all.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hypothesis import example, given, settings
from hypothesis import strategies as st

from layers import tree as layers_tree
from unionfs.changes import objects
from unionfs.core import frozen_names
from unionfs.core.branch import Branch, BranchDir
from unionfs.core.fds import FdCache
from unionfs.core.lower import LowDir, LowerTree
from unionfs.core.namecache import NameCache
from unionfs.trees import walk
from unionfs.trees.remove import remove_path

IS_ROOT = os.geteuid() == 0
NAMES = (b"a", b"b", b"c")
PATHS = [(a,) for a in NAMES] + [(a, b) for a in NAMES for b in NAMES] + [(a, b, b"a") for a in NAMES for b in NAMES]
CLASSES = ("trusted.", "user.") if IS_ROOT else ("user.",)
DEPTH_MAX = 4
"""Redirects make paths longer than any layer has: no deeper is looked."""


class Thing(NamedTuple):
    """What a layer has at one path."""

    kind: str  # dir, file, empty, sparse, fifo, link, device; "" for nothing
    xattrs: tuple[tuple[str, bytes], ...] = ()
    aufs_whiteout: bool = False  # beside it
    aufs_opaque: bool = False  # in it


Layer = dict[tuple[bytes, ...], Thing]


def _overlay(name: str, values: Sequence[bytes]) -> st.SearchStrategy[tuple[str, bytes]]:
    return st.tuples(st.sampled_from([space + "overlay." + name for space in CLASSES]), st.sampled_from(list(values)))


REDIRECTS = [b"/" + b"/".join(path) for path in PATHS] + list(NAMES) + [b"/gone", b"..", b"/a/../b", b"a/b", b"/"]
DIRECTORY_MARKS = st.one_of(
    _overlay("opaque", [b"y", b"x", b"z"]),
    st.tuples(st.just("user.fuseoverlayfs.opaque"), st.sampled_from([b"y", b"x"])),
    _overlay("redirect", REDIRECTS),
)
FILE_MARKS = st.one_of(_overlay("whiteout", [b"", b"y"]), _overlay("redirect", REDIRECTS))


def _marks(mark: st.SearchStrategy[tuple[str, bytes]]) -> st.SearchStrategy[tuple[tuple[str, bytes], ...]]:
    return st.lists(mark, max_size=3, unique_by=lambda pair: pair[0]).map(tuple)


@st.composite
def things(draw: st.DrawFn) -> Thing:
    kind = draw(st.sampled_from(["dir"] * 5 + ["", "file", "empty", "empty", "sparse", "fifo", "link", "device"]))
    whiteout = draw(st.sampled_from([False, False, False, True]))
    if kind == "dir":
        return Thing(kind, draw(_marks(DIRECTORY_MARKS)), whiteout, draw(st.sampled_from([False] * 5 + [True])))
    if kind == "sparse":
        redirect = draw(st.lists(_overlay("redirect", REDIRECTS), max_size=2, unique_by=lambda pair: pair[0]))
        return Thing(kind, ((draw(st.sampled_from(CLASSES)) + "overlay.metacopy", b""), *redirect), whiteout)
    return Thing(kind, draw(_marks(FILE_MARKS)) if kind in ("file", "empty") else (), whiteout)


def layers() -> st.SearchStrategy[Layer]:
    root = st.builds(
        Thing, st.just("dir"), _marks(DIRECTORY_MARKS), st.just(False), st.sampled_from([False] * 9 + [True])
    )
    plain = st.one_of(st.just(Thing("dir")), root)
    paths = st.dictionaries(st.sampled_from(PATHS), things(), max_size=7)
    return st.tuples(plain, paths).map(lambda pair: {(): pair[0], **pair[1]})


def make(top: Path, layer: Layer) -> None:
    top.mkdir()
    for path in sorted(layer, key=len):
        thing = layer[path]
        at = os.path.join(os.fsencode(top), *path)
        if any(layer.get(path[:length], Thing("dir")).kind != "dir" for length in range(1, len(path))):
            continue  # beneath something else
        if path:
            parent, name = os.path.split(at)
            os.makedirs(parent, exist_ok=True)
            if thing.aufs_whiteout:
                open(os.path.join(parent, b".wh." + name), "wb").close()
        _make_object(at, thing)
        if thing.aufs_opaque:
            open(os.path.join(at, b".wh..wh..opq"), "wb").close()
        for xattr, value in thing.xattrs:
            os.setxattr(at, xattr, value)


def _make_object(at: bytes, thing: Thing) -> None:
    if thing.kind == "dir":
        os.makedirs(at, exist_ok=True)
    elif thing.kind in ("file", "empty", "sparse"):
        with open(at, "wb") as file:
            file.write(b"data" if thing.kind == "file" else b"")
            file.truncate(4 if thing.kind != "empty" else 0)
    elif thing.kind == "fifo":
        os.mkfifo(at)
    elif thing.kind == "link":
        os.symlink(b"a", at)
    elif thing.kind == "device" and IS_ROOT:
        os.mknod(at, stat.S_IFCHR, 0)


Where = tuple[int, bytes]
"""Index of a branch, path in it."""


class Shown(NamedTuple):
    """What a name is, in a form that all readers can be brought to."""

    kind: int
    stack: tuple[Where, ...]  # of a file its own place
    data: Where | None  # of a regular file; None when its data are lost


P = TypeVar("P")
View = dict[tuple[bytes, ...], Shown]


def by_the_rule(
    tops: list[Path],
    reader: walk.Reader[P, Any],
    names: Callable[[P], Iterable[bytes]],
    where: Callable[[P], Where],
) -> View:
    """Everything that a union of the reader's branches shows."""
    shown: View = {}
    todo: list[tuple[tuple[bytes, ...], Sequence[P]]] = [((), reader.roots())]
    while todo:
        path, stack = todo.pop()
        for name in {name for place in stack for name in names(place)}:
            found = walk.lookup(reader, stack, name)
            if found is None:
                continue
            at = (*path, name)
            data: Where | None = None
            if stat.S_ISREG(found.kind):
                data = where(found.data)
                if any("metacopy" in name for name in os.listxattr(os.fsencode(tops[data[0]]) + b"/" + data[1])):
                    data = None
            shown[at] = Shown(found.kind, tuple(where(one) for one in found.stack or (found.path,)), data)
            if found.stack and len(at) < DEPTH_MAX:
                todo.append((at, found.stack))
    return shown


def by_changes(tops: list[Path]) -> View:
    with objects.Branches(str(tops[0]), [str(top) for top in tops[1:]], has_upper=False) as branches:
        return by_the_rule(
            tops,
            branches,
            lambda place: (name for name in branches.names(place) if not name.startswith(b".wh.")),
            lambda place: (place.branch, place.rel),
        )


def by_layers(tops: list[Path]) -> View:
    with layers_tree.LayerTrees() as branches:
        view = branches.view([os.fspath(top) for top in tops])
        return by_the_rule(
            tops,
            view,
            lambda place: place.branch.scan(place.path).entries,
            lambda place: (view.branch_of(place), b"/".join(place.path)),
        )


def by_the_core(tops: list[Path], *, is_scanned: bool) -> View:
    """As above; `is_scanned`: each directory is read as a whole before its names are asked for."""
    cache = FdCache(20)
    branches = [Branch(os.fspath(top), cache, writable=False) for top in tops]
    for number, branch in enumerate(branches):
        branch.number = number
    tree = LowerTree(branches, NameCache(10000), skip_unreadable=False)
    shown: View = {}
    todo: list[tuple[tuple[bytes, ...], LowDir]] = [((), tree.root)]
    while todo:
        path, low = todo.pop()
        names = {name for place in low.stack for name, _, _ in place.scan() if not name.startswith(b".wh.")}
        listed = {name: kind for name, kind, _ in low.listing()} if is_scanned else {}
        for name in names:
            found = low.find(name)
            if is_scanned:
                assert listed.get(name) == (found.kind if found is not None else None), (path, name)
            if found is None:
                continue
            at = (*path, name)
            data: Where | None = None
            if stat.S_ISREG(found.kind):
                try:
                    holder, leaf = tree.data_place(low, found.place, found.name)
                    data = _where(holder, leaf)
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
            stack = tuple(_where(one) for one in found.low.stack) if found.low else (_where(found.place, found.name),)
            shown[at] = Shown(found.kind, stack, data)
            if found.low is not None and len(at) < DEPTH_MAX:
                todo.append((at, found.low))
    return shown


def _where(place: BranchDir, *leaf: bytes) -> Where:
    return place.branch.number, b"/".join((*place.path_components(), *leaf))


@contextmanager
def made(stack: list[Layer]) -> Iterator[list[Path]]:
    """The layers as directories, top first."""
    scratch = tempfile.mkdtemp()
    try:
        tops = [Path(scratch) / str(number) for number in range(len(stack))]
        for top, layer in zip(tops, stack, strict=True):
            make(top, layer)
        yield tops
    finally:
        remove_path(scratch)


X_MARK = (("user.overlay.opaque", b"x"),)
WHITEOUT = Thing("empty", (("user.overlay.whiteout", b""),))


def _directory(**xattrs: bytes) -> Thing:
    return Thing("dir", tuple((f"user.overlay.{name}", value) for name, value in xattrs.items()))


@settings(max_examples=60, deadline=None)
@given(st.lists(layers(), min_size=1, max_size=5))
@example([{(): Thing("dir", X_MARK), (b"a",): WHITEOUT}])
@example([{(): Thing("dir", X_MARK), (b"a",): WHITEOUT}, {(b"a",): Thing("file")}])
@example([{(b"a",): _directory(redirect=b"/b", opaque=b"y")}, {(b"b",): Thing("dir"), (b"b", b"c"): Thing("file")}])
@example([{(b"a",): _directory(redirect=b"/b")._replace(aufs_whiteout=True)}, {(b"b", b"c"): Thing("file")}])
@example([{(): Thing("dir", aufs_opaque=True), (b"a",): _directory(redirect=b"/b")}, {(b"b", b"c"): Thing("file")}])
@example([{(b"a",): _directory(redirect=b"b")}, {(b"b",): _directory(redirect=b"/c")}, {(b"c", b"a"): Thing("file")}])
@example([{(b"a",): _directory(redirect=b"/b")._replace(aufs_opaque=True)}, {(b"b", b"c"): Thing("file")}])
@example([{(b"a",): Thing("dir")}, {(b"a",): Thing("file")}, {(b"a", b"b"): Thing("file")}])
def test_the_core_and_the_walk_show_the_same(stack: list[Layer]) -> None:
    with made(stack) as tops:
        expected = by_the_core(tops, is_scanned=False)
        assert by_the_core(tops, is_scanned=True) == expected
        assert by_changes(tops) == expected
        assert by_layers(tops) == expected
        for top in tops:
            assert frozen_names.record(os.fspath(top))
        assert by_the_core(tops, is_scanned=False) == expected
        assert by_the_core(tops, is_scanned=True) == expected


def test_what_contradicting_marks_mean() -> None:
    upper: Layer = {
        (b"a",): _directory(redirect=b"/c", opaque=b"y"),
        (b"b",): _directory(redirect=b"/c")._replace(aufs_whiteout=True),
    }
    lower: Layer = {(b"a", b"a"): Thing("file"), (b"b", b"b"): Thing("file"), (b"c", b"c"): Thing("file")}
    with made([upper, lower]) as tops:
        shown = {b"/".join(path) for path in by_changes(tops)}
    assert shown == {b"a", b"b", b"b/c", b"c", b"c/c"}
