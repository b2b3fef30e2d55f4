"""File handles of the kernel, which lead to a file whatever its name is: name_to_handle_at(2), open_by_handle_at(2)."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final, NoReturn

_MAX: Final = 128  # MAX_HANDLE_SZ, <linux/exportfs.h>
_HEAD: Final = struct.Struct("Ii")  # struct file_handle: handle_bytes, handle_type

_libc = ctypes.CDLL(None, use_errno=True)
_libc.name_to_handle_at.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
_libc.open_by_handle_at.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)


def handle_of(dir_fd: int, name: bytes) -> bytes:
    """Return the handle of `name` in a directory; follows no symlink. Raises: EOPNOTSUPP where the filesystem has no
    handles."""
    buffer, mount_id = ctypes.create_string_buffer(_HEAD.pack(_MAX, 0), _HEAD.size + _MAX), ctypes.c_int()
    if _libc.name_to_handle_at(dir_fd, name, buffer, ctypes.byref(mount_id), 0) < 0:
        _fail()
    return buffer.raw[: _HEAD.size + _HEAD.unpack_from(buffer)[0]]


def open_path(mount_fd: int, handle: bytes) -> int:
    """Return an O_PATH descriptor of the file that has the handle, on the filesystem of `mount_fd`, which must not be
    O_PATH. Raises: ESTALE if the file is gone, EPERM without CAP_DAC_READ_SEARCH."""
    buffer = ctypes.create_string_buffer(handle, len(handle))
    fd: int = _libc.open_by_handle_at(mount_fd, buffer, os.O_PATH | os.O_CLOEXEC)
    if fd < 0:
        _fail()
    return fd


def _fail() -> NoReturn:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))
