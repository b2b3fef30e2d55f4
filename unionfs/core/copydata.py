"""Copy the bytes of one descriptor to another as cheaply as the filesystem can, keeping holes. Knows only
descriptors.

A reflink where the filesystem shares extents, else copy_file_range over the data between the holes, else read and
write. On ext4 the target's blocks are reserved first: it then need not reserve page by page, and copies a quarter
faster, also to the device. On xfs and tmpfs that takes longer (benchmarks/README.md).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

from unionfs.syscalls import files

_CHUNK: Final = 1 << 20
"""Bytes that one system call copies. Between two calls a cancel is noticed; and on one processor a kernel that does not
preempt system calls (CONFIG_PREEMPT_NONE) lets the thread that answers requests wait for one call."""
_BLOCK: Final = 4096  # no filesystem has smaller holes in files that have data, too
_BUFFER: Final = 1 << 20
_SMALL: Final = 64 << 10  # one read and one write take less time than trying what the filesystem can do
_WORTH_RESERVING: Final = 512 << 10  # below this the call takes longer than it saves
_NOT_HERE: Final = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EBADF, errno.EPERM)


class CancelledError(OSError):
    """The copy was asked to stop."""

    def __init__(self) -> None:
        super().__init__(errno.EINTR, os.strerror(errno.EINTR))


class Copy:
    """One copy of `length` bytes from the start of `src_fd` to the empty file `dst_fd`. May run in any thread."""

    def __init__(self, src_fd: int, dst_fd: int, length: int) -> None:
        self.src_fd = src_fd  # immutable
        self.dst_fd = dst_fd  # immutable
        self.length = length  # immutable
        self.cancelled = False  # set from any thread, read between chunks
        self.copied = 0  # bytes of data moved
        self.reflinked = False  # set by share and run: no data were moved, the extents are shared
        self._may_share = True  # False after it has failed

    def run(self) -> None:
        """Copy. Raises OSError: ENOSPC, EIO, EDQUOT, EINTR when cancelled."""
        st = os.fstat(self.src_fd)
        sparse = st.st_size > _BLOCK and self._has_hole(st.st_size)
        if self.length <= _SMALL and not sparse:
            self._read_write(0, self.length)
            return
        if self.length >= st.st_size and self.share():
            return
        reserve = False
        if self.length >= _WORTH_RESERVING:
            os.posix_fadvise(self.src_fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)  # read further ahead
            reserve = files.filesystem_type(self.dst_fd) == files.EXT4
        reached = 0
        for start, end in self._extents(0, self.length) if sparse else [(0, self.length)]:
            if reserve and end - start >= _WORTH_RESERVING:
                self._reserve(start, end)
            reached = self._copy_range(start, end)
        if reached != self.length:
            os.ftruncate(self.dst_fd, self.length)

    def copy_data(self, start: int, end: int) -> int:
        """Copy the data in a range, but no holes, to where nothing has been written. Returns `end`, or less if the
        source ends before it. Raises as `run`."""
        size = os.fstat(self.src_fd).st_size
        for first, last in self._extents(start, end):
            if self._copy_range(first, last) < last:
                return last - 1
        return min(end, size)

    def _has_hole(self, size: int) -> bool:
        """Whether the source has holes, by lseek(2): st_blocks counts blocks for attributes, too."""
        try:
            return os.lseek(self.src_fd, 0, os.SEEK_HOLE) < size
        except OSError:
            return False  # a filesystem that cannot tell

    def share(self) -> bool:
        """Share all data instead of copying them, if the filesystem can; takes as long for large files as for small
        ones. Precondition: the source is not longer than `length`. Raises OSError: ENOSPC, EIO."""
        if not self._may_share:
            return False
        try:
            files.ficlone(self.dst_fd, self.src_fd)
        except OSError as exc:
            if exc.errno in _NOT_HERE:
                self._may_share = False
                return False
            raise
        self.reflinked = True
        return True

    def _extents(self, at: int, stop: int) -> Iterator[tuple[int, int]]:
        """(start, end) of the data between the holes of a range (lseek(2), SEEK_DATA)."""
        while at < stop:
            try:
                start = os.lseek(self.src_fd, at, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno == errno.ENXIO:
                    return
                yield at, stop  # a filesystem that cannot tell: all of it is data
                return
            end = os.lseek(self.src_fd, start, os.SEEK_HOLE)
            if start < stop:
                yield start, min(end, stop)
            at = end

    def _reserve(self, start: int, end: int) -> None:
        """Have blocks ready for a range (fallocate(2)). ENOSPC, EDQUOT: at once, and not after half of the copy."""
        try:
            files.fallocate(self.dst_fd, 0, start, end - start)
        except OSError as exc:
            if exc.errno not in _NOT_HERE:
                raise

    def _copy_range(self, start: int, end: int) -> int:
        """Copy a range; where the copy ended, before `end` if the source did."""
        at = start
        while at < end:
            self._check()
            try:
                moved = os.copy_file_range(self.src_fd, self.dst_fd, min(_CHUNK, end - at), at, at)
            except OSError as exc:
                if exc.errno not in _NOT_HERE:
                    raise
                moved = 0
            if moved == 0:  # not supported here, or a filesystem that has sizes but no ranges (procfs)
                return self._read_write(at, end)
            at += moved
            self.copied += moved
        return at

    def _read_write(self, start: int, end: int) -> int:
        at = start
        while at < end:
            self._check()
            data = os.pread(self.src_fd, min(_BUFFER, end - at), at)
            if not data:
                break
            view = memoryview(data)
            while view:
                written = os.pwrite(self.dst_fd, view, at)
                at += written
                view = view[written:]
            self.copied += len(data)
        return at

    def _check(self) -> None:
        if self.cancelled:
            raise CancelledError
