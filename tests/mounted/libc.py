"""System calls that `os` lacks in Python 3.11, for the checks only.

Independent of unionfs.syscalls on purpose: the checks must not trust what they test.
Every wrapper raises OSError with the errno the kernel gave.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_SYMLINK_FOLLOW: Final = 0x400
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_COLLAPSE_RANGE: Final = 0x08
FALLOC_FL_ZERO_RANGE: Final = 0x10
FALLOC_FL_INSERT_RANGE: Final = 0x20
SPLICE_PIPE_SIZE: Final = 65536
_SYS_GETDENTS64: Final = {"x86_64": 217, "aarch64": 61, "riscv64": 61}

_libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_libc.utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.linkat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
_libc.opendir.argtypes = [ctypes.c_char_p]
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.argtypes = [ctypes.c_void_p]
_libc.readdir.restype = ctypes.c_void_p
_libc.telldir.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_libc.rewinddir.argtypes = [ctypes.c_void_p]
_libc.closedir.argtypes = [ctypes.c_void_p]


class Dirent(NamedTuple):
    """One entry as readdir(3) gives it. `offset` is d_off, which telldir(3) would return after it."""

    ino: int
    offset: int
    kind: int
    name: bytes


def _raise(name: object = None) -> None:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code), name)


def renameat2(old: str | bytes, new: str | bytes, flags: int) -> None:
    """renameat2(2) relative to the current directory."""
    if _libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) < 0:
        _raise(old)


def name_to_handle(name: str | bytes) -> bytes:
    """name_to_handle_at(2): the handle, as open_by_handle takes it."""
    buffer, mount_id = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 8 + 128), ctypes.c_int()
    if _libc.name_to_handle_at(AT_FDCWD, os.fsencode(name), buffer, ctypes.byref(mount_id), 0) < 0:
        _raise(name)
    length, _kind = struct.unpack_from("Ii", buffer)
    return buffer.raw[: 8 + length]


def open_by_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """open_by_handle_at(2)."""
    fd = int(_libc.open_by_handle_at(mount_fd, ctypes.create_string_buffer(handle, len(handle)), flags))
    if fd < 0:
        _raise()
    return fd


def utimensat(name: str | bytes, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """utimensat(2) with (seconds, nanoseconds) as they are, so that UTIME_NOW and UTIME_OMIT can be given."""
    if _libc.utimensat(AT_FDCWD, os.fsencode(name), struct.pack("=qqqq", *atime, *mtime), flags) < 0:
        _raise(name)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), without the emulation that posix_fallocate(3) falls back to."""
    if _libc.fallocate(fd, mode, offset, length) < 0:
        _raise()


def link_fd(fd: int, new: str | bytes) -> None:
    """Give the file behind `fd` a name, as open(2) shows for O_TMPFILE."""
    if _libc.linkat(AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, os.fsencode(new), AT_SYMLINK_FOLLOW) < 0:
        _raise(new)


class DirStream:
    """An open directory stream: opendir(3), readdir(3), telldir(3), seekdir(3), rewinddir(3)."""

    def __init__(self, name: str | bytes = b".") -> None:
        self._stream = _libc.opendir(os.fsencode(name))
        if not self._stream:
            _raise(name)

    def read(self) -> Dirent | None:
        """The next entry; None at the end."""
        ctypes.set_errno(0)
        entry = _libc.readdir(self._stream)
        if not entry:
            if ctypes.get_errno():
                _raise()
            return None
        ino, offset, length, kind = struct.unpack("=QqHB", ctypes.string_at(entry, 19))
        return Dirent(ino, offset, kind, ctypes.string_at(entry, length)[19:].split(b"\0", 1)[0])

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)

    def __iter__(self) -> Iterator[Dirent]:
        while (entry := self.read()) is not None:
            yield entry


@contextmanager
def dir_stream(name: str | bytes = b".") -> Iterator[DirStream]:
    """A DirStream that is closed at the end."""
    stream = DirStream(name)
    try:
        yield stream
    finally:
        stream.close()


def getdents(fd: int, size: int) -> list[Dirent]:
    """One getdents64(2) call with a buffer of `size` bytes; an empty list at the end."""
    buffer = ctypes.create_string_buffer(size)
    got = _libc.syscall(_SYS_GETDENTS64[os.uname().machine], fd, buffer, size)
    if got < 0:
        _raise()
    entries, at = [], 0
    while at < got:
        ino, offset, length, kind = struct.unpack_from("=QqHB", buffer, at)
        entries.append(Dirent(ino, offset, kind, buffer.raw[at + 19 : at + length].split(b"\0", 1)[0]))
        at += length
    return entries
