"""Which bytes of a file are its own: FIEMAP, the ioctl that lists a file's extents (kernel documentation, fiemap)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Final

_FS_IOC_FIEMAP: Final = 0xC020660B
_FIEMAP_FLAG_SYNC: Final = 0x1
_FIEMAP_EXTENT_LAST: Final = 0x1
_FIEMAP_EXTENT_SHARED: Final = 0x2000
_HEADER: Final = struct.Struct("=QQLLLL")  # struct fiemap: start, length, flags, mapped, count, reserved
_EXTENT: Final = struct.Struct("=QQQQQLLLL")  # struct fiemap_extent: logical, physical, length, 2 reserved, flags, 3
_AT_ONCE: Final = 256
_WHOLE: Final = 0xFFFFFFFFFFFFFFFF
_CANNOT_TELL: Final = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL)


def own_bytes(fd: int) -> int:
    """How many bytes a file takes for itself: neither holes nor extents that it shares with other files.

    What is not on the device yet counts, too, but nothing beyond the file's end. Where the filesystem lists no extents
    (tmpfs, FUSE) all blocks are the file's own. Raises OSError: EIO.
    """
    try:
        own, shared = _sum(fd, 0)
        if shared:  # what replaces shared data is listed only when it has been written
            own, _ = _sum(fd, _FIEMAP_FLAG_SYNC)
    except OSError as exc:
        if exc.errno not in _CANNOT_TELL:
            raise
        return os.fstat(fd).st_blocks * 512
    return own


def _sum(fd: int, flags: int) -> tuple[int, int]:
    """Bytes that are the file's own, bytes that are shared."""
    own = shared = 0
    st = os.fstat(fd)
    size = -(-st.st_size // st.st_blksize) * st.st_blksize
    for start, whole, what in _extents(fd, flags):
        length = max(0, min(whole, size - start))
        if what & _FIEMAP_EXTENT_SHARED:
            shared += length
        else:
            own += length
    return own, shared


def _extents(fd: int, flags: int) -> Iterator[tuple[int, int, int]]:
    """(start, length, FIEMAP_EXTENT_* flags) of each extent."""
    start = 0
    while True:
        request = _HEADER.pack(start, _WHOLE - start, flags, 0, _AT_ONCE, 0)
        buffer = bytearray(request + bytes(_EXTENT.size * _AT_ONCE))
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer)
        mapped = _HEADER.unpack_from(buffer)[3]
        for number in range(mapped):
            logical, _, length, _, _, what, *_ = _EXTENT.unpack_from(buffer, _HEADER.size + number * _EXTENT.size)
            yield logical, length, what
            start = logical + length
            if what & _FIEMAP_EXTENT_LAST:
                return
        if mapped == 0:
            return
