"""The kernel's side of the protocol: requests to bytes, replies from bytes.

Written from <linux/fuse.h> once more, so that a mistake in the engine's layouts cannot hide behind the same one here.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

ROOT = 1

ME = {"uid": os.geteuid(), "gid": os.getegid()}
"""Who asks unless a test says otherwise: a daemon without privileges can make things for nobody else."""

LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR = 1, 2, 3, 4, 5, 6, 8, 9, 10, 11
RENAME, LINK, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC = 12, 13, 14, 15, 16, 17, 18, 20
SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH, INIT, OPENDIR, READDIR = 21, 22, 23, 24, 25, 26, 27, 28
RELEASEDIR, FSYNCDIR, GETLK, SETLK, SETLKW, ACCESS, CREATE, INTERRUPT = 29, 30, 31, 32, 33, 34, 35, 36
BMAP, DESTROY, IOCTL, POLL, NOTIFY_REPLY, BATCH_FORGET, FALLOCATE, READDIRPLUS = 37, 38, 39, 40, 41, 42, 43, 44
RENAME2, LSEEK, COPY_FILE_RANGE, SETUPMAPPING, REMOVEMAPPING, SYNCFS, TMPFILE = 45, 46, 47, 48, 49, 50, 51
STATX, COPY_FILE_RANGE_64 = 52, 53


def request(
    opcode: int,
    nodeid: int = ROOT,
    body: bytes = b"",
    *,
    unique: int = 2,
    uid: int = ME["uid"],
    gid: int = ME["gid"],
    pid: int = 1,
) -> bytes:
    """struct fuse_in_header and what follows it."""
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, unique, nodeid, uid, gid, pid, 0, 0) + body


def init(minor: int = 45, flags: int = 0xFFFFFFFF, flags2: int = 0xFFFFFFFF, *, major: int = 7) -> bytes:
    """INIT as a kernel of protocol `major`.`minor` sends it."""
    if minor < 36:
        return request(INIT, 0, struct.pack("=IIII", major, minor, 131072, flags & ~(1 << 30)))
    return request(INIT, 0, struct.pack("=IIIII44x", major, minor, 131072, flags, flags2))


def read(nodeid: int, offset: int, size: int, opcode: int = READ) -> bytes:
    """READ, or READDIR and READDIRPLUS, whose request is the same."""
    return request(opcode, nodeid, struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0))


def write(nodeid: int, offset: int, data: bytes, flags: int = 0, *, unique: int = 2, uid: int = ME["uid"]) -> bytes:
    """WRITE."""
    body = struct.pack("=QQIIQII", 0, offset, len(data), flags, 0, 0, 0) + data
    return request(WRITE, nodeid, body, unique=unique, uid=uid)


def setattr_(nodeid: int, valid: int, *, mode: int = 0, size: int = 0, mtime: tuple[int, int] = (0, 0)) -> bytes:
    """SETATTR of the fields that the tests change."""
    body = struct.pack("=IIQQQqqqIIIIIIII", valid, 0, 0, size, 0, 0, mtime[0], 0, 0, mtime[1], 0, mode, 0, 0, 0, 0)
    return request(SETATTR, nodeid, body)


class Reply(NamedTuple):
    """struct fuse_out_header and what follows it. `error` is an errno, positive."""

    error: int
    unique: int
    body: bytes


def reply(data: bytes | memoryview | None) -> Reply:
    """One whole reply; what its header says of its length must be so."""
    assert data is not None
    length, error, unique = struct.unpack_from("=IiQ", data)
    assert length == len(data)
    assert error <= 0
    return Reply(-error, unique, bytes(data[16:]))


class Attr(NamedTuple):
    """struct fuse_attr."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


ATTR = "QQQqqqIIIIIIIIII"


class EntryOut(NamedTuple):
    """struct fuse_entry_out."""

    nodeid: int
    generation: int
    entry_valid: int
    attr_valid: int
    attr: Attr


def entry_out(body: bytes, at: int = 0) -> EntryOut:
    """LOOKUP and its like."""
    nodeid, generation, entry_valid, attr_valid, _, _, *attr = struct.unpack_from("=QQQQII" + ATTR, body, at)
    return EntryOut(nodeid, generation, entry_valid, attr_valid, Attr(*attr))


def attr_out(body: bytes) -> Attr:
    """GETATTR, SETATTR."""
    assert len(body) == 104
    return Attr(*struct.unpack_from("=" + ATTR, body, 16))


class Dirent(NamedTuple):
    """struct fuse_dirent, and its entry in READDIRPLUS."""

    name: bytes
    off: int
    ino: int
    kind: int
    entry: EntryOut | None


def dirents(body: bytes, *, plus: bool) -> Iterator[Dirent]:
    """READDIR or READDIRPLUS; every line begins at a multiple of eight and the last one is complete."""
    at = 0
    while at < len(body):
        assert at % 8 == 0
        entry = entry_out(body, at) if plus else None
        fixed = at + (128 if plus else 0)
        ino, off, namelen, kind = struct.unpack_from("=QQII", body, fixed)
        name = body[fixed + 24 : fixed + 24 + namelen]
        assert len(name) == namelen
        end = (fixed + 24 + namelen + 7) & ~7
        assert body[fixed + 24 + namelen : end] == bytes(end - fixed - 24 - namelen)
        at = end
        yield Dirent(name, off, ino, kind, entry)
    assert at == len(body)
