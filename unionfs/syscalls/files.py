"""System calls on files that `os` lacks: openat2, renameat2, fallocate, fchmodat2, utimensat, getxattr without
exceptions, syncfs, fstatfs, FICLONE."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import sys
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)

GETFLAGS: Final = 0x80086601  # FS_IOC_GETFLAGS; it gives 4 bytes
COMPLETE: Final = 0x7501  # _IO('u', 1): on the root directory of a union, bring all data to its upper
KEEP_SIZE: Final = 1  # FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE, <linux/falloc.h>
PUNCH_HOLE: Final = 2
RENAME_NOREPLACE: Final = 1  # rename(2)
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4

RESOLVE_NO_XDEV: Final = 0x01  # openat2(2)
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

RWF_NOWAIT: Final = 0x08  # preadv2(2)

AT_SYMLINK_NOFOLLOW: Final = 0x100
UTIME_NOW: Final = (1 << 30) - 1  # utimensat(2)
UTIME_OMIT: Final = (1 << 30) - 2

FLAG_READS: Final = {0x80086601: 4, 0x801C581F: 28}
"""Commands that read an inode's flags, and the bytes each gives: FS_IOCGETFLAGS (an int in spite of its number,
ioctl_iflags(2)) and FS_IOC_FSGETXATTR (struct fsxattr, <linux/fs.h>)."""

FLAG_WRITES: Final = {0x40086602: 4, 0x401C5820: 28}
"""FS_IOC_SETFLAGS and FS_IOC_FSSETXATTR."""

IMMUTABLE: Final = 0x10  # FS_IMMUTABLE_FL, <linux/fs.h>; in statx(2), too
APPEND: Final = 0x20  # FS_APPEND_FL; in statx(2), too
XFLAG_IMMUTABLE: Final = 0x8  # FS_XFLAG_IMMUTABLE, of struct fsxattr
XFLAG_APPEND: Final = 0x10

EXT4: Final = 0xEF53  # <linux/magic.h>, EXT4_SUPER_MAGIC and so on
FUSE: Final = 0x65735546
XFS: Final = 0x58465342
BTRFS: Final = 0x9123683E
TMPFS: Final = 0x01021994
RAMFS: Final = 0x858458F6
F2FS: Final = 0xF2F52010

_SETFLAGS: Final = 0x40086602
_FICLONE: Final = 0x40049409  # ioctl_ficlonerange(2)
_SYS_OPENAT2: Final = 437  # the same number on every architecture (new system calls since Linux 5.0)
_SYS_FCHMODAT2: Final = 452


def _fail(name: bytes | str | None = None) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), os.fsdecode(name) if name is not None else None)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc.syscall.restype = ctypes.c_long
_fchmodat2 = _libc["syscall"]  # another function object, whose arguments need no objects of ctypes
_fchmodat2.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_libc.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.POINTER(ctypes.c_long))


_libc.utimensat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)
_libc.fgetxattr.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.getxattr.argtypes = _libc.lgetxattr.argtypes = (
    ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t
)  # fmt: skip
_libc.fgetxattr.restype = _libc.getxattr.restype = _libc.lgetxattr.restype = ctypes.c_ssize_t

_two_timespecs = struct.Struct("@qqqq").pack
_USUAL_XATTR_SIZE: Final = 256
"""Bytes; the values of most extended attributes are shorter. Longer ones cost a second call."""


def openat2(dir_fd: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """Open `path` beneath `dir_fd` with RESOLVE_* restrictions (openat2(2)). Raises: ENOSYS before Linux 5.6, ELOOP at
    a symlink."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    fd: int = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(path),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if fd < 0:
        raise _fail(path)
    return fd


def renameat2(src_fd: int, src: bytes, dst_fd: int, dst: bytes, flags: int) -> None:
    """Rename with RENAME_* flags (rename(2)). Raises: EINVAL when the filesystem does not support a flag."""
    if _libc.renameat2(src_fd, src, dst_fd, dst, flags) < 0:
        raise _fail(src)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Manipulate the space of a file (fallocate(2)); `mode` holds FALLOC_FL_* bits."""
    if _libc.fallocate64(fd, mode, offset, length) < 0:
        raise _fail()


def bring_data(root_fd: int) -> None:
    """Have the daemon of a union bring all data to its upper, and wait for it; `root_fd`: its root directory. Raises:
    ENOTTY by a transport that cannot, EIO where data are missing, ENOSPC, EPERM."""
    fcntl.ioctl(root_fd, COMPLETE)


def syncfs(fd: int) -> None:
    """Write the whole filesystem of `fd` to its device (syncfs(2))."""
    if _libc.syncfs(fd) < 0:
        raise _fail()


def filesystem_type(fd: int) -> int:
    """Return the magic number of the filesystem that `fd` is on (fstatfs(2), f_type)."""
    buffer = (ctypes.c_long * 32)()  # struct statfs is shorter; its first member is f_type
    if _libc.fstatfs(fd, buffer) < 0:
        raise _fail()
    return int(buffer[0])


def ficlone(dst_fd: int, src_fd: int) -> None:
    """Make `dst_fd` share all data of `src_fd` (FICLONE). Raises: EOPNOTSUPP, EXDEV, EINVAL without reflinks."""
    fcntl.ioctl(dst_fd, _FICLONE, src_fd)


def get_flags(fd: int, command: int) -> bytes:
    """Return the inode's flags as `command` of FLAG_READS gives them. Raises: ENOTTY if the filesystem has none."""
    size = FLAG_READS[command]
    return fcntl.ioctl(fd, command, bytes(max(size, 8)))[:size]


def set_flags(fd: int, command: int, flags: bytes) -> None:
    """Set the inode's flags by `command` of FLAG_WRITES. Raises: ENOTTY, EOPNOTSUPP for unsupported flags, EPERM."""
    fcntl.ioctl(fd, command, flags.ljust(8, b"\0"))


def protection_in(command: int, flags: bytes) -> int:
    """Return which of IMMUTABLE and APPEND the argument of a command of FLAG_READS or FLAG_WRITES has."""
    first = int.from_bytes(flags[:4], sys.byteorder)
    if FLAG_READS.get(command, FLAG_WRITES.get(command)) == 4:
        return first & (IMMUTABLE | APPEND)
    return (IMMUTABLE if first & XFLAG_IMMUTABLE else 0) | (APPEND if first & XFLAG_APPEND else 0)


def inode_flags(fd: int) -> int:
    """Return the inode's flags (FS_IOCGETFLAGS). Raises: as `get_flags`; EBADF for an O_PATH descriptor."""
    return int.from_bytes(get_flags(fd, GETFLAGS), sys.byteorder)


def set_inode_flags(fd: int, flags: int) -> None:
    """Set all of the inode's flags (FS_IOC_SETFLAGS). Raises: as `set_flags`."""
    set_flags(fd, _SETFLAGS, flags.to_bytes(4, sys.byteorder))


def find_xattr(target: bytes | int, name: bytes, *, follow: bool = False) -> bytes | None:
    """Return the value of an extended attribute of a path or descriptor (getxattr(2)), or None if it is missing.

    A missing attribute is the usual case, and raising an exception for it would cost time.
    """
    buffer = ctypes.create_string_buffer(_USUAL_XATTR_SIZE)
    if isinstance(target, int):
        size = _libc.fgetxattr(target, name, buffer, _USUAL_XATTR_SIZE)
    else:
        size = (_libc.getxattr if follow else _libc.lgetxattr)(target, name, buffer, _USUAL_XATTR_SIZE)
    if size >= 0:
        return buffer.raw[:size]
    code = ctypes.get_errno()
    if code == errno.ENODATA:
        return None
    if code != errno.ERANGE:
        raise _fail(target if isinstance(target, bytes) else None)
    try:
        return (
            os.getxattr(target, name) if isinstance(target, int) else os.getxattr(target, name, follow_symlinks=follow)
        )
    except OSError as exc:
        if exc.errno == errno.ENODATA:
            return None
        raise


def chmod_nofollow(dir_fd: int, name: bytes, mode: int) -> None:
    """Change the mode of `name` without following a symlink (fchmodat2(2), else through /proc/self/fd). Raises:
    EOPNOTSUPP on a symlink."""
    if _fchmodat2(_SYS_FCHMODAT2, dir_fd, name, mode, AT_SYMLINK_NOFOLLOW) == 0:
        return
    if ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):
        raise _fail(name)
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), os.fsdecode(name))
        os.chmod(b"/proc/self/fd/%d" % fd, mode)
    finally:
        os.close(fd)


def set_times(dir_fd: int, name: bytes, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """Set times as (seconds, nanoseconds), without following a symlink; nanoseconds may be UTIME_NOW or UTIME_OMIT."""
    times = _two_timespecs(*atime, *mtime)
    if _libc.utimensat(dir_fd, name, times, AT_SYMLINK_NOFOLLOW) < 0:
        raise _fail(name)
