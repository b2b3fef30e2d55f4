"""unlink and rmdir over every kind of branch, and files that are removed while in use."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.core.conftest import MakeStack
from tests.core.drivers import errno_of
from tests.core.native import Native
from tests.core.snapshots import merged, snapshot
from tests.core.stack import Stack, Whiteout
from tests.core.union_driver import UnionDriver
from unionfs.core.attrs import ROOT, AttrChange, Caller
from unionfs.syscalls import files

LONG = "n" * 252  # `.wh.` and this are longer than a name can be


@pytest.mark.parametrize("name", ["low", "both", "up"])
@pytest.mark.parametrize("remount", [False, True])
def test_unlink(name: str, remount: bool, make: MakeStack) -> None:
    stack = make("low=1 both=1", "low=0", upper="up=1 both=2")
    stack.u.unlink(name)
    for _ in range(2):
        assert not stack.u.exists(name)
        assert set(stack.u.names("")) == {b"low", b"both", b"up"} - {name.encode()}
        with pytest.raises(FileNotFoundError):
            stack.u.unlink(name)
        if remount:
            stack.remount()


@pytest.mark.parametrize("kind", ["=x", "->x", "<fifo>:0600", "<sock>:0600"])
def test_unlink_of_every_kind(kind: str, make: MakeStack) -> None:
    stack = make(f"a{kind} d/b{kind}", upper=f"c{kind}")
    for path in ("a", "d/b", "c"):
        stack.u.unlink(path)
    assert merged(stack.remount()) == "d/"


def test_marks_are_written_in_the_format_asked_for(make: MakeStack, whiteout: Whiteout) -> None:
    """What other tools will read: `.wh.NAME` and `.wh..wh..opq`, or device 0:0 and an opaque attribute."""
    stack = make("a d/x", upper="")
    stack.u.unlink("a")
    stack.u.unlink("d/x")
    stack.u.rmdir("d")
    stack.u.mkdir("d")
    stack.close()
    assert stack.upper is not None
    upper = Native(stack.upper)
    if whiteout == "aufs":
        assert {b".wh.a", b"d"} <= set(upper.names(""))
        assert b"a" not in upper.names("")
        assert stat.S_ISREG(upper.stat(".wh.a").mode)
        assert b".wh..wh..opq" in upper.names("d") or b".wh.d" in upper.names("")
    else:
        assert set(upper.names("")) == {b"a", b"d"}
        assert stat.S_ISCHR(upper.stat("a").mode)
        assert upper.stat("a").rdev == 0
        values = {upper.getxattr("d", name) for name in upper.listxattr("d") if name.endswith(b"overlay.opaque")}
        assert values == {b"y"}


@pytest.fixture
def no_devices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in user namespaces of old kernels, on some network filesystems, and under some seccomp filters."""
    made, code = os.mknod, getattr(request, "param", errno.EPERM)

    def refuse(path: bytes, mode: int = 0o600, device: int = 0, *, dir_fd: int | None = None) -> None:
        if stat.S_ISCHR(mode):
            raise OSError(code, os.strerror(code))
        made(path, mode, device, dir_fd=dir_fd)

    renamed = files.renameat2

    def refuse_whiteout(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int = 0) -> None:
        if flags & files.RENAME_WHITEOUT:
            raise OSError(code, os.strerror(code))
        renamed(old_fd, old, new_fd, new, flags)

    monkeypatch.setattr(os, "mknod", refuse)
    monkeypatch.setattr(files, "renameat2", refuse_whiteout)


DIALECTS = pytest.mark.parametrize("dialect", ["aufs", "overlay", "fuse-overlayfs"])


@DIALECTS
@pytest.mark.parametrize("no_devices", [errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS], indirect=True)
@pytest.mark.usefixtures("no_devices")
def test_where_device_nodes_are_refused_a_file_is_the_mark(dialect: Whiteout, tmp_path: Path) -> None:
    stack = Stack(tmp_path, "a b d/x", upper="b=2", whiteout=dialect)
    stack.u.unlink("a")
    stack.u.unlink("b")
    stack.u.unlink("d/x")
    assert merged(stack.remount()) == "d/"
    stack.u.rmdir("d")
    assert merged(stack.remount()) == ""
    stack.u.create("a")
    stack.close()
    assert stack.upper is not None
    assert set(Native(stack.upper).names("")) == {b".wh.b", b".wh.d", b"a"}
    stack.finish()


# what is done to "a b d/x e/y/z l->a", what is seen then
ACTS = {
    "unlink a": "b d/x e/y/z l->a",
    "unlink l": "a b d/x e/y/z",
    "unlink d/x, rmdir d": "a b e/y/z l->a",
    "unlink d/x, rmdir d, mkdir d": "a b d/ e/y/z l->a",
    "unlink a, mkdir a": "a/ b d/x e/y/z l->a",
    "rename a n": "b d/x e/y/z l->a n",
    "rename a b": "b d/x e/y/z l->a",
    "rename a n, rename n a": "a b d/x e/y/z l->a",
    "rename e n": "a b d/x l->a n/y/z",
    "rename e/y d/y": "a b d/x d/y/z e/ l->a",
    "unlink d/x, rename e d": "a b d/y/z l->a",
    "unlink a, rename e a": "a/y/z b d/x l->a",
    "exchange a e": "a/y/z b d/x e l->a",
    "unlink a, symlink a b": "a->b b d/x e/y/z l->a",
    "unlink l, link a l": "a b d/x e/y/z l==a",
}


def _do(union: UnionDriver, acts: str) -> None:
    for act in acts.split(", "):
        verb, path, *rest = act.split()
        if verb == "exchange":
            union.rename(path, rest[0], files.RENAME_EXCHANGE)
        elif verb == "symlink":
            union.symlink(path, rest[0].encode())
        else:
            getattr(union, verb)(path, *rest)


@DIALECTS
@pytest.mark.parametrize("acts", ACTS)
@pytest.mark.usefixtures("no_devices")
def test_every_act_does_without_device_nodes(acts: str, dialect: Whiteout, tmp_path: Path) -> None:
    """Before and after a remount."""
    stack = Stack(tmp_path, "a b d/x e/y/z l->a", whiteout=dialect)
    _do(stack.u, acts)
    assert merged(stack.u) == ACTS[acts]
    assert merged(stack.remount()) == ACTS[acts]
    stack.finish()
    assert stack.upper is not None
    assert not any(stat.S_ISCHR(path.lstat().st_mode) for path in stack.upper.rglob("*"))


@DIALECTS
@pytest.mark.usefixtures("no_devices")
def test_a_name_too_long_for_a_mark_stays_where_device_nodes_are_refused(dialect: Whiteout, tmp_path: Path) -> None:
    stack = Stack(tmp_path, f"{LONG} d/{LONG}", upper="d/y", whiteout=dialect)
    for act in (lambda: stack.u.unlink(LONG), lambda: stack.u.rename(LONG, "n"), lambda: stack.u.unlink(f"d/{LONG}")):
        assert errno_of(act) == errno.ENAMETOOLONG
    assert merged(stack.remount()) == f"d/{LONG} d/y {LONG}"
    stack.finish()


def test_no_mark_for_what_no_lower_has(make: MakeStack) -> None:
    stack = make("d/x", upper="up")
    stack.u.unlink("up")
    stack.u.put("new", b"1")
    stack.u.unlink("new")
    stack.u.mkdir("e")
    stack.u.rmdir("e")
    stack.u.create("d/y")
    stack.u.unlink("d/y")
    stack.close()
    assert stack.upper is not None
    assert sorted(Native(stack.upper).names("")) == [b"d"]
    assert Native(stack.upper).names("d") == {}


def test_no_mark_in_an_opaque_directory(make: MakeStack) -> None:
    stack = make("d/x", upper="d/.wh..wh..opq d/x")
    stack.u.unlink("d/x")
    stack.close()
    assert stack.upper is not None
    assert set(Native(stack.upper).names("d")) == {b".wh..wh..opq"}


@pytest.mark.parametrize("name", [LONG, "n" * 251, "n" * 255])
@pytest.mark.parametrize("kind", ["", "/x"])
def test_names_whose_mark_would_be_too_long(name: str, kind: str, make: MakeStack) -> None:
    stack = make(f"{name}{kind} o=1")
    if kind:
        stack.u.unlink(name + kind)
        stack.u.rmdir(name)
    else:
        stack.u.unlink(name)
    for _ in range(2):
        assert merged(stack.u) == "o=1"
        stack.remount()
    stack.u.put(name, b"again")
    assert merged(stack.remount()) == f"{name}=again o=1"
    stack.u.unlink(name)
    assert merged(stack.remount()) == "o=1"
    assert merged(stack.restack()) == "o=1"


def test_errnos_of_unlink_and_rmdir(make: MakeStack) -> None:
    stack = make("f d/x e/", upper="uf ud/x ue/")
    cases = [
        (stack.u.unlink, "d", errno.EISDIR),
        (stack.u.unlink, "ud", errno.EISDIR),
        (stack.u.unlink, "none", errno.ENOENT),
        (stack.u.rmdir, "f", errno.ENOTDIR),
        (stack.u.rmdir, "uf", errno.ENOTDIR),
        (stack.u.rmdir, "none", errno.ENOENT),
        (stack.u.rmdir, "d", errno.ENOTEMPTY),
        (stack.u.rmdir, "ud", errno.ENOTEMPTY),
        (stack.u.unlink, ".wh.x", errno.ENOENT),
        (stack.u.rmdir, ".wh.x", errno.ENOENT),
    ]
    for verb, path, code in cases:
        with pytest.raises(OSError) as caught:
            verb(path)
        assert caught.value.errno == code, (verb, path)
    assert merged(stack.u) == "d/x e/ f ud/x ue/ uf"


RMDIRS = {
    "lower": (["d/"], ""),
    "upper": ([""], "d/"),
    "merged": (["d/"], "d/"),
    "two lowers": (["d/", "d/"], ""),
    "all removed by whiteouts of the upper": (["d/a d/b"], "d/.wh.a d/b<c:0:0>"),
    "all removed by whiteouts of a lower": (["d/.wh.a", "d/a"], ""),
    "opaque over something": (["d/a"], "d/.wh..wh..opq"),
    "opaque attribute over something": (["d/a"], "d/{user.overlay.opaque=y}"),
    "attribute whiteouts": (["d/a"], "d/{user.overlay.opaque=x} d/a{user.overlay.whiteout=y}"),
    "whiteout of nothing": ([""], "d/.wh.x d/.wh. d/.wh..wh.aufs"),
    "housekeeping directories": ([""], "d/.wh..wh.plnk/x"),
}


@pytest.mark.parametrize(("lowers", "upper"), RMDIRS.values(), ids=RMDIRS)
def test_rmdir_of_what_looks_empty(lowers: list[str], upper: str, make: MakeStack) -> None:
    stack = make(*(f"{lower} k" for lower in lowers), upper=upper)
    assert stack.u.names("d") == {}
    stack.u.rmdir("d")
    for _ in range(2):
        assert merged(stack.u) == "k"
        stack.remount()
    stack.u.mkdir("d", 0o700)
    assert merged(stack.remount()) == "d/:0700 k"


def test_rmdir_after_removing_everything(make: MakeStack) -> None:
    stack = make("d/a d/e/b d/l->x", "d/c d/e/f", upper="d/u d/e/g")
    for path in ("d/a", "d/c", "d/u", "d/l", "d/e/b", "d/e/f", "d/e/g"):
        with pytest.raises(OSError):
            stack.u.rmdir("d/e")
        stack.u.unlink(path)
    stack.u.rmdir("d/e")
    stack.u.rmdir("d")
    assert merged(stack.remount()) == ""
    assert merged(stack.restack()) == ""


class TestStillInUse:
    """A file that has lost its last name lives on until it is forgotten (unlink(2))."""

    @pytest.mark.parametrize("where", ["lower", "upper", "copied up"])
    def test_read_write_and_attributes(self, where: str, make: MakeStack) -> None:
        text = "f=data:0640{user.k=v}"
        stack = make("" if where == "upper" else text, upper=text if where == "upper" else "", caching=True)
        handle = stack.u.open("f")
        if where == "copied up":
            stack.u.pwrite(handle, 0, b"data")
        ino = stack.u.fstat(handle).ino
        stack.u.unlink("f")
        assert merged(stack.u) == ""
        node = stack.u._handles[handle]
        attrs = stack.u.fstat(handle)
        assert (attrs.ino, attrs.nlink, attrs.size, stat.S_IMODE(attrs.mode)) == (ino, 0, 4, 0o640)
        assert stack.u.pread(handle, 0, 9) == b"data"
        assert stack.union.getxattr(node, b"user.k") == b"v"
        stack.u.pwrite(handle, 4, b"more")
        stack.union.setattr(node, AttrChange(mode=0o600, mtime_ns=3))
        stack.union.setxattr(node, b"user.k", b"w", 0)
        stack.u.ftruncate(handle, 6)
        attrs = stack.u.fstat(handle)
        assert (attrs.ino, attrs.nlink, attrs.size, stat.S_IMODE(attrs.mode)) == (ino, 0, 6, 0o600)
        assert stack.u.pread(handle, 0, 9) == b"datamo"
        assert stack.union.getxattr(node, b"user.k") == b"w"
        stack.u.close(handle)
        stack.close()
        assert sum(len(files) for _, _, files in os.walk(stack.work)) == 0

    @pytest.mark.parametrize("where", ["lower", "upper"])
    def test_after_being_renamed_over(self, where: str, make: MakeStack) -> None:
        stack = make(
            "f=old" if where == "lower" else "", upper="g=new" + (" f=old" if where == "upper" else ""), caching=True
        )
        handle = stack.u.open("f")
        stack.u.rename("g", "f")
        assert stack.u.read("f") == b"new"
        assert stack.u.pread(handle, 0, 9) == b"old"
        stack.u.pwrite(handle, 0, b"OLD")
        assert (stack.u.read("f"), stack.u.pread(handle, 0, 9)) == (b"new", b"OLD")
        stack.u.close(handle)
        assert merged(stack.remount()) == "f=new"

    def test_a_new_file_of_the_name_is_another(self, make: MakeStack) -> None:
        stack = make("f=old", caching=True)
        handle = stack.u.open("f")
        stack.u.unlink("f")
        stack.u.put("f", b"new")
        assert stack.u.stat("f").ino != stack.u.fstat(handle).ino
        stack.u.pwrite(handle, 0, b"x")
        assert (stack.u.read("f"), stack.u.pread(handle, 0, 9)) == (b"new", b"xld")
        stack.u.close(handle)

    def test_the_last_known_of_several_names(self, make: MakeStack) -> None:
        """The kernel knows the file by one name only; that one goes, another stays."""
        stack = make("a=1 b==a", upper="c=2 d==c", caching=True)
        for known, other in (("a", "b"), ("c", "d")):
            handle = stack.u.open(known)
            stack.u.unlink(known)
            stack.u.pwrite(handle, 0, b"x")
            assert stack.u.fstat(handle).nlink == 1
            assert stack.u.read(other) == b"x"
            stack.u.close(handle)
        assert merged(stack.remount()) == "b=x d=x"

    def test_linked_back(self, make: MakeStack) -> None:
        """linkat(2) of /proc/self/fd/N of a file without a name: ENOENT, unless it was made by O_TMPFILE; the
        core may not know which it is, so it may allow both, but must not lose or mix anything."""
        stack = make("f=1", caching=True)
        handle = stack.u.open("f")
        stack.u.unlink("f")
        try:
            stack.u.link_handle(handle, "g")
        except FileNotFoundError:
            assert merged(stack.u) == ""
        else:
            assert merged(stack.u) == "g=1"
        stack.u.close(handle)

    def test_a_directory(self, make: MakeStack) -> None:
        stack = make("d/", upper="e/", caching=True)
        for name in (b"d", b"e"):
            node = stack.union.lookup(ROOT, name).nodeid
            stack.union.rmdir(ROOT, name)
            assert stat.S_ISDIR(stack.union.getattr(node).mode)
            assert [entry.name for entry in stack.union.readdir(node, 2)] == []
            with pytest.raises(FileNotFoundError):
                stack.union.lookup(node, b"x")
            with pytest.raises(FileNotFoundError):
                stack.union.mknod(node, b"x", stat.S_IFREG | 0o600, 0, Caller(0, 0))
            stack.union.setattr(node, AttrChange(mode=0o711))
            assert stat.S_IMODE(stack.union.getattr(node).mode) == 0o711
            stack.union.forget(node)
        assert merged(stack.remount()) == ""

    def test_many_forgotten_at_close(self, make: MakeStack) -> None:
        stack = make(" ".join(f"f{i}={i}" for i in range(30)), caching=True)
        for i in range(30):
            stack.u.write(f"f{i}", 0, b"x")
            stack.u.open(f"f{i}")
            stack.u.unlink(f"f{i}")
        stack.u._handles.clear()
        assert merged(stack.remount()) == ""

    def test_closing_with_files_in_use_leaves_no_litter(self, tmp_path: Path, whiteout: Whiteout) -> None:
        """The mount went away at once: no forgets come."""
        stack = Stack(tmp_path / "s", "f=1", whiteout=whiteout)
        node = stack.union.lookup(ROOT, b"f").nodeid
        stack.union.write(node, 0, b"2")
        stack.union.unlink(ROOT, b"f")
        stack.union.close()
        stack._driver = None
        assert merged(stack.u) == ""
        stack.finish()


def test_removing_what_is_open_elsewhere_keeps_the_lowers_whole(make: MakeStack) -> None:
    stack = make("d/a=1 d/b==d/a", caching=True)
    handle = stack.u.open("d/a")
    before = snapshot(Native(stack.lowers[0]))
    stack.u.unlink("d/a")
    stack.u.ftruncate(handle, 0)
    assert stack.u.read("d/b") == b""
    stack.u.close(handle)
    assert snapshot(Native(stack.lowers[0])) == before
