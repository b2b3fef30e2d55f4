"""Decode request bytes to the arguments of a Union verb; pure.

Knows the layouts (`abi`) and the core's values. Does not know the callers of the verbs or their results.

Contract of a decoder `(head, buf, end)`: `head` is the unpacked IN_HEADER, the request is `buf[:end]`, and `buf` may
go on behind it with bytes of an older request. The dispatcher has already seen that the opcode's fixed part fits. The
outcome is

1. the arguments that follow the node id, as a tuple;
2. `MalformedError`, for bytes that no kernel sends (a missing NUL, a name with a slash): it is answered EIO and logged;
3. `OSError`, when the answer is certain without the core: ENAMETOOLONG for a name above 255 bytes.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from unionfs.core.attrs import NOW, AttrChange, Caller, make
from unionfs.fuse.kernel import abi

BODY: Final = abi.IN_HEADER.size
"""Where the opcode's own part begins."""

Head = tuple[int, ...]
"""len opcode unique nodeid uid gid pid total_extlen padding"""

_BILLION: Final = 1_000_000_000
_SLASH: Final = ord("/")  # `in` with a number: with bytes, CPython raises and drops an error before it looks
_DOT: Final = ord(".")
_DOTS: Final = frozenset((b".", b".."))
_CHANGES: Final = (
    abi.FATTR_MODE | abi.FATTR_UID | abi.FATTR_GID | abi.FATTR_SIZE
    | abi.FATTR_ATIME | abi.FATTR_MTIME | abi.FATTR_ATIME_NOW | abi.FATTR_MTIME_NOW
)  # fmt: skip

_forget_in: Final = abi.FORGET_IN.unpack_from
_setattr_in: Final = abi.SETATTR_IN.unpack_from
_mknod_in: Final = abi.MKNOD_IN.unpack_from
_getxattr_in: Final = abi.GETXATTR_IN.unpack_from
_GETXATTR_NAME: Final = BODY + abi.GETXATTR_IN.size
_NAME_MAX: Final = abi.NAME_MAX


class MalformedError(ValueError):
    """A malformed request. The message says what is wrong, without the bytes."""


def nothing(head: Head, buf: memoryview, end: int) -> tuple[()]:
    """A request without further arguments: GETATTR (its file handle means nothing here), READLINK, STATFS ..."""
    return ()


def name(head: Head, buf: memoryview, end: int) -> tuple[bytes]:
    """LOOKUP, UNLINK, RMDIR: one name."""
    return (name_at(buf, BODY, end),)


def name_at(buf: memoryview, start: int, end: int) -> bytes:
    """The one NUL-terminated name that fills `buf[start:end]`.

    Raises: MalformedError; ENAMETOOLONG.
    """
    raw = bytes(buf[start:end])
    if raw.find(0) != end - start - 1:  # the first NUL is the last byte
        raise MalformedError("a name is not terminated where it should be")
    return _checked(raw[:-1])


def _checked(raw: bytes) -> bytes:
    if len(raw) > _NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if not raw or _SLASH in raw or (raw[0] == _DOT and raw in _DOTS):
        raise MalformedError("a name is empty, a dot or holds a slash")
    return raw


def _two_strings(buf: memoryview, start: int, end: int) -> tuple[bytes, bytes]:
    parts = bytes(buf[start:end]).split(b"\0")
    if len(parts) != 3 or parts[2]:
        raise MalformedError("two strings are not terminated where they should be")
    return parts[0], parts[1]


def forget(head: Head, buf: memoryview, end: int) -> tuple[int]:
    """FORGET: number of lookups."""
    return _forget_in(buf, BODY)


def batch_forget(buf: memoryview, end: int) -> list[tuple[int, int]]:
    """BATCH_FORGET: (node id, number of lookups) for each node."""
    count, _dummy = abi.BATCH_FORGET_IN.unpack_from(buf, BODY)
    start = BODY + abi.BATCH_FORGET_IN.size
    stop = start + count * abi.FORGET_ONE.size
    if stop > end:
        raise MalformedError("more nodes announced than sent")
    return list(abi.FORGET_ONE.iter_unpack(buf[start:stop]))


def setattr_(head: Head, buf: memoryview, end: int) -> tuple[AttrChange]:
    """SETATTR. FATTR_CTIME is ignored: the change itself sets the ctime on the branch.

    The kernel sends a SETATTR without any change for chown(2) with -1 for both ids, and before fallocate and
    copy_file_range, which have no flag to clear set-id bits: so it means to clear them.
    """
    (valid, _, _fh, size, _owner, atime, mtime, _ctime, atime_ns, mtime_ns, _ctime_ns, mode, _, uid, gid, _
     ) = _setattr_in(buf, BODY)  # fmt: skip
    if valid & _CHANGES == abi.FATTR_MODE:  # the commonest by far: chmod(2)
        return (make(AttrChange, (mode & 0o7777, None, None, None, None, None, bool(valid & abi.FATTR_KILL_SUIDGID))),)
    return (
        make(AttrChange, (
            stat.S_IMODE(mode) if valid & abi.FATTR_MODE else None,
            uid if valid & abi.FATTR_UID else None,
            gid if valid & abi.FATTR_GID else None,
            size if valid & abi.FATTR_SIZE else None,
            _time(valid, abi.FATTR_ATIME, abi.FATTR_ATIME_NOW, atime, atime_ns),
            _time(valid, abi.FATTR_MTIME, abi.FATTR_MTIME_NOW, mtime, mtime_ns),
            bool(valid & abi.FATTR_KILL_SUIDGID) or not valid & _CHANGES,
        )),
    )  # fmt: skip


def held_back_times(buf: memoryview) -> tuple[bool, bool]:
    """Whether a SETATTR tells, with WRITEBACK_CACHE, the times of earlier writes (fuse_flush_times, which has a handle
    and nothing else to set); and whether it sets st_mtime to now, for which there is no bit with WRITEBACK_CACHE:
    the ctime is the same."""
    (valid, _, _fh, _size, _owner, _atime, mtime, ctime, _atime_ns, mtime_ns, ctime_ns, *_) = _setattr_in(buf, BODY)
    is_flush = valid & ~(abi.FATTR_CTIME | abi.FATTR_LOCKOWNER) == abi.FATTR_MTIME | abi.FATTR_FH
    return is_flush, bool(valid & abi.FATTR_CTIME) and (mtime, mtime_ns) == (ctime, ctime_ns)


def _time(valid: int, given: int, now: int, seconds: int, nanoseconds: int) -> int | None:
    if valid & now:
        return NOW
    return seconds * _BILLION + nanoseconds if valid & given else None


def symlink(head: Head, buf: memoryview, end: int) -> tuple[bytes, bytes, Caller]:
    """SYMLINK: name, target, caller."""
    link, target = _two_strings(buf, BODY, end)
    return _checked(link), target, make(Caller, (head[4], head[5], head[6], 0))


def mknod(head: Head, buf: memoryview, end: int) -> tuple[bytes, int, int, Caller]:
    """MKNOD: name, mode, rdev, caller."""
    mode, rdev, umask, _ = _mknod_in(buf, BODY)
    return name_at(buf, BODY + 16, end), mode, rdev, make(Caller, (head[4], head[5], head[6], umask))


def mkdir(head: Head, buf: memoryview, end: int) -> tuple[bytes, int, Caller]:
    """MKDIR: name, mode, caller."""
    mode, umask = abi.MKDIR_IN.unpack_from(buf, BODY)
    return name_at(buf, BODY + 8, end), mode, make(Caller, (head[4], head[5], head[6], umask))


def tmpfile(head: Head, buf: memoryview, end: int) -> tuple[int, Caller]:
    """TMPFILE: mode, caller. The name that the kernel sends, too, has no meaning."""
    _flags, mode, umask, _open_flags = abi.CREATE_IN.unpack_from(buf, BODY)
    return mode, make(Caller, (head[4], head[5], head[6], umask))


def rename(head: Head, buf: memoryview, end: int) -> tuple[bytes, int, bytes]:
    """RENAME: old name, new parent, new name."""
    (new_parent,) = abi.RENAME_IN.unpack_from(buf, BODY)
    old, new = _two_strings(buf, BODY + 8, end)
    return _checked(old), new_parent, _checked(new)


def rename2(head: Head, buf: memoryview, end: int) -> tuple[bytes, int, bytes, int]:
    """RENAME2: old name, new parent, new name, flags."""
    new_parent, flags, _ = abi.RENAME2_IN.unpack_from(buf, BODY)
    old, new = _two_strings(buf, BODY + 16, end)
    return _checked(old), new_parent, _checked(new), flags


def link(head: Head, buf: memoryview, end: int) -> tuple[int, bytes]:
    """LINK: the node to link, the new name. The header names the new parent."""
    (nodeid,) = abi.LINK_IN.unpack_from(buf, BODY)
    return nodeid, name_at(buf, BODY + 8, end)


def fsync(head: Head, buf: memoryview, end: int) -> tuple[bool]:
    """FSYNC, FSYNCDIR: whether to sync the data only."""
    _fh, flags, _ = abi.FSYNC_IN.unpack_from(buf, BODY)
    return (bool(flags & abi.FSYNC_FDATASYNC),)


def setxattr(buf: memoryview, end: int, *, extended: bool) -> tuple[bytes, bytes, int, bool]:
    """SETXATTR: name, value, flags, whether to clear set-group-id; `extended`: SETXATTR_EXT was negotiated."""
    if extended:
        size, flags, more, _ = abi.SETXATTR_IN.unpack_from(buf, BODY)
        start = BODY + abi.SETXATTR_IN.size
    else:
        size, flags = abi.SETXATTR_IN_COMPAT.unpack_from(buf, BODY)
        start, more = BODY + abi.SETXATTR_IN_COMPAT.size, 0
    value = end - size
    if value <= start:
        raise MalformedError("an attribute's value is larger than its request")
    return xattr_name_at(buf, start, value), bytes(buf[value:end]), flags, bool(more & abi.SETXATTR_ACL_KILL_SGID)


def getxattr(buf: memoryview, end: int) -> tuple[int, bytes]:
    """GETXATTR: room for the value (0: only its size is requested), name."""
    size, _ = _getxattr_in(buf, BODY)
    return size, xattr_name_at(buf, _GETXATTR_NAME, end)


def removexattr(head: Head, buf: memoryview, end: int) -> tuple[bytes]:
    """REMOVEXATTR: name."""
    return (xattr_name_at(buf, BODY, end),)


def xattr_name_at(buf: memoryview, start: int, end: int) -> bytes:
    """As `name_at`, for the name of an extended attribute: a slash is allowed, above 255 bytes is ERANGE (xattr(7))."""
    raw = bytes(buf[start : end - 1])
    if end <= start or buf[end - 1] or 0 in raw or not raw:
        raise MalformedError("an attribute's name is not terminated where it should be")
    if len(raw) > abi.NAME_MAX:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return raw


def fallocate(head: Head, buf: memoryview, end: int) -> tuple[int, int, int]:
    """FALLOCATE: mode, offset, length."""
    _fh, offset, length, mode, _ = abi.FALLOCATE_IN.unpack_from(buf, BODY)
    return mode, offset, length


def lseek(head: Head, buf: memoryview, end: int) -> tuple[int, int]:
    """LSEEK: offset, whence."""
    _fh, offset, whence, _ = abi.LSEEK_IN.unpack_from(buf, BODY)
    return offset, whence


def copy_file_range(head: Head, buf: memoryview, end: int) -> tuple[int, int, int, int]:
    """COPY_FILE_RANGE, COPY_FILE_RANGE_64: offset in the source (the header's node), target, its offset, length."""
    _fh_in, off_in, target, _fh_out, off_out, length, _flags = abi.COPY_FILE_RANGE_IN.unpack_from(buf, BODY)
    return off_in, target, off_out, length
