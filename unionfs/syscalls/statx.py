"""File attributes that stat(2) lacks, read by statx(2): birth time, immutable, append-only, mount root and others."""

from __future__ import annotations

import ctypes
import os
from struct import Struct
from typing import Final, NamedTuple

ATTR_IMMUTABLE: Final = 0x10  # <linux/stat.h>, STATX_ATTR_*
ATTR_APPEND: Final = 0x20
ATTR_MOUNT_ROOT: Final = 0x2000
ATTR_OF_FILES: Final = 0x4 | ATTR_IMMUTABLE | ATTR_APPEND | 0x40 | 0x800 | 0x100000
"""Bits that belong to the file itself, not to its mount: compressed, immutable, append-only, nodump, encrypted,
verity."""

_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_EMPTY_PATH: Final = 0x1000
_SIZE: Final = 256  # of struct statx
_BTIME: Final = 0x800  # STATX_BTIME
_HEAD: Final = Struct("=IIQ")  # stx_mask stx_blksize stx_attributes
_MASK: Final = Struct("=Q")  # stx_attributes_mask
_MASK_AT: Final = 56
_TIME: Final = Struct("=qI")  # struct statx_timestamp without its padding
_BTIME_AT: Final = 80

_libc = ctypes.CDLL(None, use_errno=True)
_libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)


class ExtendedStat(NamedTuple):
    """Attributes of a file that stat(2) lacks."""

    birth: tuple[int, int] | None  # seconds and nanoseconds; None where the filesystem keeps no birth times
    attributes: int  # ATTR_* bits
    known: int  # the bits of `attributes` that the filesystem supports


def extended_stat(dir_fd: int, name: bytes) -> ExtendedStat:
    """Return the attributes of `name` in a directory, or of `dir_fd` itself if `name` is empty. Follows no symlink."""
    buffer = ctypes.create_string_buffer(_SIZE)
    flags = _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT | (0 if name else _AT_EMPTY_PATH)
    if _libc.statx(dir_fd, name, flags, _BTIME, buffer) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(name))
    mask, _blksize, attributes = _HEAD.unpack_from(buffer)
    birth = _TIME.unpack_from(buffer, _BTIME_AT) if mask & _BTIME else None
    return ExtendedStat(birth, attributes, _MASK.unpack_from(buffer, _MASK_AT)[0])


def attributes(dir_fd: int, name: bytes) -> int:
    """Return the ATTR_* bits of `extended_stat`."""
    return extended_stat(dir_fd, name).attributes
