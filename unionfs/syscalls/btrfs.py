"""Subvolumes of Btrfs: ioctl(2) commands of <linux/btrfs.h>, and which filesystem a path is on."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)

SUPER_MAGIC: Final = 0x9123683E  # statfs(2)

_SUBVOL_CREATE: Final = 0x5000940E
_SNAP_DESTROY: Final = 0x5000940F
_SNAP_CREATE_V2: Final = 0x50009417
_ARGS: Final = struct.Struct("q4088s")  # struct btrfs_ioctl_vol_args: fd, name
_ARGS_V2: Final = struct.Struct("qQQ32x4040s")  # btrfs_ioctl_vol_args_v2: fd, transid, flags, unused, name
_ROOT_INO: Final = 256  # BTRFS_FIRST_FREE_OBJECTID: the root directory of every subvolume
_STATFS_BYTES: Final = 256  # struct statfs has 120 on 64 bits; f_type is its first word


def is_on_btrfs(path: str) -> bool:
    """Whether `path` is on a Btrfs. Raises: OSError."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.statfs(os.fsencode(path), buffer) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], "little") == SUPER_MAGIC


def is_subvolume(path: str) -> bool:
    """Whether a directory is the root of a subvolume."""
    try:
        return os.stat(path, follow_symlinks=False).st_ino == _ROOT_INO and is_on_btrfs(path)
    except OSError:
        return False


def create(path: str) -> None:
    """Make an empty subvolume. Raises: EEXIST, ENOTTY on another filesystem, EPERM."""
    _in_parent(path, _SUBVOL_CREATE, lambda name: _ARGS.pack(0, name))


def snapshot(source: str, path: str) -> None:
    """Make `path` a writable snapshot of the subvolume `source`. Raises: EPERM if another user owns `source`."""
    fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _in_parent(path, _SNAP_CREATE_V2, lambda name: _ARGS_V2.pack(fd, 0, 0, name))
    finally:
        os.close(fd)


def destroy(path: str) -> None:
    """Delete a subvolume with its content. Raises: EPERM for users other than root, unless the filesystem is mounted
    with user_subvol_rm_allowed; ENOTEMPTY if it contains another subvolume."""
    _in_parent(path, _SNAP_DESTROY, lambda name: _ARGS.pack(0, name))


def _in_parent(path: str, command: int, arguments: Callable[[bytes], bytes]) -> None:
    parent, name = os.path.split(os.path.abspath(path))
    raw = os.fsencode(name)
    if len(raw) > 255:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, command, bytearray(arguments(raw)))  # fcntl.ioctl copies bytes objects of at most 1024 bytes
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or errno.EIO), path) from None
    finally:
        os.close(fd)
