"""Slow operations on data, as work for threads: uncached reads, syncs, truncations, copies.

Knows file descriptors and reply bytes. Does not know nodes, threads or the device.

A read that would wait for a disk must not delay a `stat` of something else, so the first try asks for cached pages
only (preadv2(2), RWF_NOWAIT). Filesystems that do not support that are in memory, or wait for a server (FUSE, NFS):
there a thread reads, so that several reads are under way at once. The bytes are read into one reused buffer, behind the
space for the out header: the answer must be sent before the next READ.

Bytes are copied twice, into that buffer and out of it. Handing pages over by splice(2) was tried on Linux 6.18: at the
128 KiB that read-ahead asks for it took five times the processor time of the copies.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, Protocol

from unionfs.core.partial import Partial, missing_error
from unionfs.fuse.kernel import abi, encode
from unionfs.syscalls import files


def new_room(size: int) -> mmap.mmap:
    """Return a buffer of which only the pages that are used take memory; of a bytearray all do. Forked processes share
    it: of private memory each would get its own copy of a page at the first write only, after Device.touch."""
    return mmap.mmap(-1, size, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)


class HasFd(Protocol):
    """A descriptor that stays open as long as a reference to this object exists."""

    fd: int


class ToRead(HasFd, Protocol):
    """A descriptor to read a file's data from. With `partial`, some of them are in `lower`; None: they are missing."""

    waits: bool | None

    @property
    def partial(self) -> Partial | None: ...

    @property
    def lower(self) -> HasFd | None: ...


Reply = bytes | memoryview
Work = Callable[[], Reply]
"""Work for any thread. The thread sends the answer that the function returns (none if empty)."""


class ThreadTask(NamedTuple):
    """Work for any thread, whose result is then passed to `answer` on the loop's thread, which returns the reply."""

    unique: int  # 0: an error of `work` is no reply
    work: Callable[[], int]
    answer: Callable[[int], Reply | None]
    waits_for_loop: bool = (
        False  # `work` waits in the kernel for answers to other requests: never for the loop's thread
    )


ALLOCATE_INLINE_MAX: Final = 1 << 20
"""Largest FALLOCATE in bytes that is done inline: up to here it takes about as long as starting a thread does."""

COPY_INLINE_MAX: Final = 64 << 10
COPY_MAX: Final = 64 << 20
"""The most bytes that one COPY_FILE_RANGE copies: the program repeats the call for the rest (copy_file_range(2)), and
can be interrupted in between."""

_HEADER: Final = abi.OUT_HEADER.size
_PAGE_MASK: Final = mmap.PAGESIZE - 1
_NO_NOWAIT: Final = (errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of preadv2 on filesystems without RWF_NOWAIT."""
_IN_MEMORY: Final = (files.TMPFS, files.RAMFS)

_pack_header: Final = abi.OUT_HEADER.pack_into
_preadv: Final = os.preadv  # compiled code has no need to look it up at each call
_NOWAIT: Final = os.RWF_NOWAIT


class Reader:
    """Answers READs. Used on the loop's thread only, except for the work it returns."""

    def __init__(self, largest: int) -> None:
        self._largest = largest  # immutable; the most bytes that one reply may carry
        self._reply = memoryview(new_room(_HEADER + largest))  # overwritten by every read
        self._rooms: dict[int, list[memoryview]] = {}  # by size: preadv's target; few sizes occur
        self._servers: dict[int, bool] = {}  # by st_dev: whether a filesystem without RWF_NOWAIT is not in memory

    def read(self, file: ToRead, unique: int, offset: int, size: int) -> Reply | Work:
        """Return the reply if the bytes are in the page cache; otherwise the work to read them in any thread.

        Raises: as preadv2(2); EIO for data in a lower file that is missing.
        """
        size = min(size, self._largest)
        part = file.partial
        if part is not None and part.missing:
            return self._read_partial(file, part, unique, offset, size)
        if file.waits:
            return partial(_read_waiting, file, unique, offset, size)
        room = self._rooms.get(size)
        if room is None:
            room = self._rooms[size] = [self._reply[_HEADER : _HEADER + size]]
        try:
            got = _preadv(file.fd, room, offset, _NOWAIT)
            # A short read that ends at a page's end may be the end of the cached pages instead of the file's.
            if got < size and not (offset + got) & _PAGE_MASK and offset + got < os.fstat(file.fd).st_size:
                return partial(_read_waiting, file, unique, offset, size)
        except BlockingIOError:
            return partial(_read_waiting, file, unique, offset, size)
        except OSError as exc:
            if exc.errno not in _NO_NOWAIT:
                raise
            if file.waits is None and self._waits(file):
                return partial(_read_waiting, file, unique, offset, size)
            got = os.preadv(file.fd, room, offset)
        length = _HEADER + got
        _pack_header(self._reply, 0, length, 0, unique)
        return self._reply[:length]

    def _waits(self, file: ToRead) -> bool:
        """Set and return `file.waits`, for a file on a filesystem without RWF_NOWAIT. Asked once for each open file: on
        FUSE, fstat(2) after a read is a message."""
        device = os.fstat(file.fd).st_dev
        known = self._servers.get(device)
        if known is None:
            known = self._servers[device] = files.filesystem_type(file.fd) not in _IN_MEMORY
        file.waits = known
        return known

    def _read_partial(self, file: ToRead, part: Partial, unique: int, offset: int, size: int) -> Reply | Work:
        """As `read`, for a file of which some data are in a lower file."""
        position = _HEADER
        lower_fd = file.lower.fd if file.lower is not None else -1
        try:
            for own, start, end in part.spans(offset, offset + size):
                if not own and lower_fd < 0:
                    raise missing_error()
                fd = file.fd if own else lower_fd
                got = _preadv(fd, [self._reply[position : position + end - start]], start, _NOWAIT)
                position += got
                if got < end - start:
                    if own and start + got >= os.fstat(fd).st_size:
                        break
                    return partial(_read_partial_waiting, file, part, unique, offset, size)
        except OSError as exc:
            if exc.errno not in _NO_NOWAIT and not isinstance(exc, BlockingIOError):
                raise
            return partial(_read_partial_waiting, file, part, unique, offset, size)
        _pack_header(self._reply, 0, position, 0, unique)
        return self._reply[:position]


def _read_partial_waiting(file: ToRead, part: Partial, unique: int, offset: int, size: int) -> Reply:
    """As `_read_waiting`."""
    try:
        return encode.data(unique, part.read(file.fd, file.lower.fd if file.lower is not None else -1, offset, size))
    except OSError as exc:
        return encode.error(unique, exc.errno or errno.EIO)


def _read_waiting(file: HasFd, unique: int, offset: int, size: int) -> Reply:
    """Read in a thread. Returns the whole reply, an error reply on OSError: the thread has no caller to raise to."""
    try:
        return encode.data(unique, os.pread(file.fd, size, offset))
    except OSError as exc:
        return encode.error(unique, exc.errno or errno.EIO)


def sync_filesystem(file: HasFd, unique: int) -> Reply:
    """SYNCFS, in a thread: write the filesystem of `file` through to its device. Returns the reply."""
    try:
        files.syncfs(file.fd)
    except OSError as exc:
        return encode.error(unique, exc.errno or errno.EIO)
    return encode.empty(unique)


def allocate(file: HasFd, mode: int, offset: int, length: int) -> int:
    """FALLOCATE, in a thread (fallocate(2))."""
    files.fallocate(file.fd, mode, offset, length)
    return 0


def truncate(file: HasFd, size: int) -> int:
    """SETATTR of a size, in a thread (ftruncate(2))."""
    os.ftruncate(file.fd, size)
    return 0


def sync(file: HasFd, unique: int, datasync: bool) -> Reply:
    """FSYNC, in a thread: write the file through to its device. Returns the reply."""
    try:
        (os.fdatasync if datasync else os.fsync)(file.fd)
    except OSError as exc:
        return encode.error(unique, exc.errno or errno.EIO)
    return encode.empty(unique)
