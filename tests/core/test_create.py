"""Making things: files, directories, symlinks, fifos, devices, names; over whiteouts, with the caller's owner."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core.acl import ACCESS, DEFAULT, acl
from tests.core.conftest import MakeStack, needs_root
from tests.core.native import Native
from tests.core.snapshots import merged, snapshot
from tests.core.trees import tree
from tests.core.union_driver import UnionDriver
from unionfs.core.attrs import ROOT, Caller

MAKERS: dict[str, tuple[Callable[[UnionDriver, str | bytes], object], str]] = {
    "create": (lambda u, path: u.create(path), ""),
    "mkdir": (lambda u, path: u.mkdir(path), "/"),
    "symlink": (lambda u, path: u.symlink(path, b"t"), "->t"),
    "mknod": (lambda u, path: u.mknod(path, stat.S_IFIFO | 0o600), "<fifo>:0600"),
    "socket": (lambda u, path: u.mknod(path, stat.S_IFSOCK | 0o600), "<sock>:0600"),
    "link": (lambda u, path: u.link("z", path), "==z"),
    "rename": (lambda u, path: u.rename("y", path), ""),
}
maker = pytest.mark.parametrize("how", MAKERS)
makes_new = pytest.mark.parametrize("how", [how for how in MAKERS if how not in ("link", "rename")])
replaces_nothing = pytest.mark.parametrize("how", [how for how in MAKERS if how != "rename"])


@pytest.mark.parametrize("remount", [False, True])
@maker
def test_new_names(how: str, remount: bool, make: MakeStack) -> None:
    stack = make("d/e/ y", upper="z")
    act, text = MAKERS[how]
    act(stack.u, "d/e/new")
    if remount:
        stack.remount()
    assert merged(stack.u) == expected("d/e/new", text, how)


def expected(path: str, text: str, how: str) -> str:
    """The tree of `y` and `z` after `how` made `path`."""
    items = [f"{path}{text}", "z"] if how != "link" else [path, f"z=={path}"]
    return " ".join(sorted(items if how == "rename" else [*items, "y"]))


@replaces_nothing
def test_names_that_exist(how: str, make: MakeStack) -> None:
    """EEXIST for each branch and each kind in the way; rename and nothing else replaces (tested in test_rename)."""
    stack = make("low/ lowfile y", upper="up/ upfile z")
    for path in ("low", "lowfile", "up", "upfile"):
        with pytest.raises(FileExistsError):
            MAKERS[how][0](stack.u, path)
    assert merged(stack.u) == "low/ lowfile up/ upfile y z"


@pytest.mark.parametrize("hidden", ["new=old", "new/a=1 new/b/c=2", "new->x", "new<fifo>:0600"])
@pytest.mark.parametrize("remount", [False, True])
@maker
def test_over_a_whiteout(how: str, hidden: str, remount: bool, make: MakeStack) -> None:
    """What was removed stays removed: nothing of it shines through what takes its name."""
    stack = make(f"{hidden} y", upper="z")
    remove(stack.u, "new")
    if remount:
        stack.remount()
    act, text = MAKERS[how]
    act(stack.u, "new")
    for _ in range(2):
        assert merged(stack.u) == expected("new", text, how)
        stack.remount()
    remove(stack.u, "new")
    assert merged(stack.u) == ("z" if how == "rename" else "y z")


def remove(u: UnionDriver, path: str) -> None:
    """rm -r."""
    if stat.S_ISDIR(u.stat(path).mode):
        for name in u.names(path):
            remove(u, f"{path}/{os.fsdecode(name)}")
        u.rmdir(path)
    else:
        u.unlink(path)


@pytest.mark.parametrize("mark", [".wh.new", "new<c:0:0>", "./{user.overlay.opaque=x} new{user.overlay.whiteout=y}"])
@maker
def test_over_a_whiteout_that_somebody_else_wrote(how: str, mark: str, make: MakeStack) -> None:
    """The upper may have been made by another union: every dialect is understood there too."""
    stack = make("new/old y", upper=f"{mark} z")
    act, text = MAKERS[how]
    act(stack.u, "new")
    for _ in range(2):
        assert merged(stack.u) == expected("new", text, how)
        stack.remount()


@maker
def test_over_a_whiteout_in_a_lower(how: str, make: MakeStack) -> None:
    stack = make(".wh.new y", "new/old", upper="z")
    act, text = MAKERS[how]
    act(stack.u, "new")
    assert merged(stack.remount()) == expected("new", text, how)


@pytest.mark.parametrize("name", [b".wh.a", b".wh.", b".wh..wh..opq", b".wh..wh.plnk"])
@maker
def test_names_of_marks_are_refused(how: str, name: bytes, make: MakeStack) -> None:
    stack = make("y", upper="z")
    with pytest.raises(OSError) as caught:
        MAKERS[how][0](stack.u, name)
    assert caught.value.errno == errno.EINVAL
    assert merged(stack.u) == "y z"


@maker
def test_the_longest_names(how: str, make: MakeStack) -> None:
    stack = make("y", upper="z")
    act, text = MAKERS[how]
    act(stack.u, "n" * 255)
    assert merged(stack.remount()) == expected("n" * 255, text, how)
    with pytest.raises(OSError) as caught:
        MAKERS[how][0](make("y", upper="z").u, "n" * 256)
    assert caught.value.errno == errno.ENAMETOOLONG


@maker
def test_in_a_file_and_in_a_removed_directory(how: str, make: MakeStack) -> None:
    stack = make("f d/ y", upper="z", caching=True)
    with pytest.raises(NotADirectoryError):
        MAKERS[how][0](stack.u, "f/new")
    d = stack.union.lookup(ROOT, b"d")
    stack.u.rmdir("d")
    with pytest.raises(FileNotFoundError):
        stack.union.mkdir(d.nodeid, b"new", 0o755, Caller(0, 0))
    assert [entry.name for entry in stack.union.readdir(d.nodeid, 2)] == []
    stack.union.forget(d.nodeid)


@needs_root
@makes_new
def test_the_owner_is_the_caller(how: str, make: MakeStack) -> None:
    stack = make("d/ y", upper="z")
    stack.u.caller = Caller(5, 6)
    MAKERS[how][0](stack.u, "d/new")
    attrs = stack.u.stat("d/new")
    assert (attrs.uid, attrs.gid) == (5, 6)


@needs_root
@makes_new
def test_a_set_gid_directory_gives_its_group(how: str, make: MakeStack) -> None:
    """inode_init_owner() in fs/inode.c: the group of the directory, and a new directory is set-gid as well."""
    stack = make("d/:2775,1,77 y", upper="z")
    stack.u.caller = Caller(5, 6)
    MAKERS[how][0](stack.u, "d/new")
    attrs = stack.u.stat("d/new")
    assert (attrs.uid, attrs.gid) == (5, 77)
    assert bool(attrs.mode & stat.S_ISGID) == (how == "mkdir")


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_umask(umask: int, make: MakeStack) -> None:
    stack = make("")
    stack.u.caller = Caller(os.geteuid(), os.getegid(), umask=umask)
    stack.u.create("f", 0o666)
    stack.u.mkdir("d", 0o777)
    stack.u.mknod("p", stat.S_IFIFO | 0o666)
    stack.u.symlink("l", b"x")
    modes = {path: stat.S_IMODE(stack.u.stat(path).mode) for path in ("f", "d", "p", "l")}
    assert modes == {"f": 0o666 & ~umask, "d": 0o777 & ~umask, "p": 0o666 & ~umask, "l": 0o777}


@pytest.mark.parametrize("where", ["lower", "upper"])
@pytest.mark.parametrize("umask", [0, 0o077])
def test_default_acls_are_inherited_and_replace_the_umask(
    umask: int, where: str, make: MakeStack, tmp_path: Path
) -> None:
    """acl(5), "Object creation and default ACLs": compared with what the filesystem itself does."""
    rights = acl("u::rwx,u:1234:rwx,g::r-x,m::rwx,o::--x")
    stack = make("d/", upper="d/" if where == "upper" else "")
    plain = Native(tree(tmp_path / "plain", "d/"))
    plain.setxattr("d", DEFAULT, rights)
    stack.u.setxattr("d", DEFAULT, rights)
    stack.remount()
    stack.u.caller = Caller(os.geteuid(), os.getegid(), umask=umask)
    before = os.umask(umask)
    try:
        for driver in (plain, stack.u):
            driver.create("d/f", 0o664)
            driver.mkdir("d/e", 0o770)
            driver.mknod("d/p", stat.S_IFIFO | 0o666)
            driver.symlink("d/l", b"x")
    finally:
        os.umask(before)
    assert snapshot(plain, b"d") == snapshot(stack.u, b"d")
    assert stack.u.getxattr("d/e", DEFAULT) == rights
    assert ACCESS in stack.u.listxattr("d/f")


@needs_root
def test_devices(make: MakeStack) -> None:
    stack = make("y")
    stack.u.mknod("c", stat.S_IFCHR | 0o620, os.makedev(1, 3))
    stack.u.mknod("b", stat.S_IFBLK | 0o620, os.makedev(300, 70_000))
    assert merged(stack.remount()) == "b<b:300:70000>:0620 c<c:1:3>:0620 y"


@needs_root
def test_a_device_that_would_be_a_whiteout_is_refused(make: MakeStack) -> None:
    """Character device 0:0 is how overlayfs says "nothing here" (overlayfs.rst: cannot be made through it)."""
    stack = make("y")
    with pytest.raises(OSError) as caught:
        stack.u.mknod("c", stat.S_IFCHR | 0o600, 0)
    assert caught.value.errno in (errno.EPERM, errno.EINVAL)
    assert merged(stack.u) == "y"


def test_set_id_and_sticky_modes(make: MakeStack) -> None:
    stack = make("")
    stack.u.create("f", 0o6755)
    stack.u.mkdir("d", 0o1777)
    assert stat.S_IMODE(stack.u.stat("f").mode) == 0o6755
    assert stat.S_IMODE(stack.u.stat("d").mode) == 0o1777


class TestLink:
    """link(2)."""

    def test_of_each_branch(self, make: MakeStack) -> None:
        stack = make("low=1 d/", upper="up=2")
        for name in ("low", "up"):
            stack.u.link(name, f"d/{name}")
            stack.u.write(f"d/{name}", 0, b"9")
            assert stack.u.read(name) == b"9"
            assert stack.u.stat(name).nlink == 2
        stack.remount()
        assert merged(stack.u) == "d/low=9 d/up=9 low==d/low up==d/up"

    def test_of_a_symlink_names_the_symlink(self, make: MakeStack) -> None:
        stack = make("l->target")
        stack.u.link("l", "m")
        assert stack.u.readlink("m") == b"target"
        assert merged(stack.remount()) == "l->target m==l"

    def test_of_a_directory(self, make: MakeStack) -> None:
        stack = make("d/")
        with pytest.raises(PermissionError):
            stack.u.link("d", "e")

    def test_keeps_the_inode_number(self, make: MakeStack) -> None:
        stack = make("a=1")
        ino = stack.u.stat("a").ino
        stack.u.link("a", "b")
        stack.u.unlink("a")
        assert stack.remount().stat("b").ino == ino

    def test_back_to_a_removed_name(self, make: MakeStack) -> None:
        stack = make("a=1")
        stack.u.rename("a", "b")
        stack.u.link("b", "a")
        assert merged(stack.remount()) == "a=1 b==a"


class TestTmpfile:
    """O_TMPFILE, then linkat(2)."""

    def test_an_unnamed_file_has_no_name_until_it_is_linked(self, make: MakeStack) -> None:
        stack = make("d/", caching=True)
        handle = stack.u.tmpfile("d", 0o640)
        stack.u.pwrite(handle, 0, b"data")
        assert stack.u.fstat(handle).nlink == 0
        assert stack.u.names("d") == {}
        stack.u.link_handle(handle, "d/f")
        assert stack.u.fstat(handle).nlink == 1
        stack.u.close(handle)
        assert merged(stack.remount()) == "d/f=data:0640"

    def test_an_unlinked_unnamed_file_leaves_nothing(self, make: MakeStack) -> None:
        stack = make("d/", caching=True)
        handle = stack.u.tmpfile("d")
        stack.u.pwrite(handle, 0, b"data")
        stack.u.close(handle)
        assert merged(stack.u) == "d/"
        assert stack.u.stat("d").nlink >= 1

    def test_linked_over_a_whiteout(self, make: MakeStack) -> None:
        stack = make("f=old", caching=True)
        stack.u.unlink("f")
        handle = stack.u.tmpfile("", 0o600)
        stack.u.link_handle(handle, "f")
        stack.u.close(handle)
        assert merged(stack.remount()) == "f:0600"
