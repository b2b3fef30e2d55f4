"""System calls on mounts: mount(2), umount2(2), and the ones that name a mount by a descriptor.

A mount that is held by a descriptor (open_tree, new_mount) is not attached to a path yet: see `DetachedMount`.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from typing import Final

from unionfs.syscalls import mountinfo

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.syscall.restype = ctypes.c_long

MS_RDONLY: Final = 1  # mount(2), <sys/mount.h>
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_NOATIME: Final = 1024
MS_NODIRATIME: Final = 2048
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MS_LAZYTIME: Final = 1 << 25

MNT_FORCE: Final = 1  # umount2(2)
MNT_DETACH: Final = 2
MNT_EXPIRE: Final = 4
UMOUNT_NOFOLLOW: Final = 8

MOUNT_ATTR_RDONLY: Final = 0x1  # mount_setattr(2), fsmount(2), <linux/mount.h>
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR_RELATIME: Final = 0
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000
MOUNT_ATTR_ATIME: Final = 0x70  # a field of three values: to change it, clear it
_ALL_ATTRIBUTES: Final = 0xFF

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
_FSOPEN_CLOEXEC: Final = 1
_FSMOUNT_CLOEXEC: Final = 1
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6

_SYS_OPEN_TREE: Final = 428  # the same numbers on every architecture (new system calls since Linux 5.0)
_SYS_MOVE_MOUNT: Final = 429
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432
_SYS_MOUNT_SETATTR: Final = 442


class _MountAttr(ctypes.Structure):
    """struct mount_attr of <linux/mount.h>."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount(
    source: str | bytes | None,
    target: str | bytes,
    fstype: str | bytes | None = None,
    flags: int = 0,
    data: str | bytes | None = None,
) -> None:
    """Mount a filesystem, or change or move a mount, as `flags` says (mount(2)). The error names `target`."""
    if _libc.mount(_bytes(source), _bytes(target), _bytes(fstype), flags, _bytes(data)) < 0:
        raise _fail(target)


def umount2(target: str | bytes, flags: int = 0) -> None:
    """Unmount `target` (umount2(2)). Raises: EBUSY if in use, unless MNT_DETACH; EINVAL if it is no mountpoint."""
    if _libc.umount2(_bytes(target), flags) < 0:
        raise _fail(target)


class DetachedMount:
    """A mount that is not attached to a path yet. It vanishes when its descriptor is closed before `attach`."""

    def __init__(self, fd: int) -> None:
        self.fd: Final = fd
        self._wanted: list[tuple[int, bool]] = []  # attributes that could not be set yet, and whether recursively

    def set_attributes(self, attributes: int, *, recursive: bool = False) -> None:
        """Add MOUNT_ATTR_* (mount_setattr(2), Linux 5.12). On older kernels a detached mount cannot be changed, so they
        are set by `attach`."""
        flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
        try:
            _set_attributes(self.fd, b"", flags, attributes)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            self._wanted.append((attributes, recursive))

    def change_attributes(self, added: int, cleared: int, *, recursive: bool = False) -> None:
        """Add and clear MOUNT_ATTR_* (mount_setattr(2), Linux 5.12). EPERM for attributes that a user namespace may not
        clear."""
        _set_attributes(self.fd, b"", _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0), added, cleared)

    def replace_attributes(self, attributes: int) -> None:
        """Set MOUNT_ATTR_* and clear all others, and let the mount be private (mount_setattr(2), Linux 5.12). EPERM for
        attributes that a user namespace may not clear."""
        _set_attributes(self.fd, b"", _AT_EMPTY_PATH, attributes, _ALL_ATTRIBUTES, MS_PRIVATE)

    def attach(self, target: str) -> None:
        """Attach the mount at `target`, a path without symlinks (move_mount(2), Linux 5.2), and close the descriptor.
        The error names `target`."""
        try:
            _syscall(_SYS_MOVE_MOUNT, target, self.fd, b"", _AT_FDCWD, _bytes(target), _MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            self.close()
        for attributes, recursive in self._wanted:
            _remount(target, attributes)
            for below in _mounted_below(target) if recursive else ():
                _remount(below, attributes)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


def open_tree(path: str | bytes, *, recursive: bool = True) -> DetachedMount:
    """Return a detached copy of the mount at `path` and, if `recursive`, of those below it (open_tree(2), Linux 5.2).

    `path` may be any file or directory. ENOENT, EPERM without CAP_SYS_ADMIN over the mount namespace.
    """
    flags = _OPEN_TREE_CLONE | (_AT_RECURSIVE if recursive else 0) | os.O_CLOEXEC
    return DetachedMount(_syscall(_SYS_OPEN_TREE, path, _AT_FDCWD, _bytes(path), flags))


def clone_mount(fd: int) -> DetachedMount:
    """Return a detached copy of the mount that the directory `fd` is on, without those below it; its root is that
    directory. EPERM without CAP_SYS_ADMIN over the mount namespace."""
    flags = _OPEN_TREE_CLONE | _AT_EMPTY_PATH | os.O_CLOEXEC
    return DetachedMount(_syscall(_SYS_OPEN_TREE, "", fd, b"", flags))


def new_mount(fstype: str, options: Sequence[tuple[str, str]] = (), attributes: int = 0) -> DetachedMount:
    """Return a new detached mount of a filesystem of type `fstype` (fsopen(2) to fsmount(2), Linux 5.2).

    `options` are (key, value), the value "" for a flag; `attributes` are MOUNT_ATTR_*. EPERM where the caller's user
    namespace may not mount it, ENODEV when the kernel does not have it.
    """
    context_fd = _syscall(_SYS_FSOPEN, fstype, fstype.encode(), _FSOPEN_CLOEXEC)
    try:
        for key, value in (("source", fstype), *options):
            command = _FSCONFIG_SET_STRING if value else _FSCONFIG_SET_FLAG
            _syscall(_SYS_FSCONFIG, fstype, context_fd, command, key.encode(), value.encode() or None, 0)
        _syscall(_SYS_FSCONFIG, fstype, context_fd, _FSCONFIG_CMD_CREATE, None, None, 0)
        return DetachedMount(_syscall(_SYS_FSMOUNT, fstype, context_fd, _FSMOUNT_CLOEXEC, attributes))
    finally:
        os.close(context_fd)


def set_attributes(path: str, attributes: int) -> None:
    """Add MOUNT_ATTR_* to the mount at `path`: by mount_setattr(2), before Linux 5.12 by a remount."""
    try:
        _set_attributes(_AT_FDCWD, os.fsencode(path), 0, attributes)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        _remount(path, attributes)


def _set_attributes(
    dir_fd: int, path: bytes, flags: int, attributes: int, cleared: int = 0, propagation: int = 0
) -> None:
    if attributes & MOUNT_ATTR_ATIME:
        cleared |= MOUNT_ATTR_ATIME
    attr = _MountAttr(attributes, cleared, propagation, 0)
    _syscall(_SYS_MOUNT_SETATTR, path, dir_fd, path, flags, ctypes.byref(attr), ctypes.sizeof(attr))


def _mounted_below(target: str) -> list[str]:
    """Return the mountpoints below `target` in this mount namespace, also those that another mount covers."""
    prefix = target.rstrip("/") + "/"
    return [found.mountpoint for found in mountinfo.mounts() if found.mountpoint.startswith(prefix)]


def _remount(path: str, attributes: int) -> None:
    """Add flags to one mount and keep those it has: a user namespace may not clear flags that it did not set
    (mount(2)).

    MOUNT_ATTR_{RDONLY,NOSUID,NODEV,NOEXEC}, MS_* and ST_* (statvfs(3)) of the same meaning are the same bits.
    """
    kept = os.statvfs(path).f_flag & (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME)
    mount(None, path, None, MS_REMOUNT | MS_BIND | kept | attributes)


def _syscall(number: int, name: str | bytes, *args: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *(_long(arg) for arg in args))
    if result < 0:
        raise _fail(name)
    return result


def _long(arg: object) -> object:
    """Integers as wide as a register: ctypes would pass them as C ints."""
    return ctypes.c_long(arg) if isinstance(arg, int) else arg


def _bytes(text: str | bytes | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _fail(path: str | bytes) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), os.fsdecode(path))
