"""Bytes: read, write, truncate, allocate, seek, copy; each compared with the same on a plain file."""

from __future__ import annotations

import errno
import functools
import os
import stat
from pathlib import Path

import pytest

from tests.core.conftest import MakeStack
from tests.core.differential import Pair
from tests.core.drivers import errno_of
from tests.core.stack import Whiteout
from tests.core.trees import tree
from unionfs.core.attrs import ROOT, AttrChange, Caller
from unionfs.core.options import Options
from unionfs.core.union import Union

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE, UNSHARE_RANGE = 1, 2, 8, 16, 32, 64
"""Modes of fallocate(2), <linux/falloc.h>."""

FALLOCATIONS = [
    (0, 0, 100),
    (0, 100_000, 5),
    (KEEP_SIZE, 0, 1 << 20),
    (PUNCH_HOLE | KEEP_SIZE, 4096, 4096),
    (PUNCH_HOLE | KEEP_SIZE, 10, 9000),
    (PUNCH_HOLE, 0, 4096),
    (ZERO_RANGE, 100, 9000),
    (ZERO_RANGE, 10_000, 90_000),
    (ZERO_RANGE | KEEP_SIZE, 10_000, 90_000),
    (COLLAPSE_RANGE, 4096, 4096),
    (COLLAPSE_RANGE, 1, 4096),
    (INSERT_RANGE, 4096, 8192),
    (INSERT_RANGE, 1, 1),
    (0, -1, 5),
    (0, 0, 0),
    (UNSHARE_RANGE, 0, 4096),
    (1 << 20, 0, 1),
]


@pytest.fixture(params=["lower", "upper", "copied up"])
def pair(request: pytest.FixtureRequest, tmp_path: Path, whiteout: Whiteout) -> Pair:
    data = "\\x41" * 20_000
    made = Pair(
        tmp_path,
        [f"f={data}" if request.param != "upper" else "o"],
        f"f={data}" if request.param == "upper" else "",
        whiteout,
    )
    if request.param == "copied up":
        made.do("chmod", "f", 0o600)
    return made


@pytest.mark.parametrize(("mode", "offset", "length"), FALLOCATIONS)
def test_fallocate(mode: int, offset: int, length: int, pair: Pair) -> None:
    pair.do("fallocate", "f", mode, offset, length)
    pair.check()
    for at in (0, 4096, 50_000):
        pair.do("lseek", "f", at, os.SEEK_DATA)
        pair.do("lseek", "f", at, os.SEEK_HOLE)
    pair.finish()


@pytest.mark.parametrize("size", [0, 1, 4096, 20_000, 20_001, 1 << 33])
def test_truncate(size: int, pair: Pair) -> None:
    pair.do("truncate", "f", size)
    for offset in (0, 19_990, (1 << 33) - 1):
        pair.do("read", "f", offset, 100)
    pair.do("stat", "f")
    if size < 1 << 20:
        pair.finish()
    else:
        pair.stack.finish()


@pytest.mark.parametrize("offset", [0, 1, 19_999, 20_000, 30_000])
def test_write(offset: int, pair: Pair) -> None:
    pair.do("write", "f", offset, b"hello" * 1000)
    pair.do("write", "f", offset + 3, b"")
    pair.do("read", "f", max(0, offset - 10), 6000)
    pair.finish()


def test_read_past_the_end(pair: Pair) -> None:
    for offset, size in ((20_000, 10), (1 << 40, 10), (19_999, 10), (5, 0)):
        pair.do("read", "f", offset, size)
    pair.finish()


@pytest.mark.parametrize("whence", [os.SEEK_DATA, os.SEEK_HOLE])
def test_lseek(whence: int, pair: Pair) -> None:
    pair.do("write", "f", 1 << 20, b"far")
    for offset in (0, 100, 20_480, 1 << 19, (1 << 20) + 1, (1 << 20) + 3, 1 << 30):
        pair.do("lseek", "f", offset, whence)
    pair.finish()


@pytest.mark.parametrize(("src", "dst"), [("f", "g"), ("g", "f"), ("f", "f")])
def test_copy_file_range(src: str, dst: str, pair: Pair) -> None:
    pair.do("create", "g")
    pair.do("write", "g", 0, b"abc" * 100)
    for src_offset, dst_offset, length in (
        (0, 5000, 3000),
        (100, 0, 50),
        (19_990, 10_000, 100),
        (1 << 20, 0, 10),
        (0, 10, 100),
    ):
        pair.do("copy_file_range", src, src_offset, dst, dst_offset, length)
        pair.check()
    pair.finish()


def test_setting_size_drops_privileges_when_asked(make: MakeStack) -> None:
    """FUSE_HANDLE_KILLPRIV_V2: a writer without CAP_FSETID loses the file its set-id bits, another does not."""
    for where in ("lower", "upper"):
        text = "f=data:6755 g=data:2745 h=data:6755"
        u = make(text if where == "lower" else "", upper=text if where == "upper" else "").u
        u.setattr("f", AttrChange(size=1, kill_priv=True))
        u.setattr("g", AttrChange(size=1, kill_priv=True))
        assert [stat.S_IMODE(u.stat(name).mode) for name in "fg"] == [0o755, 0o2745]
        node = u.union.lookup(ROOT, b"h").nodeid
        if os.geteuid() == 0:
            u.union.write(node, 0, b"x")
            assert stat.S_IMODE(u.stat("h").mode) == 0o6755
        u.union.write(node, 0, b"x", kill_priv=True)
        assert stat.S_IMODE(u.stat("h").mode) == 0o755
        u.union.forget(node)


def test_descriptors_see_what_others_write(make: MakeStack) -> None:
    stack = make("f=0123456789", caching=True)
    handle = stack.u.open("f")
    assert stack.u.pread(handle, 0, 3) == b"012"
    stack.u.write("f", 0, b"ab")
    assert stack.u.pread(handle, 0, 3) == b"ab2"
    stack.u.pwrite(handle, 5, b"Z")
    assert stack.u.read("f") == b"ab234Z6789"
    stack.u.truncate("f", 4)
    assert stack.u.pread(handle, 0, 99) == b"ab23"
    stack.u.close(handle)


def test_reading_changes_nothing(make: MakeStack) -> None:
    stack = make("f=1 d/l->x")
    stack.u.read("f")
    stack.union.read_fd(stack.u.node("f"))
    stack.u.forget_all()
    stack.close()
    assert stack.upper is not None
    assert list(stack.upper.iterdir()) == []


@pytest.mark.parametrize("durability", ["strict", "normal", "volatile"])
def test_fsync_and_syncfs(durability: str, tmp_path: Path) -> None:
    """Nothing to see from here but that each kind of node takes it, and that what was written is still there."""
    tree(tmp_path / "l", "f=1 d/ g=1")
    tree(tmp_path / "u", "h=1")
    (tmp_path / "w").mkdir()
    union = Union(
        Options(
            lowers=(str(tmp_path / "l"),), upper=str(tmp_path / "u"), work=str(tmp_path / "w"), durability=durability
        )
    )
    f, d, h = (union.lookup(ROOT, name).nodeid for name in (b"f", b"d", b"h"))
    union.write(f, 0, b"2")
    for node in (f, d, h, ROOT, union.lookup(ROOT, b"g").nodeid):
        union.fsync(node, False)
        union.fsync(node, True)
    union.syncfs()
    assert union.read(f, 0, 9) == b"2"
    union.close()
    assert (tmp_path / "u/f").read_bytes() == b"2"
    assert not (tmp_path / "u/g").exists()


def test_statfs_is_the_uppers(make: MakeStack) -> None:
    stack = make("a")
    assert stack.upper is not None
    want, got = os.statvfs(stack.upper), stack.union.statfs()
    assert (got.bsize, got.frsize, got.blocks, got.files) == (want.f_bsize, want.f_frsize, want.f_blocks, want.f_files)
    assert got.namemax == 255
    assert 0 < got.bavail <= got.bfree <= got.blocks


def test_data_verbs_on_what_has_no_data(make: MakeStack) -> None:
    stack = make("d/ l->x p<fifo>:0600", caching=True)
    for path, codes in (
        ("d", {errno.EISDIR}),
        ("l", {errno.EINVAL, errno.ELOOP}),
        ("p", {errno.EINVAL, errno.ESPIPE, errno.ENXIO, errno.EOPNOTSUPP}),
    ):
        node = stack.u.node(path)
        union = stack.union
        for verb, *args in (
            (union.read, 0, 1),
            (union.write, 0, b"x"),
            (union.read_fd,),
            (union.write_fd,),
            (union.setattr, AttrChange(size=0)),
        ):
            assert errno_of(functools.partial(verb, node, *args)) in codes, (path, verb)
    with pytest.raises(OSError) as caught:
        stack.union.readlink(stack.u.node("d"))
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("atime", [True, False])
def test_reading_moves_the_access_time_if_wanted(atime: bool, make: MakeStack) -> None:
    """Of upper files, as their own filesystem does it (mount(8), relatime); of lowers, which are never touched, not."""
    stack = make("low=1 up=2 other=3", upper="own=4")
    assert stack.upper is not None
    for path in (stack.lowers[0] / "low", stack.upper / "own"):
        os.utime(path, ns=(5, 1 << 62))  # older than its mtime: every reading would move it
    stack.watch()
    low_before = (stack.lowers[0] / "low").stat().st_atime_ns
    union = Union(stack.options._replace(atime=atime))
    moved = {}
    for name, expected in ((b"low", b"1"), (b"own", b"4"), (b"new", b""), (b"up", b"2")):
        nodeid = (
            union.mknod(ROOT, name, 0o600, 0, Caller(os.geteuid(), os.getegid())).nodeid
            if name == b"new"
            else union.lookup(ROOT, name).nodeid
        )
        if name in (b"new", b"up"):
            union.setattr(nodeid, AttrChange(atime_ns=5, mtime_ns=1 << 62))
        before = union.getattr(nodeid).atime_ns
        assert union.read(nodeid, 0, 10) == expected
        moved[name] = union.getattr(nodeid).atime_ns != before
        union.forget(nodeid)
    union.close()
    assert moved == {b"low": False, b"own": atime, b"new": atime, b"up": atime}
    assert (stack.lowers[0] / "low").stat().st_atime_ns == low_before
