"""Count the bytes that a file shares with no other file, with FIEMAP, which lists extents (kernel docs, fiemap)."""

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
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL)


def own_bytes(fd: int) -> int:
    """Return the number of bytes that are allocated to this file only: without holes and shared extents.

    Data not yet written to the device count, too; extents beyond the file's end do not. Where the filesystem lists no
    extents (tmpfs, FUSE), all blocks count. Raises OSError: EIO.
    """
    try:
        own, shared = _sum(fd, 0)
        if shared:  # data that replace shared data are listed only once they are on the device
            own, _ = _sum(fd, _FIEMAP_FLAG_SYNC)
    except OSError as exc:
        if exc.errno not in _UNSUPPORTED:
            raise
        return os.fstat(fd).st_blocks * 512
    return own


def _sum(fd: int, flags: int) -> tuple[int, int]:
    """Return the bytes in unshared extents and the bytes in shared ones."""
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
    """Yield (start, length, FIEMAP_EXTENT_* flags) of each extent."""
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
