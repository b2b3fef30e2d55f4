"""Which branch answers: what hides what, in every dialect, and what is merged with what."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.core.conftest import MakeStack, needs_root
from tests.core.drivers import errno_of
from tests.core.snapshots import inos_of, merged, settled, snapshot
from tests.core.trees import MTIME_NS
from unionfs.core.attrs import ROOT

# lowers top first, upper, what is seen
MERGES = {
    "one lower": (["a=1"], "", "a=1"),
    "upper wins over lower": (["a=1"], "a=2", "a=2"),
    "first lower wins": (["a=1", "a=2"], "", "a=1"),
    "directories merge": (["d/a=1", "d/b=2"], "d/c=3", "d/a=1 d/b=2 d/c=3"),
    "the topmost directory gives the attributes": (["d/:0700 d/a", "d/:0711 d/b"], "", "d/:0700 d/a d/b"),
    "file over directory": (["a=1", "a/b=2"], "", "a=1"),
    "symlink over directory": (["a->x", "a/b=2"], "", "a->x"),
    "directory over file": (["a/b=2", "a=1"], "", "a/b=2"),
    "a directory is not merged through a file": (["d/a", "d=file", "d/b"], "", "d/a"),
    "a directory is not merged through a symlink": (["d/a", "d->e", "d/b e/c"], "", "d/a e/c"),
    "aufs whiteout": ([".wh.a", "a=1 b=2"], "", "b=2"),
    "aufs whiteout in the upper": (["a=1 b=2"], ".wh.a", "b=2"),
    "aufs whiteout of a directory": ([".wh.d", "d/a"], "", ""),
    "whiteout of what is not there": ([".wh.x a", "b"], ".wh.y", "a b"),
    "a whiteout does not reach up": (["a=1", ".wh.a"], "", "a=1"),
    "whiteout in the middle": (["d/a", ".wh.d", "d/b"], "", "d/a"),
    "file in the middle of a whiteout": (["d/a", "d/.wh.b", "d/b d/c"], "", "d/a d/c"),
    "device whiteout": (["a<c:0:0>", "a=1 b=2"], "", "b=2"),
    "device whiteout in the upper": (["d/a=1"], "d<c:0:0>", ""),
    "user xattr whiteout": (["d/{user.overlay.opaque=x} d/a{user.overlay.whiteout=y}", "d/a=1 d/b"], "", "d/b"),
    "user xattr whiteout in the upper": (["d/a=1 d/b"], "d/{user.overlay.opaque=x} d/a{user.overlay.whiteout=}", "d/b"),
    "xattr whiteout in a plain directory is a file": (["d/a{user.overlay.whiteout=y}", "d/a=1"], "", "d/a"),
    "xattr whiteout with data is a file": (
        ["d/{user.overlay.opaque=x} d/a=z{user.overlay.whiteout=y}", "d/a=1"],
        "",
        "d/a=z",
    ),
    "opaque x merges": (["d/{user.overlay.opaque=x} d/a", "d/b"], "", "d/a d/b"),
    "aufs opaque": (["d/.wh..wh..opq d/a", "d/b"], "", "d/a"),
    "aufs opaque in the upper": (["d/b"], "d/.wh..wh..opq d/a", "d/a"),
    "user.overlay opaque": (["d/{user.overlay.opaque=y} d/a", "d/b"], "", "d/a"),
    "fuse-overlayfs opaque": (["d/{user.fuseoverlayfs.opaque=y} d/a", "d/b"], "", "d/a"),
    "opaque stops at its own branch": (["d/a", "d/.wh..wh..opq d/b", "d/c"], "", "d/a d/b"),
    "opaque below a directory": (["d/e/a", "d/.wh..wh..opq d/e/b", "d/e/c d/f"], "", "d/e/a d/e/b"),
    "opaque root": ([".wh..wh..opq a", "b"], "", "a"),
    "opaque root of the upper": (["b"], ".wh..wh..opq", ""),
    "entry beside its own whiteout": ([".wh.d d/a", "d/b"], "", "d/a"),
    "file beside its own whiteout": ([".wh.a a=1", "a=2"], "", "a=1"),
    "entry beside its own whiteout, in the upper": (["d/b"], ".wh.d d/a", "d/a"),
    "whiteout without a name": ([".wh. a", "b"], ".wh.", "a b"),
    "aufs housekeeping": ([".wh..wh.aufs .wh..wh.plnk/x .wh..wh.orph/ a", "aufs"], "", "a aufs"),
    "whiteout by a directory": ([".wh.a/", "a=1"], "", ""),
    "hidden parent": ([".wh.d", "d/e/f=1"], "d/e/g=2", "d/e/g=2"),
    "redirect by absolute path": (["d/e/{user.overlay.redirect=/x/y} x/y<c:0:0>", "x/y/f=1"], "", "d/e/f=1 x/"),
    "redirect by a sibling's name": (["d/e/{user.overlay.redirect=g} d/g<c:0:0>", "d/g/f=1"], "", "d/e/f=1"),
    "redirect by a sibling's name in the root": (["e/{user.overlay.redirect=g} .wh.g", "g/f=1"], "", "e/f=1"),
    "redirect in the upper": (["x/y/f=1"], "d/{user.overlay.redirect=/x} x<c:0:0>", "d/y/f=1"),
    "redirect in the upper by a sibling's name": (["d/x/f=1"], "d/e/{user.overlay.redirect=x} d/x<c:0:0>", "d/e/f=1"),
    "redirect through a redirect": (
        ["n/{user.overlay.redirect=/m} n/a m<c:0:0>", "m/{user.overlay.redirect=/o} m/b o<c:0:0>", "o/c"],
        "",
        "n/a n/b n/c",
    ),
    "redirect past a branch": (["n/{user.overlay.redirect=/m} n/a m<c:0:0>", "k", "m/b"], "", "k n/a n/b"),
    "redirect into a merged directory": (
        ["n/{user.overlay.redirect=/m} m<c:0:0>", "m/a m/.wh.x", "m/b m/x"],
        "",
        "n/a n/b",
    ),
    "redirect into a hidden directory": (["n/{user.overlay.redirect=/m}", "m<c:0:0>", "m/b"], "", "n/"),
    "what is below a redirect": (["d/{user.overlay.redirect=/x} d/e/a x<c:0:0>", "x/e/b x/f"], "", "d/e/a d/e/b d/f"),
    "the name redirected from is not merged": (["d/{user.overlay.redirect=/x} d/a x<c:0:0>", "x/b d/c"], "", "d/a d/b"),
    "swapped by redirects": (["d/{user.overlay.redirect=/e} e/{user.overlay.redirect=/d}", "d/a e/b"], "", "d/b e/a"),
    "redirect to nowhere": (["d/{user.overlay.redirect=/none} d/a", "d/b"], "", "d/a"),
    "redirect with dots leads nowhere": (["d/{user.overlay.redirect=/../e} d/a", "e/b"], "", "d/a e/b"),
}

ROOT_MERGES = {
    "trusted.overlay opaque": (["d/{trusted.overlay.opaque=y} d/a", "d/b"], "", "d/a"),
    "trusted xattr whiteout": (
        ["d/{trusted.overlay.opaque=x} d/a{trusted.overlay.whiteout=y}", "d/a=1 d/b"],
        "",
        "d/b",
    ),
    "trusted redirect": (["d/{trusted.overlay.redirect=/x} x<c:0:0>", "x/f=1"], "", "d/f=1"),
    "a device is not a whiteout": (["a<c:1:3>:0600 b<b:0:0>:0600", "a b"], "", "a<c:1:3>:0600 b<b:0:0>:0600"),
}


@pytest.mark.parametrize(("lowers", "upper", "seen"), MERGES.values(), ids=MERGES)
def test_merged_view(lowers: list[str], upper: str, seen: str, make: MakeStack) -> None:
    u = make(*lowers, upper=upper).u
    settled(lambda: snapshot(u))
    assert merged(u) == seen


# Marks of all dialects are read, whichever is written: both formats once, above, are enough.
one_format = pytest.mark.parametrize("whiteout", ["aufs"], indirect=True)


@one_format
@pytest.mark.parametrize(("lowers", "upper", "seen"), MERGES.values(), ids=MERGES)
def test_merged_view_without_an_upper(lowers: list[str], upper: str, seen: str, make: MakeStack) -> None:
    """The same layers, all of them lowers: an upper is not special for reading."""
    assert merged(make(upper, *lowers, upper=None).u) == seen


@needs_root
@one_format
@pytest.mark.parametrize(("lowers", "upper", "seen"), ROOT_MERGES.values(), ids=ROOT_MERGES)
def test_merged_view_of_trusted_marks(lowers: list[str], upper: str, seen: str, make: MakeStack) -> None:
    assert merged(make(*lowers, upper=upper).u) == seen


@one_format
@pytest.mark.parametrize(("lowers", "upper", "seen"), MERGES.values(), ids=MERGES)
def test_single_lookups_agree_with_listings(lowers: list[str], upper: str, seen: str, make: MakeStack) -> None:
    """Every name of the branches, asked for one by one in a union that has listed nothing yet."""
    listed = make(*lowers, upper=upper).u
    shown = set(snapshot(listed))
    asked = make(*lowers, upper=upper)
    names = {
        os.path.relpath(os.path.join(directory, name), os.fsencode(branch))
        for branch in [*asked.lowers, asked.upper]
        if branch is not None
        for directory, directories, files in os.walk(os.fsencode(branch))
        for name in directories + files
    }
    for path in sorted(names | shown - {b""}):
        code = errno_of(lambda path=path: asked.u.stat(path))  # type: ignore[misc]
        assert code in ((0,) if path in shown else (errno.ENOENT, errno.ENOTDIR)), path


class TestMetacopy:
    """A file with attributes only: its data are in a branch beneath (overlayfs.rst, "Metadata only copy up")."""

    @staticmethod
    def hollow(path: Path, size: int, redirect: bytes | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        os.truncate(path, size)
        os.setxattr(path, b"user.overlay.metacopy", b"")
        if redirect is not None:
            os.setxattr(path, b"user.overlay.redirect", redirect)
        os.utime(path, ns=(MTIME_NS, MTIME_NS))

    @pytest.mark.parametrize("reopened", [False, True])
    def test_data_come_from_beneath(self, make: MakeStack, reopened: bool) -> None:
        stack = make("", "a=12345:0644", upper="")
        self.hollow(stack.lowers[0] / "a", 5)
        stack.watch()
        assert merged(stack.u) == "a=12345:0600"
        stack.u.write("a", 1, b"xx")
        if reopened:
            stack.remount()
        assert stack.u.read("a") == b"1xx45"
        assert stack.u.stat("a").mode == stat.S_IFREG | 0o600

    def test_data_come_from_where_the_redirect_says(self, make: MakeStack) -> None:
        stack = make("", "x/y=12345", upper="")
        self.hollow(stack.lowers[0] / "a", 5, b"/x/y")
        stack.watch()
        assert merged(stack.u) == "a=12345:0600 x/y=12345"

    def test_through_several_layers(self, make: MakeStack) -> None:
        stack = make("", "", "a=12345", upper=None)
        for lower in stack.lowers[:2]:
            self.hollow(lower / "a", 5)
        stack.watch()
        assert merged(stack.u) == "a=12345:0600"

    def test_in_an_upper_that_the_kernel_wrote(self, make: MakeStack) -> None:
        stack = make("a=12345", upper="")
        assert stack.upper is not None
        self.hollow(stack.upper / "a", 5)
        assert merged(stack.u) == "a=12345:0600"
        stack.u.write("a", 4, b"67")
        stack.remount()
        assert merged(stack.u) == "a=123467:0600"

    def test_a_metacopy_without_data_is_an_error(self, make: MakeStack) -> None:
        stack = make("", "b=1", upper=None)
        self.hollow(stack.lowers[0] / "a", 5)
        stack.watch()
        with pytest.raises(OSError) as caught:
            stack.u.read("a")
        assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("name", [b".wh.a", b".wh.", b".wh..wh..opq", b".wh..wh.x"])
def test_names_of_marks_are_not_found(name: bytes, make: MakeStack) -> None:
    u = make("a", upper=os.fsdecode(name)).u
    with pytest.raises(FileNotFoundError):
        u.stat(name)


def test_a_missing_name_and_a_path_through_a_file(make: MakeStack) -> None:
    stack = make("f=1 d/")
    for path, code in (("x", errno.ENOENT), ("d/x", errno.ENOENT), ("f/x", errno.ENOTDIR)):
        with pytest.raises(OSError) as caught:
            stack.u.stat(path)
        assert caught.value.errno == code
    file = stack.union.lookup(ROOT, b"f")
    with pytest.raises(NotADirectoryError):
        stack.union.lookup(file.nodeid, b"x")
    stack.union.forget(file.nodeid)


def test_names_above_255_bytes(make: MakeStack) -> None:
    u = make("n" * 255).u
    assert u.exists("n" * 255)
    with pytest.raises(OSError) as caught:
        u.stat("n" * 256)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_the_root_has_the_attributes_of_the_topmost_branch(make: MakeStack) -> None:
    assert stat.S_IMODE(make("./:0711", upper="./:0750").u.stat("").mode) == 0o750
    assert stat.S_IMODE(make("./:0711", "./:0700", upper=None).u.stat("").mode) == 0o711


def test_node_ids_are_never_reused(make: MakeStack) -> None:
    """A node id may still be in a message of the kernel after its file has gone (DESIGN.md, section 4)."""
    union = make("a=1").union
    seen = set()
    for _ in range(5):
        entry = union.lookup(ROOT, b"a")
        assert entry.nodeid not in seen
        assert union.getattr(entry.nodeid) == entry.attrs
        seen.add(entry.nodeid)
        union.forget(entry.nodeid)
        with pytest.raises(OSError):
            union.getattr(entry.nodeid)


def test_forget_counts(make: MakeStack) -> None:
    union = make("a=1").union
    first = union.lookup(ROOT, b"a")
    assert [union.lookup(ROOT, b"a").nodeid for _ in range(3)] == [first.nodeid] * 3
    union.forget(first.nodeid, 3)
    assert union.read(first.nodeid, 0, 10) == b"1"
    union.forget(first.nodeid)
    with pytest.raises(OSError):
        union.read(first.nodeid, 0, 10)
    union.forget(first.nodeid)
    union.forget(999_999, 5)
    union.forget(ROOT, 1000)
    assert union.getattr(ROOT).ino != 0


def test_a_child_outlives_the_forgetting_of_its_parent(make: MakeStack) -> None:
    """The kernel sends forgets in any order."""
    union = make("d/e/f=1").union
    d = union.lookup(ROOT, b"d")
    e = union.lookup(d.nodeid, b"e")
    f = union.lookup(e.nodeid, b"f")
    union.forget(d.nodeid)
    union.forget(e.nodeid)
    assert union.read(f.nodeid, 0, 9) == b"1"
    assert union.write(f.nodeid, 0, b"2") == 1
    union.forget(f.nodeid)
    d = union.lookup(ROOT, b"d")
    e = union.lookup(d.nodeid, b"e")
    f = union.lookup(e.nodeid, b"f")
    assert union.read(f.nodeid, 0, 9) == b"2"
    for entry in (d, e, f):
        union.forget(entry.nodeid)


@pytest.mark.parametrize("lowers", [["d/a=1 d/b==d/a c==d/a"], ["c=x", "d/a=1 d/b==d/a c==d/a"]])
def test_names_of_one_inode_are_one_node(lowers: list[str], make: MakeStack) -> None:
    """Else the kernel would keep two page caches for one file."""
    stack = make(*lowers)
    union = stack.union
    d = union.lookup(ROOT, b"d")
    a, b = union.lookup(d.nodeid, b"a"), union.lookup(d.nodeid, b"b")
    assert a.nodeid == b.nodeid
    assert a.attrs.ino == b.attrs.ino
    for entry in (a, b, d):
        union.forget(entry.nodeid)


def test_inode_numbers_differ_and_last(make: MakeStack) -> None:
    stack = make("a b d/c", "e d/f", upper="g d/h")
    before = inos_of(stack.u)
    assert len(set(before.values())) == len(before)
    stack.remount()
    assert inos_of(stack.u) == before
