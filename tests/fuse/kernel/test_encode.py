"""Values to reply bytes: golden bytes, and what comes back when they are read with the header's own layouts."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuse.kernel import wire
from unionfs.core.attrs import Attrs, Entry, FsStats
from unionfs.fuse.kernel import encode
from unionfs.syscalls.statx import ExtendedStat

ENCODER = encode.Encoder(1e9)
FILE = Attrs(
    ino=1 << 40, mode=0o100644, nlink=2, uid=1000, gid=1001, rdev=0, size=5, blocks=8, blksize=4096,
    atime_ns=1_000_000_002, mtime_ns=-1, ctime_ns=3_000_000_004,
)  # fmt: skip
U32 = st.integers(0, 2**32 - 1)
TIMES = st.integers(-(2**40), 2**40).map(lambda seconds: seconds * 1_000_000_000 + 123_456_789)


def test_short_replies() -> None:
    assert encode.error(9, 2) == bytes.fromhex("10000000 feffffff 0900000000000000")
    assert encode.empty(9) == bytes.fromhex("10000000 00000000 0900000000000000")
    assert encode.data(9, b"abc") == bytes.fromhex("13000000 00000000 0900000000000000 616263")
    assert encode.written(9, 5) == bytes.fromhex("18000000 00000000 0900000000000000 05000000 00000000")
    assert encode.copied_64(9, 1 << 33) == bytes.fromhex("18000000 00000000 0900000000000000 0000000002000000")
    assert encode.xattr_size(9, 7) == bytes.fromhex("18000000 00000000 0900000000000000 07000000 00000000")
    assert encode.sought(9, 7) == bytes.fromhex("18000000 00000000 0900000000000000 0700000000000000")


def test_entry_golden() -> None:
    assert ENCODER.entry(0x1122334455667788, Entry(42, FILE)) == bytes.fromhex(
        "90000000 00000000 8877665544332211"  # len error unique
        "2a00000000000000 0000000000000000"  # nodeid generation
        "00ca9a3b00000000 00ca9a3b00000000 00000000 00000000"  # valid: 1e9 s
        "0000000000010000 0500000000000000 0800000000000000"  # ino size blocks
        "0100000000000000 ffffffffffffffff 0300000000000000"  # atime mtime ctime
        "02000000 ffc99a3b 04000000"  # their nanoseconds
        "a4810000 02000000 e8030000 e9030000 00000000 00100000 00000000"  # mode nlink uid gid rdev blksize flags
    )


@given(st.builds(
    Attrs, st.integers(0, 2**64 - 1), st.integers(0, 0o177777), U32, U32, U32, U32, st.integers(0, 2**63 - 1),
    st.integers(0, 2**55), U32, TIMES, TIMES, TIMES,
))  # fmt: skip
def test_attributes_come_back(attrs: Attrs) -> None:
    told = wire.attr_out(wire.reply(ENCODER.attrs(3, 42, attrs)).body)
    entry = wire.entry_out(wire.reply(ENCODER.entry(3, Entry(42, attrs))).body)
    assert entry.nodeid == 42
    assert entry.attr == told
    assert (told.ino, told.mode, told.nlink, told.uid, told.gid, told.rdev) == attrs[:6]
    assert (told.size, told.blocks, told.blksize) == attrs[6:9]
    assert told.atime * 10**9 + told.atimensec == attrs.atime_ns
    assert told.mtime * 10**9 + told.mtimensec == attrs.mtime_ns
    assert told.ctime * 10**9 + told.ctimensec == attrs.ctime_ns
    assert 0 <= told.mtimensec < 10**9


def test_statx_equals_stat() -> None:
    device = FILE._replace(mode=0o60600, rdev=0x812345)
    body = wire.reply(ENCODER.statx(3, 2, device, ExtendedStat((5, 6), 0x10, 0x70))).body
    assert len(body) == 288
    valid, _, flags, mask, blksize, _, nlink, uid, gid, mode = struct.unpack_from("=QII16xIIQIIIH", body)
    assert (valid, flags, mask, blksize, nlink, uid, gid, mode) == (10**9, 0, 0xFFF, 4096, 2, 1000, 1001, 0o60600)
    ino, size, blocks, _attributes = struct.unpack_from("=QQQQ", body, 32 + 32)
    assert (ino, size, blocks) == (1 << 40, 5, 8)
    atime, btime, ctime, mtime = struct.iter_unpack("=qIi", body[96 : 96 + 64])
    assert (atime, btime, ctime, mtime) == ((1, 2, 0), (5, 6, 0), (3, 4, 0), (-1, 999_999_999, 0))
    assert struct.unpack_from("=IIII", body, 160) == (0x123, 0x845, 0, 0)


def test_a_birth_time_may_not_be_known() -> None:
    body = wire.reply(ENCODER.statx(3, 2, FILE, ExtendedStat(None, 0, 0))).body
    assert struct.unpack_from("=I", body, 32) == (0x7FF,)
    assert body[112:128] == bytes(16)


def test_missing_may_be_remembered() -> None:
    body = wire.reply(ENCODER.missing(3)).body
    assert struct.unpack_from("=QQQ", body) == (0, 0, 10**9)
    assert not any(body[24:])


def test_timeouts() -> None:
    body = wire.reply(encode.Encoder(1.25).entry(3, Entry(42, FILE))).body
    assert struct.unpack_from("=QQII", body, 16) == (1, 1, 250_000_000, 250_000_000)


def test_statfs() -> None:
    """Names of up to 255 bytes work, whatever the branch's own filesystem says."""
    body = wire.reply(encode.statfs(3, FsStats(4096, 512, 10, 9, 8, 7, 6, 1023))).body
    assert struct.unpack("=QQQQQIIII24x", body) == (10, 9, 8, 7, 6, 4096, 255, 512, 0)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 254, 255])
def test_lines_of_listings(length: int) -> None:
    name = b"n" * length
    plain = encode.dirent(name, 77, 5, 0o040000) + encode.dirent(b"x", 78, 6, 0o120000)
    assert list(wire.dirents(plain, plus=False)) == [
        wire.Dirent(name, 77, 5, 4, None),
        wire.Dirent(b"x", 78, 6, 10, None),
    ]
    body = ENCODER.direntplus(Entry(42, FILE), name, 77) + encode.bare_direntplus(b".", 1, 6, 0o040000)
    first, second = wire.dirents(body, plus=True)
    assert (first.name, first.off, first.ino, first.kind) == (name, 77, FILE.ino, 8)
    assert first.entry == wire.entry_out(wire.reply(ENCODER.entry(3, Entry(42, FILE))).body)
    assert (second.name, second.off, second.ino, second.kind) == (b".", 1, 6, 4)
    assert second.entry is not None
    assert second.entry.nodeid == 0


def test_notifications() -> None:
    """A message without a unique whose error field is the notification's code."""
    for data, code, body in [
        (encode.notify_inval_inode(42, -1, 0), 2, struct.pack("=Qqq", 42, -1, 0)),
        (encode.notify_inval_entry(1, b"name"), 3, struct.pack("=QII", 1, 4, 0) + b"name\0"),
        (encode.notify_delete(1, 42, b"name"), 6, struct.pack("=QQII", 1, 42, 4, 0) + b"name\0"),
        (encode.notify_resend(), 7, b""),
    ]:
        assert struct.unpack_from("=IiQ", data) == (len(data), code, 0)
        assert data[16:] == body


def test_set_id_files_are_noted() -> None:
    encoder = encode.Encoder(1)
    encoder.entry(3, Entry(42, FILE._replace(mode=0o104755)))
    encoder.entry(3, Entry(43, FILE._replace(mode=0o042755)))
    encoder.attrs(3, 44, FILE._replace(mode=0o102755))
    encoder.direntplus(Entry(45, FILE._replace(mode=0o106755)), b"n", 3)
    assert encoder.set_id == {42, 44, 45}
