"""Requests as the kernel sends them, to a real union, without a device: every opcode, every way to get one wrong."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.fuse.kernel import wire
from tests.fuse.kernel.dispatched_union import BIG, Served, done
from tests.fuse.kernel.wire import ROOT
from unionfs.fuse.kernel.abi import Op
from unionfs.fuse.kernel.dispatch import TABLE, CopyUpJob

ExpectLog = Callable[[str], AbstractContextManager[list[str]]]


def test_the_table_has_every_opcode() -> None:
    """Served, or answered on purpose with a reason."""
    assert set(TABLE) == set(Op)
    for op, row in TABLE.items():
        assert row.serve is not None or row.why, op
        assert row.error in (errno.ENOSYS, errno.ENOTTY)


@pytest.mark.parametrize("opcode", [op for op, row in TABLE.items() if row.serve is None and op < 64])
def test_answered_on_purpose(served: Served, opcode: int) -> None:
    """Whatever is in the request: it is not even looked at."""
    assert served.ask(wire.request(opcode, ROOT, bytes(64))).error == TABLE[opcode].error
    assert served.ask(wire.request(opcode, ROOT)).error == TABLE[opcode].error


@pytest.mark.parametrize("opcode", [54, 63, 64, 1000, 4096, 2**32 - 1])
def test_opcodes_of_the_future(served: Served, opcode: int) -> None:
    assert served.ask(wire.request(opcode, ROOT, bytes(64))).error == errno.ENOSYS


def test_lookup(served: Served) -> None:
    found = served.ask(wire.request(wire.LOOKUP, ROOT, b"f\0", unique=1 << 63 | 5))
    assert found.unique == 1 << 63 | 5
    entry = wire.entry_out(found.body)
    st = (served.lower / "f").stat()
    assert (entry.attr.size, entry.attr.mode, entry.attr.nlink) == (5, st.st_mode, 1)
    assert entry.attr.mtime * 10**9 + entry.attr.mtimensec == st.st_mtime_ns
    assert (entry.entry_valid, entry.attr_valid) == (10**9, 10**9)


def test_lookup_of_a_missing_name(served: Served) -> None:
    """Not ENOENT: an entry that the kernel may remember as missing."""
    missing = served.ask(wire.request(wire.LOOKUP, ROOT, b"nothing\0"))
    assert missing.error == 0
    assert wire.entry_out(missing.body).nodeid == 0


def test_names_too_long(served: Served) -> None:
    assert served.ask(wire.request(wire.LOOKUP, ROOT, b"n" * 256 + b"\0")).error == errno.ENAMETOOLONG
    assert served.ask(wire.request(wire.LOOKUP, ROOT, b"n" * 255 + b"\0")).error == 0


def test_forget(served: Served) -> None:
    before = served.union.node_count
    node = served.node(b"f")
    assert served.union.node_count == before + 1
    assert served.raw(wire.request(wire.FORGET, node, struct.pack("=Q", 1))) is None
    assert served.union.node_count == before
    nodes = [served.node(b"f"), served.node(b"l"), served.node(b"f")]
    assert served.union.node_count == before + 2
    body = struct.pack("=II", 2, 0) + struct.pack("=QQQQ", nodes[0], 2, nodes[1], 1)
    assert served.raw(wire.request(wire.BATCH_FORGET, 0, body)) is None
    assert served.union.node_count == before


def test_reading(served: Served) -> None:
    node = served.node(b"f")
    assert served.content(node) == b"hello"
    assert served.ask(wire.read(node, 3, 4096)).body == b"lo"
    assert served.ask(wire.read(node, 1, 2)).body == b"el"
    assert served.ask(wire.read(node, 5, 4096)).body == b""
    assert served.ask(wire.read(node, 1 << 40, 4096)).body == b""
    assert served.ask(wire.request(wire.READLINK, served.node(b"l"))).body == b"target"


@pytest.mark.parametrize("offset", [0, 4096, 5000, BIG - 4096, BIG - 1])
@pytest.mark.parametrize("size", [1, 4096, 131072, 1 << 20, 1 << 31])
def test_reading_much(served: Served, offset: int, size: int) -> None:
    """As much as asked, up to the largest reply that was negotiated."""
    assert served.ask(wire.read(served.node(b"big"), offset, size)).body == b"B" * min(size, 1 << 20, BIG - offset)


def test_reading_data_outside_the_page_cache(served: Served) -> None:
    """Left to a thread, with the same outcome."""
    node = served.node(b"big")
    fd = os.open(served.lower / "big", os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    assert served.raw(wire.read(node, 1 << 20, 8192)) is None
    (work,) = served.dispatcher.slow
    served.dispatcher.slow.clear()
    assert wire.reply(done(served.dispatcher, work)).body == b"B" * 8192


def test_writing(served: Served) -> None:
    node = served.node(b"f")
    assert struct.unpack("=II", served.ask(wire.write(node, 4, b"O WORLD")).body) == (7, 0)
    assert served.content(node) == b"hellO WORLD"
    assert (served.lower / "f").read_bytes() == b"hello"
    assert served.ask(wire.request(wire.FSYNC, node, struct.pack("=QII", 0, 1, 0))).error == 0
    attr = wire.attr_out(served.ask(wire.request(wire.GETATTR, node, bytes(16))).body)
    assert attr.size == 11


def test_setting_attributes(served: Served) -> None:
    node = served.node(b"f")
    mode, size, mtime = 1 << 0, 1 << 3, 1 << 5
    change = wire.setattr_(node, mode | size | mtime, mode=0o600, size=2, mtime=(5, 6))
    attr = wire.attr_out(served.ask(change).body)
    assert (stat.S_IMODE(attr.mode), attr.size, attr.mtime, attr.mtimensec) == (0o600, 2, 5, 6)
    assert served.content(node) == b"he"


def test_making_and_removing(served: Served) -> None:
    made = wire.entry_out(
        served.ask(wire.request(wire.MKNOD, ROOT, struct.pack("=IIII", 0o100666, 0, 0o22, 0) + b"new\0")).body
    )
    assert made.attr.mode == 0o100644
    directory = wire.entry_out(served.ask(wire.request(wire.MKDIR, ROOT, struct.pack("=II", 0o777, 0) + b"dir\0")).body)
    assert directory.attr.mode == 0o40777
    link = wire.entry_out(served.ask(wire.request(wire.SYMLINK, ROOT, b"sym\0to\0")).body)
    assert stat.S_ISLNK(link.attr.mode)
    two = wire.entry_out(
        served.ask(wire.request(wire.LINK, directory.nodeid, struct.pack("=Q", made.nodeid) + b"two\0")).body
    )
    assert (two.nodeid, two.attr.nlink) == (made.nodeid, 2)
    assert served.ask(wire.request(wire.RMDIR, ROOT, b"dir\0")).error == errno.ENOTEMPTY
    for opcode, parent, name in [
        (wire.UNLINK, directory.nodeid, b"two\0"),
        (wire.RMDIR, ROOT, b"dir\0"),
        (wire.UNLINK, ROOT, b"new\0"),
        (wire.UNLINK, ROOT, b"sym\0"),
        (wire.UNLINK, ROOT, b"f\0"),
    ]:
        assert served.ask(wire.request(opcode, parent, name)).error == 0
    assert sorted(os.listdir(served.upper)) == [".wh.f", "up"]
    served.ask(wire.request(wire.SYMLINK, ROOT, b"f\0to\0"))


def test_renaming(served: Served) -> None:
    d = served.node(b"d")
    assert served.ask(wire.request(wire.RENAME, ROOT, struct.pack("=Q", d) + b"up\0up2\0")).error == 0
    assert (served.upper / "d" / "up2").read_bytes() == b"here"
    exchange = struct.pack("=QII", d, 2, 0) + b"f\0a\0"
    assert served.ask(wire.request(wire.RENAME2, ROOT, exchange)).error == 0
    assert (served.content(served.node(b"f")), served.content(served.node(b"a", d))) == (b"1", b"hello")
    noreplace = struct.pack("=QII", d, 1, 0) + b"f\0b\0"
    assert served.ask(wire.request(wire.RENAME2, ROOT, noreplace)).error == errno.EEXIST
    assert served.ask(wire.request(wire.RENAME, ROOT, struct.pack("=Q", d) + b"none\0x\0")).error == errno.ENOENT


def test_unnamed_files(served: Served) -> None:
    body = struct.pack("=IIII", os.O_RDWR, 0o100600, 0, 0) + b"#1\0"
    answer = served.ask(wire.request(wire.TMPFILE, ROOT, body))
    assert len(answer.body) == 128 + 16
    node = wire.entry_out(answer.body).nodeid
    assert served.ask(wire.write(node, 0, b"data")).error == 0
    assert served.content(node) == b"data"
    assert served.ask(wire.request(wire.RELEASE, node, bytes(24))).error == 0
    served.raw(wire.request(wire.FORGET, node, struct.pack("=Q", 1)))
    assert done(served.dispatcher, served.dispatcher.slow.pop()) is None  # its space is given back


def test_space(served: Served) -> None:
    node = served.node(b"f")
    assert served.ask(wire.request(wire.FALLOCATE, node, struct.pack("=QQQII", 0, 0, 8192, 0, 0))).error == 0
    assert wire.attr_out(served.ask(wire.request(wire.GETATTR, node, bytes(16))).body).size == 8192
    seek = served.ask(wire.request(wire.LSEEK, node, struct.pack("=QQII", 0, 0, os.SEEK_HOLE, 0)))
    assert struct.unpack("=Q", seek.body)[0] <= 8192
    past = served.ask(wire.request(wire.LSEEK, node, struct.pack("=QQII", 0, 9000, os.SEEK_DATA, 0)))
    assert past.error == errno.ENXIO
    stats = struct.unpack("=QQQQQIIII24x", served.ask(wire.request(wire.STATFS)).body)
    assert stats[0] > 0
    assert stats[6] == 255
    assert served.ask(wire.request(wire.SYNCFS, ROOT, bytes(8))).error == 0
    assert served.ask(wire.request(wire.FSYNCDIR, ROOT, bytes(16))).error == 0


@pytest.mark.parametrize(("opcode", "layout"), [(wire.COPY_FILE_RANGE, "=II"), (wire.COPY_FILE_RANGE_64, "=Q")])
def test_copying_within(served: Served, opcode: int, layout: str) -> None:
    source, target = served.node(b"f"), served.node(b"up")
    body = struct.pack("=QQQQQQQ", 0, 1, target, 0, 2, 3, 0)
    assert struct.unpack(layout, served.ask(wire.request(opcode, source, body)).body)[0] == 3
    assert served.content(target) == b"heell"


def test_extended_attributes(served: Served) -> None:
    node = served.node(b"f")

    def get(name: bytes, room: int) -> wire.Reply:
        return served.ask(wire.request(wire.GETXATTR, node, struct.pack("=II", room, 0) + name + b"\0"))

    assert get(b"user.k", 10).error == errno.ENODATA
    put = struct.pack("=IIII", 5, 0, 0, 0) + b"user.k\0value"
    assert served.ask(wire.request(wire.SETXATTR, node, put)).error == 0
    assert get(b"user.k", 10).body == b"value"
    assert get(b"user.k", 4).error == errno.ERANGE
    assert struct.unpack("=II", get(b"user.k", 0).body) == (5, 0)
    listed = served.ask(wire.request(wire.LISTXATTR, node, struct.pack("=II", 100, 0)))
    assert b"user.k\0" in listed.body
    assert served.ask(wire.request(wire.LISTXATTR, node, struct.pack("=II", 1, 0))).error == errno.ERANGE
    assert served.ask(wire.request(wire.REMOVEXATTR, node, b"user.k\0")).error == 0
    assert get(b"user.k", 10).error == errno.ENODATA


def test_missing_labels_are_answered_once_for_ls(served: Served) -> None:
    """ls(1) asks at every file, until it hears that the filesystem has none."""
    if "security.selinux" in os.listxattr(served.lower / "f"):
        pytest.skip("this machine labels its files")
    body = struct.pack("=II", 255, 0) + b"security.selinux\0"
    assert served.ask(wire.request(wire.GETXATTR, served.node(b"f"), body)).error == errno.EOPNOTSUPP


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("size", [512, 4096])
def test_listing(served: Served, size: int, *, plus: bool) -> None:
    """Resumed at the last cookie, every name comes once, in whatever portions."""
    node = served.node(b"d")
    before = served.union.node_count
    cookie, seen = 0, []
    while True:
        opcode = wire.READDIRPLUS if plus else wire.READDIR
        lines = list(wire.dirents(served.ask(wire.read(node, cookie, size, opcode)).body, plus=plus))
        if not lines:
            break
        seen += lines
        cookie = lines[-1].off
    assert sorted(line.name for line in seen) == [b".", b"..", b"a", b"b", b"c"]
    for line in seen:
        if plus and line.name not in (b".", b".."):
            assert line.entry is not None
            assert line.entry.attr.ino == line.ino
            assert line.entry.attr.size == {b"a": 1, b"b": 2, b"c": 3}[line.name]
            served.raw(wire.request(wire.FORGET, line.entry.nodeid, struct.pack("=Q", 1)))
        else:
            assert line.entry is None or line.entry.nodeid == 0
    assert served.union.node_count == before


def test_listing_without_room(served: Served) -> None:
    """Not an empty answer, which would be the end of the directory."""
    for opcode in (wire.READDIR, wire.READDIRPLUS):
        assert served.ask(wire.read(ROOT, 0, 16, opcode)).error == errno.EINVAL


def test_listing_a_file(served: Served) -> None:
    assert served.ask(wire.read(served.node(b"f"), 0, 4096, wire.READDIRPLUS)).error == errno.ENOTDIR


def test_unknown_nodes(served: Served) -> None:
    for request in (
        wire.request(wire.GETATTR, 9999, bytes(16)),
        wire.request(wire.LOOKUP, 9999, b"f\0"),
        wire.read(9999, 0, 4096),
        wire.write(9999, 0, b"x"),
        wire.request(wire.LINK, ROOT, struct.pack("=Q", 9999) + b"new\0"),
    ):
        assert served.ask(request).error == errno.ESTALE
    assert served.raw(wire.request(wire.FORGET, 9999, struct.pack("=Q", 5))) is None


# -- copy-up ---------------------------------------------------------------------------------------------------------


def begin(served: Served, node: int, **named: int) -> CopyUpJob:
    """A write to the big file, which now waits."""
    assert served.raw(wire.write(node, 0, b"written", **named)) is None
    (job,) = served.dispatcher.slow
    served.dispatcher.slow.clear()
    assert isinstance(job, CopyUpJob)
    return job


def test_only_changes_of_the_very_file_wait_for_its_copy_up(served: Served) -> None:
    node = served.node(b"big")
    job = begin(served, node, unique=10)
    assert served.content(node)[:7] == b"BBBBBBB"
    assert served.ask(wire.request(wire.GETATTR, node, bytes(16))).error == 0
    assert served.ask(wire.write(served.node(b"f"), 0, b"x")).error == 0
    assert served.raw(wire.write(node, 7, b" twice", unique=12)) is None
    rename = struct.pack("=Q", ROOT) + b"big\0moved\0"
    assert served.raw(wire.request(wire.RENAME, ROOT, rename, unique=14)) is None
    assert served.dispatcher.slow == []
    job.copy()
    replies = [wire.reply(reply) for reply in served.dispatcher.finish(job, None)]
    assert [(reply.unique, reply.error) for reply in replies] == [(10, 0), (12, 0), (14, 0)]
    assert (served.upper / "moved").read_bytes() == b"written twice" + b"B" * (BIG - 13)
    assert (served.lower / "big").stat().st_size == BIG
    assert served.session.counts[wire.WRITE] == 3


def test_both_sides_of_an_exchange_are_copied_up(served: Served) -> None:
    (served.lower / "d" / "big2").write_bytes(b"2" * BIG)
    d = served.node(b"d")
    swap = struct.pack("=QII", d, 2, 0) + b"big\0big2\0"
    assert served.raw(wire.request(wire.RENAME2, ROOT, swap, unique=10)) is None
    replies: list[bytes] = []
    for _ in range(2):
        assert replies == []
        (job,) = served.dispatcher.slow
        served.dispatcher.slow.clear()
        assert isinstance(job, CopyUpJob)
        job.copy()
        replies = served.dispatcher.finish(job, None)
    assert [wire.reply(reply)[:2] for reply in replies] == [(0, 10)]
    assert (served.upper / "big").read_bytes() == b"2" * BIG
    assert (served.upper / "d" / "big2").read_bytes() == b"B" * BIG


def test_truncation_copies_the_remaining_data(served: Served) -> None:
    node = served.node(b"big")
    attr = wire.attr_out(served.ask(wire.setattr_(node, 1 << 3, size=2 << 20)).body)
    assert attr.size == 2 << 20
    assert (served.upper / "big").read_bytes() == b"B" * (2 << 20)


def test_an_interrupted_copy_up_leaves_nothing(served: Served) -> None:
    node = served.node(b"big")
    job = begin(served, node, unique=10)
    staged = sum(len(files) for _, _, files in os.walk(served.work))
    assert served.raw(wire.request(wire.INTERRUPT, 0, struct.pack("=Q", 10), unique=11)) is None
    with pytest.raises(OSError) as caught:
        job.copy()
    assert caught.value.errno == errno.EINTR
    (reply,) = served.dispatcher.finish(job, caught.value)
    assert wire.reply(reply)[:2] == (errno.EINTR, 10)
    assert sum(len(files) for _, _, files in os.walk(served.work)) < staged
    assert not (served.upper / "big").exists()
    assert served.ask(wire.write(node, 0, b"again")).error == 0


def test_one_of_two_gives_up(served: Served) -> None:
    node = served.node(b"big")
    job = begin(served, node, unique=10)
    assert served.raw(wire.write(node, 0, b"second!", unique=12)) is None
    answer = served.raw(wire.request(wire.INTERRUPT, 0, struct.pack("=Q", 10), unique=13))
    assert wire.reply(answer)[:2] == (errno.EINTR, 10)
    job.copy()
    (reply,) = served.dispatcher.finish(job, None)
    assert wire.reply(reply)[:2] == (0, 12)
    assert served.content(node)[:7] == b"second!"


def test_a_request_after_the_interrupt_is_served(served: Served) -> None:
    node = served.node(b"big")
    job = begin(served, node, unique=10)
    served.raw(wire.request(wire.INTERRUPT, 0, struct.pack("=Q", 10), unique=11))
    assert served.raw(wire.write(node, 0, b"later", unique=12)) is None
    (reply,) = served.dispatcher.finish(job, OSError(errno.EINTR, "interrupted"))
    assert wire.reply(reply)[:2] == (errno.EINTR, 10)
    (again,) = served.dispatcher.slow
    served.dispatcher.slow.clear()
    assert isinstance(again, CopyUpJob)
    again.copy()
    (reply,) = served.dispatcher.finish(again, None)
    assert wire.reply(reply)[:2] == (0, 12)


def test_a_copy_up_that_fails_is_everybodys_error(served: Served) -> None:
    node = served.node(b"big")
    job = begin(served, node, unique=10)
    served.raw(wire.write(node, 0, b"x", unique=12))
    replies = served.dispatcher.finish(job, OSError(errno.ENOSPC, "full"))
    assert [wire.reply(reply)[:2] for reply in replies] == [(errno.ENOSPC, 10), (errno.ENOSPC, 12)]
    assert served.content(node)[:3] == b"BBB"


# -- set-id bits -----------------------------------------------------------------------------------------------------

KILL = 1 << 2  # FUSE_WRITE_KILL_SUIDGID


def test_a_write_clears_set_id_bits_and_notifies_the_kernel_before_its_answer(served: Served) -> None:
    node = served.node(b"suid")
    assert served.raw(wire.write(node, 0, b"y", KILL, unique=10, uid=5)) is None
    notice, reply = served.dispatcher.slow
    served.dispatcher.slow.clear()
    assert isinstance(notice, bytes)
    assert struct.unpack("=IiQQqq", notice) == (40, 2, 0, node, -1, 0)
    assert isinstance(reply, bytes)
    assert wire.reply(reply)[:2] == (0, 10)
    assert stat.S_IMODE((served.upper / "suid").stat().st_mode) == 0o755
    assert served.ask(wire.write(node, 0, b"z", KILL)).error == 0


def test_set_again_they_are_cleared_again(served: Served) -> None:
    node = served.node(b"f")
    assert served.ask(wire.write(node, 0, b"y", KILL)).error == 0
    assert stat.S_IMODE(wire.attr_out(served.ask(wire.setattr_(node, 1, mode=0o4755)).body).mode) == 0o4755
    assert served.ask(wire.write(node, 0, b"z", KILL)).error == 0
    assert stat.S_IMODE((served.upper / "f").stat().st_mode) == 0o755


def test_a_new_file_has_no_capabilities_until_it_gets_some(served: Served) -> None:
    """The kernel asks before the first write to any file; of a new one the answer is known."""
    made = served.ask(wire.request(wire.MKNOD, ROOT, struct.pack("=IIII", 0o100666, 0, 0, 0) + b"new\0"))
    node = wire.entry_out(made.body).nodeid
    question = wire.request(wire.GETXATTR, node, struct.pack("=II", 100, 0) + b"security.capability\0")
    assert served.ask(question).error == errno.ENODATA
    if os.geteuid() == 0:
        value = struct.pack("<IIIII", 0x2000000, 1 << 13, 0, 0, 0)  # cap_net_raw, struct vfs_cap_data
        put = struct.pack("=IIII", len(value), 0, 0, 0) + b"security.capability\0" + value
        assert served.ask(wire.request(wire.SETXATTR, node, put)).error == 0
        assert served.ask(question).body == value
        assert served.ask(wire.write(node, 0, b"x", KILL)).error == 0
        assert served.ask(question).error == errno.ENODATA


def test_a_new_file_with_set_id_bits_loses_them(served: Served) -> None:
    made = served.ask(wire.request(wire.MKNOD, ROOT, struct.pack("=IIII", 0o104755, 0, 0, 0) + b"new\0"))
    served.raw(wire.write(wire.entry_out(made.body).nodeid, 0, b"x", KILL))
    served.dispatcher.slow.clear()
    assert stat.S_IMODE((served.upper / "new").stat().st_mode) == 0o755


def test_who_may_keeps_them(served: Served) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: the daemon's own write clears them")
    node = served.node(b"suid")
    assert served.ask(wire.write(node, 0, b"y")).error == 0
    assert stat.S_IMODE((served.upper / "suid").stat().st_mode) == 0o4755
