"""Encode the results of Union verbs as the bytes of replies; pure.

Every function returns one whole message, out header included, so that an answer is one write(2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final

from unionfs.core.attrs import ANY_NAME, IFMT, IFREG, Attrs, Entry, FsStats, Invalidation
from unionfs.fuse.kernel import abi
from unionfs.syscalls.statx import ExtendedStat

_BILLION: Final = 1_000_000_000
_HEADER: Final = abi.OUT_HEADER.size

_out_header: Final = abi.OUT_HEADER.pack
_entry_reply: Final = abi.ENTRY_REPLY.pack
_attr_reply: Final = abi.ATTR_REPLY.pack
_write_reply: Final = abi.WRITE_REPLY.pack

_ENTRY_HEAD: Final = struct.pack("=Ii", abi.ENTRY_REPLY.size, 0)
_ATTR_HEAD: Final = struct.pack("=Ii", abi.ATTR_REPLY.size, 0)
_DIRENTPLUS: Final = [layout.pack for layout in abi.DIRENTPLUS_NAMED]
_DIRENT: Final = [layout.pack for layout in abi.DIRENT_NAMED]
_NO_ENTRY: Final = bytes(32)
_NOT_VALID: Final = bytes(16)
"""In place of Encoder._attr_valid: the kernel asks again each time."""


def error(unique: int, code: int) -> bytes:
    """Encode a failure with errno `code`."""
    return _out_header(_HEADER, -code, unique)


def empty(unique: int, _result: object = None) -> bytes:
    """Encode a success without data."""
    return _out_header(_HEADER, 0, unique)


def data(unique: int, payload: bytes) -> bytes:
    """Encode READLINK, GETXATTR: the bytes themselves."""
    return _out_header(_HEADER + len(payload), 0, unique) + payload


def payload(unique: int, parts: list[bytes]) -> bytes:
    """Encode READDIR, READDIRPLUS: the entries of a listing."""
    whole = b"".join(parts)
    return _out_header(_HEADER + len(whole), 0, unique) + whole


def data_header(unique: int, length: int) -> bytes:
    """Encode the header for `length` bytes that the caller sends with it (writev(2))."""
    return _out_header(_HEADER + length, 0, unique)


def written(unique: int, count: int) -> bytes:
    """Encode WRITE, COPY_FILE_RANGE: the number of bytes written."""
    return _write_reply(24, 0, unique, count, 0)


def copied_64(unique: int, count: int) -> bytes:
    """COPY_FILE_RANGE_64."""
    return _out_header(_HEADER + abi.COPY_FILE_RANGE_OUT.size, 0, unique) + abi.COPY_FILE_RANGE_OUT.pack(count)


def xattr_size(unique: int, size: int) -> bytes:
    """Encode GETXATTR, LISTXATTR that requested the size only."""
    return _out_header(_HEADER + abi.GETXATTR_OUT.size, 0, unique) + abi.GETXATTR_OUT.pack(size, 0)


def sought(unique: int, offset: int) -> bytes:
    """LSEEK."""
    return _out_header(_HEADER + abi.LSEEK_OUT.size, 0, unique) + abi.LSEEK_OUT.pack(offset)


def ioctl(unique: int, payload: bytes) -> bytes:
    """Encode a successful IOCTL and its data."""
    length = _HEADER + abi.IOCTL_OUT.size + len(payload)
    return _out_header(length, 0, unique) + abi.IOCTL_OUT.pack(0, 0, 0, 0) + payload


def statfs(unique: int, stats: FsStats) -> bytes:
    """STATFS. The name length is at most this engine's limit."""
    return _out_header(_HEADER + abi.STATFS_OUT.size, 0, unique) + abi.STATFS_OUT.pack(
        stats.blocks, stats.bfree, stats.bavail, stats.files, stats.ffree,
        stats.bsize, min(stats.namemax, abi.NAME_MAX), stats.frsize, 0,
    )  # fmt: skip


def opened(unique: int, backing_id: int, *, keeps_cache: bool = False) -> bytes:
    """Encode OPEN: with a backing file, or if `backing_id` is 0 with reads and writes as messages; without the pages
    that the kernel still has unless `keeps_cache`."""
    flags = abi.FOPEN_PASSTHROUGH if backing_id else abi.FOPEN_KEEP_CACHE if keeps_cache else 0
    return _out_header(_HEADER + abi.OPEN_OUT.size, 0, unique) + abi.OPEN_OUT.pack(0, flags, backing_id)


def xattr_list(names: Iterable[bytes]) -> bytes:
    """The payload of LISTXATTR (listxattr(2)): each name with its NUL."""
    return b"".join(name + b"\0" for name in names)


def init_out(
    minor: int,
    *,
    max_readahead: int,
    flags: int,
    max_background: int,
    max_write: int,
    max_pages: int,
    max_stack_depth: int = 0,
) -> bytes:
    """The payload of INIT. Times have nanosecond resolution; three quarters of max_background count as congestion.
    `max_stack_depth`: of filesystems from the deepest backing file to this mount; 0 without passthrough."""
    return abi.INIT_OUT.pack(
        abi.VERSION, minor, max_readahead, flags & 0xFFFFFFFF, max_background, max_background * 3 // 4, max_write,
        1, max_pages, 0, flags >> 32, max_stack_depth, 0,
    )  # fmt: skip


def notify_inval_inode(nodeid: int, offset: int, length: int) -> bytes:
    """Invalidate a node's attributes and its cached bytes from `offset` on (none if negative; length 0: to the end)."""
    return _notify(abi.Notify.INVAL_INODE, abi.NOTIFY_INVAL_INODE_OUT.pack(nodeid, offset, length))


def notify_inval_entry(parent: int, name: bytes) -> bytes:
    """Invalidate `name` in `parent`, present or missing."""
    return _notify(abi.Notify.INVAL_ENTRY, abi.NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0")


def notify_delete(parent: int, child: int, name: bytes) -> bytes:
    """Invalidate `name` in `parent`, which was `child` and is gone; inotify watches get a DELETE event."""
    return _notify(abi.Notify.DELETE, abi.NOTIFY_DELETE_OUT.pack(parent, child, len(name), 0) + name + b"\0")


def notify_resend() -> bytes:
    """Ask the kernel to resend the requests that another daemon read and never answered."""
    return _notify(abi.Notify.RESEND, b"")


def notify_inc_epoch() -> bytes:
    """Invalidate all names, present and missing (since 7.44)."""
    return _notify(abi.Notify.INC_EPOCH, b"")


def notify_invalidation(stale: Invalidation, *, with_epochs: bool) -> bytes | None:
    """Encode an invalidation for an external change; None: the kernel has no notification for it, so missing names need
    a short timeout."""
    if stale == ANY_NAME:
        return notify_inc_epoch() if with_epochs else None
    if not stale.name:
        return notify_inval_inode(stale.nodeid, 0 if stale.data else -1, 0)
    if stale.child:
        return notify_delete(stale.nodeid, stale.child, stale.name)
    return notify_inval_entry(stale.nodeid, stale.name)


def _notify(code: abi.Notify, payload: bytes) -> bytes:
    return _out_header(_HEADER + len(payload), code, 0) + payload


class Encoder:
    """Encodes the replies with timeouts: how long the kernel may cache names, missing names and attributes.

    Each method packs the attributes inline, and as `Any`: compiled code would unbox and box each `int`, which costs as
    much as packing it.
    """

    __slots__ = (
        "_attr_valid", "_missing", "_name_valid", "_valid", "_valid_ns", "_valid_s", "generation", "set_id", "written",
    )  # fmt: skip

    def __init__(self, timeout_s: float) -> None:
        self.generation = 0
        """Of all nodes but the root, part of their file handles: changed by `set_generation` only."""
        self.set_timeout(timeout_s)
        self.set_id: set[int] = set()
        """Regular files whose attributes in the kernel have a set-id bit: replies add, the dispatcher removes."""
        self.written: set[int] = set()
        """Files that the kernel writes by itself at present (see `opens`): it may not cache their attributes."""

    def set_generation(self, generation: int) -> None:
        """Set the generation of the nodes, 32 bits, before the first entry."""
        self.generation = generation
        self.set_timeout(self._valid_s + self._valid_ns / _BILLION)

    def set_timeout(self, seconds: float) -> None:
        """Set the timeout of the following replies."""
        self._valid_s = int(seconds)  # changed here only
        self._valid_ns = int((seconds - self._valid_s) * _BILLION)  # changed here only
        # The part of _ENTRY (abi) behind the node id, and of ATTR_OUT before the attributes: changed here only.
        whole, nanoseconds = self._valid_s, self._valid_ns
        self._valid = struct.pack("=QQQII", self.generation, whole, whole, nanoseconds, nanoseconds)
        self._attr_valid = struct.pack("=QII", self._valid_s, self._valid_ns, 0)
        self._name_valid = struct.pack("=QQQII", self.generation, whole, 0, nanoseconds, 0)  # not the attributes
        self.set_missing_timeout(seconds)

    def set_missing_timeout(self, seconds: float) -> None:
        """As `set_timeout`, for missing names only."""
        whole = int(seconds)
        self._missing = struct.pack("=QQQII", 0, whole, 0, int((seconds - whole) * _BILLION), 0)  # changed here only

    def entry(self, unique: int, entry: Entry) -> bytes:
        """LOOKUP, MKNOD, MKDIR, SYMLINK, LINK."""
        nodeid: Any = entry[0]
        attrs = entry[1]
        as_they_are: tuple[Any, ...] = attrs
        ino, mode, nlink, uid, gid, rdev, size, blocks, blksize, _, _, _ = as_they_are
        atime, mtime, ctime = attrs[9], attrs[10], attrs[11]
        kind = attrs[1]
        if kind & 0o6000 and kind & IFMT == IFREG:
            self.set_id.add(nodeid)
        atime_s, atime_ns = atime // _BILLION, atime % _BILLION
        mtime_s, mtime_ns = mtime // _BILLION, mtime % _BILLION
        ctime_s, ctime_ns = ctime // _BILLION, ctime % _BILLION
        return _entry_reply(
            _ENTRY_HEAD, unique, nodeid, self._valid if nodeid not in self.written else self._name_valid,
            ino, size, blocks, atime_s, mtime_s, ctime_s, atime_ns, mtime_ns, ctime_ns,
            mode, nlink, uid, gid, rdev, blksize,
        )  # fmt: skip

    def root_entry(self, unique: int, entry: Entry) -> bytes:
        """LOOKUP of "..", if that is the root: the kernel gave it the generation 0."""
        whole = self.entry(unique, entry)
        return whole[: _HEADER + 8] + bytes(8) + whole[_HEADER + 16 :]

    def missing(self, unique: int) -> bytes:
        """LOOKUP of a missing name: node id 0 is ENOENT that the kernel may cache."""
        return _entry_reply(
            _ENTRY_HEAD, unique, 0, self._missing,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip

    def attrs(self, unique: int, nodeid: int, attrs: Attrs) -> bytes:
        """GETATTR, SETATTR."""
        as_they_are: tuple[Any, ...] = attrs
        ino, mode, nlink, uid, gid, rdev, size, blocks, blksize, _, _, _ = as_they_are
        atime, mtime, ctime = attrs[9], attrs[10], attrs[11]
        kind = attrs[1]
        if kind & 0o6000 and kind & IFMT == IFREG:
            self.set_id.add(nodeid)
        atime_s, atime_ns = atime // _BILLION, atime % _BILLION
        mtime_s, mtime_ns = mtime // _BILLION, mtime % _BILLION
        ctime_s, ctime_ns = ctime // _BILLION, ctime % _BILLION
        return _attr_reply(
            _ATTR_HEAD, unique, self._attr_valid if nodeid not in self.written else _NOT_VALID,
            ino, size, blocks, atime_s, mtime_s, ctime_s, atime_ns, mtime_ns, ctime_ns,
            mode, nlink, uid, gid, rdev, blksize,
        )  # fmt: skip

    def tmpfile(self, unique: int, entry: Entry, backing_id: int = 0) -> bytes:
        """TMPFILE: an entry and an open file, whose handle is unused."""
        flags = abi.FOPEN_PASSTHROUGH if backing_id else abi.FOPEN_KEEP_CACHE
        return b"".join(
            (
                _out_header(abi.ENTRY_REPLY.size + abi.OPEN_OUT.size, 0, unique),
                self.entry(unique, entry)[_HEADER:],
                abi.OPEN_OUT.pack(0, flags, backing_id),
            )
        )

    def statx(self, unique: int, nodeid: int, attrs: Attrs, extended: ExtendedStat) -> bytes:
        """STATX: the stat(2) attributes, the birth time if there is one, and attributes such as immutable."""
        born_s, born_ns = extended.birth or (0, 0)
        mask = abi.STATX_BASIC_STATS | (abi.STATX_BTIME if extended.birth is not None else 0)
        ino, mode, nlink, uid, gid, rdev, size, blocks, blksize, atime, mtime, ctime = attrs
        return _out_header(_HEADER + abi.STATX_OUT.size, 0, unique) + abi.STATX_OUT.pack(
            *((0, 0) if nodeid in self.written else (self._valid_s, self._valid_ns)), 0,
            mask, blksize, extended.attributes, nlink, uid, gid, mode, 0, ino, size, blocks, extended.known,
            *divmod(atime, _BILLION), 0, born_s, born_ns, 0, *divmod(ctime, _BILLION), 0, *divmod(mtime, _BILLION), 0,
            *_device(rdev), 0, 0,
        )  # fmt: skip

    def direntplus(self, entry: Entry, name: bytes, cookie: int) -> bytes:
        """Encode one entry of READDIRPLUS, padded."""
        nodeid: Any = entry[0]
        attrs = entry[1]
        as_they_are: tuple[Any, ...] = attrs
        ino, mode, nlink, uid, gid, rdev, size, blocks, blksize, _, _, _ = as_they_are
        atime, mtime, ctime = attrs[9], attrs[10], attrs[11]
        kind = attrs[1]
        if kind & 0o6000 and kind & IFMT == IFREG:
            self.set_id.add(nodeid)
        atime_s, atime_ns = atime // _BILLION, atime % _BILLION
        mtime_s, mtime_ns = mtime // _BILLION, mtime % _BILLION
        ctime_s, ctime_ns = ctime // _BILLION, ctime % _BILLION
        length = len(name)
        line: bytes = _DIRENTPLUS[(length + 7) >> 3](
            nodeid, self._valid if nodeid not in self.written else self._name_valid,
            ino, size, blocks, atime_s, mtime_s, ctime_s, atime_ns, mtime_ns, ctime_ns,
            mode, nlink, uid, gid, rdev, blksize,
            ino, cookie, length, kind >> 12, name,
        )  # fmt: skip
        return line


def bare_direntplus(name: bytes, cookie: int, ino: int, kind: int) -> bytes:
    """Encode one entry of READDIRPLUS without a lookup (node id 0): the kernel caches nothing of it."""
    length = len(name)
    line: bytes = _DIRENTPLUS[(length + 7) >> 3](
        0, _NO_ENTRY,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ino, cookie, length, kind >> 12, name,
    )  # fmt: skip
    return line


def dirent(name: bytes, cookie: int, ino: int, kind: int) -> bytes:
    """Encode one entry of READDIR, padded."""
    length = len(name)
    return _DIRENT[(length + 7) >> 3](ino, cookie, length, kind >> 12, name)


def _device(rdev: int) -> tuple[int, int]:
    """Decode the 32 bits of the kernel's new_encode_dev to (major, minor)."""
    return (rdev & 0xFFF00) >> 8, (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00)
