"""What stat(2) does not tell of a file: whether it is immutable, append-only, or the root of a mount (statx(2))."""

from __future__ import annotations

import ctypes
import os
from typing import Final

ATTR_IMMUTABLE: Final = 0x10  # <linux/stat.h>, STATX_ATTR_*
ATTR_APPEND: Final = 0x20
ATTR_MOUNT_ROOT: Final = 0x2000

_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_EMPTY_PATH: Final = 0x1000
_SIZE: Final = 256  # of struct statx
_ATTRIBUTES: Final = 8  # offset of stx_attributes, 64 bits wide

_libc = ctypes.CDLL(None, use_errno=True)
_libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)


def attributes(dir_fd: int, name: bytes) -> int:
    """The ATTR_* bits of `name` in a directory, or of `dir_fd` itself for an empty name. Follows no symlink."""
    buffer = ctypes.create_string_buffer(_SIZE)
    flags = _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT | (0 if name else _AT_EMPTY_PATH)
    if _libc.statx(dir_fd, name, flags, 0, buffer) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(name))
    return int.from_bytes(buffer.raw[_ATTRIBUTES : _ATTRIBUTES + 8], "little")
