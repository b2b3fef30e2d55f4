"""Files of the upper whose data are, in whole or in part, still in a lower file: their form on disk, and reading.

    trusted.overlay.metacopy   as the kernel's overlay writes it (overlayfs.rst, "Metadata only copy up"): empty while
                               all data are the lower's. One byte once some may be the upper's own: the kernel's overlay
                               refuses such a file (Linux 6.6 or newer: EIO)
    trusted.overlay.redirect   the path of the lower file in the union of the lowers
    user.unionfs.partial       a Record (unionfs.partial_record), for the union itself

Without the privilege for `trusted.` the first two are `user.`. The upper's file has its full size and is sparse. Below
`limit` a byte is the upper's own where its file has data (lseek(2), SEEK_DATA), and the lower's where it has a hole.
Whole blocks come to the upper, each by one write, so after a crash every page is either the lower's still or
right, whatever has reached the disk; there is no map that could contradict the data.

Knows descriptors. Does not know branches or nodes.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from unionfs import markers
from unionfs.core.mode_notes import AddedBits
from unionfs.partial_record import Before, Record, decode, encode
from unionfs.syscalls import files, statx

SHIFT: Final = 16
"""Binary logarithm of the size of a block in bytes, unless there would be more than BLOCKS_MOST."""
BLOCKS_MOST: Final = 1 << 20

CAPABILITY: Final = b"security.capability"

_REDIRECT: Final = "overlay.redirect"
_METACOPY: Final = "overlay.metacopy"
_PREFIXES: Final = ("trusted.", "user.")
_PAGE: Final = 4096
_SEEK: Final = (files.EXT4, files.XFS, files.BTRFS, files.TMPFS, files.F2FS)


class Marks(NamedTuple):
    """The marks of a partial file of the upper."""

    prefix: str  # "trusted." or "user."
    redirect: bytes | None  # None: the lower file has the same path
    has_own: bool  # some data may be the upper's own
    record: Record | None  # None: the kernel's overlay has made the file


class Partial:
    """Which data of one file of the upper are its own. Changed on the union's thread only, but for `is_settled`."""

    __slots__ = (
        "prefix", "record", "has_redirect", "has_own", "is_lost", "lower_blocks", "limit", "shift", "bits", "missing",
        "is_settled", "is_recorded", "has_just_grown", "is_stuck",
    )  # fmt: skip

    def __init__(self, marks: Marks, size: int, lower_blocks: int) -> None:
        """`size`: of the upper's file; `lower_blocks`: st_blocks of the lower's, -1: it is missing, or another one."""
        self.prefix = marks.prefix  # immutable
        self.record = marks.record
        self.has_redirect = marks.redirect is not None
        self.has_own = marks.has_own
        self.is_lost = lower_blocks < 0  # immutable
        self.lower_blocks = lower_blocks  # immutable
        limit = marks.record.limit if marks.record is not None else size
        self.limit = min(limit, size)  # a truncation is recorded after it was made
        self.shift = shift_for(self.limit)  # immutable
        count = -(-self.limit >> self.shift)
        self.bits = bytearray()  # a byte for each block, 1: the upper's own; filled by `load` and `start`
        self.missing = count  # blocks that are the lower's
        self.is_recorded = True  # whether `limit` is on disk; if not, the file's size says so, and it must not grow
        self.has_just_grown = False  # some blocks were filled, and no change has been made since
        self.is_stuck = False  # set once: completing it, which no change had asked for, has failed
        self.is_settled = False  # set once, from any thread: the marks are gone, all data are on disk

    # -- which bytes are whose -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to count blocks, of which none is the upper's own."""
        self.bits = bytearray(-(-self.limit >> self.shift))
        self.missing = len(self.bits)

    def load(self, fd: int) -> list[tuple[int, int]]:
        """Find out which blocks the upper's file has, by its extents. Returns (start, end) of the holes in blocks that
        it has in part, as a crash may leave them: the caller fills these before the file is used. Raises OSError."""
        self.start()
        mixed: list[tuple[int, int]] = []
        at = 0
        while at < self.limit:
            start = seek(fd, at, os.SEEK_DATA, self.limit)
            if start >= self.limit:
                break
            at = min(os.lseek(fd, start, os.SEEK_HOLE), self.limit)
            self.take(start, at)
            for offset in {start, at - 1}:
                block = offset >> self.shift
                if not self.bits[block]:
                    mixed.append((block << self.shift, min((block + 1) << self.shift, self.limit)))
        return _holes(fd, mixed)

    def take(self, start: int, end: int) -> None:
        """Count the blocks that lie in a range of bytes, as far as they are below `limit`, as the upper's own."""
        first = -(-start >> self.shift)
        last = len(self.bits) if end >= self.limit else end >> self.shift
        if last > first:
            self.missing -= self.bits.count(0, first, last)
            self.bits[first:last] = b"\x01" * (last - first)

    def is_own(self, block: int) -> bool:
        """Whether the upper's file has a block, or the block is beyond `limit`."""
        return block >= len(self.bits) or self.bits[block] == 1

    def bounds(self, block: int) -> tuple[int, int]:
        """Return the range of bytes of a block below `limit`."""
        return block << self.shift, min((block + 1) << self.shift, self.limit)

    def cut(self, size: int) -> None:
        """Record that no data from `size` on are the lower's, since the file was truncated there."""
        if size >= self.limit:
            return
        self.limit = size
        count = -(-size >> self.shift)
        self.missing -= self.bits.count(0, count)
        del self.bits[count:]

    def missing_runs(self, end: int, most: int) -> list[tuple[int, int]]:
        """List the ranges of bytes below `end` that are the lower's, of up to `most` bytes together."""
        found: list[tuple[int, int]] = []
        end = min(end, self.limit)
        block = self.bits.find(0) if self.bits else -1
        while block >= 0 and most > 0 and block << self.shift < end:
            stop = self.bits.find(1, block)
            if stop < 0:
                stop = len(self.bits)
            start = block << self.shift
            until = min(stop << self.shift, end, start + (-(-most >> self.shift) << self.shift))
            found.append((start, until))
            most -= until - start
            block = self.bits.find(0, stop)
        return found

    # -- reading ---------------------------------------------------------------------------------------------------

    def spans(self, offset: int, end: int) -> list[tuple[bool, int, int]]:
        """Divide a range of bytes: (whether the upper's own, start, end). In any thread."""
        found: list[tuple[bool, int, int]] = []
        bits, shift, limit = self.bits, self.shift, self.limit
        at = offset
        while at < end:
            if at >= limit:
                found.append((True, at, end))
                break
            block = at >> shift
            own = bits[block]
            other = bits.find(1 - own, block, ((min(end, limit) - 1) >> shift) + 1)
            stop = min(end, limit) if other < 0 else other << shift
            found.append((own == 1, at, stop))
            at = stop
        return found

    def read(self, fd: int, lower_fd: int, offset: int, size: int) -> bytes:
        """Read up to `size` bytes (pread(2)), fewer at the end of the file only. In any thread. EIO if the lower file
        is missing or has become shorter."""
        parts: list[bytes] = []
        for own, start, end in self.spans(offset, offset + size):
            at = start
            while at < end:
                if not own and lower_fd < 0:
                    raise missing_error()
                data = os.pread(fd if own else lower_fd, end - at, at)
                if not data:
                    if own:
                        return b"".join(parts)
                    raise missing_error()
                parts.append(data)
                at += len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seek(self, fd: int, lower_fd: int, offset: int, whence: int) -> int:
        """Find data or a hole (lseek(2), SEEK_DATA and SEEK_HOLE). ENXIO past the end."""
        size = os.fstat(fd).st_size
        if not 0 <= offset < size:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        page_end = -(-self.limit // _PAGE) * _PAGE  # a filesystem's holes begin with a page
        for own, start, end in self.spans(offset, size):
            at = start
            if own and at < page_end:
                if whence == os.SEEK_DATA:
                    return at
                if at < self.limit or end <= page_end:
                    continue
                at = page_end
            if not own and lower_fd < 0:
                raise missing_error()
            found = seek(fd if own else lower_fd, at, whence, end)
            if found < end:
                return found
        if whence == os.SEEK_DATA:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return size


def missing_error() -> OSError:
    """Return the EIO for data whose lower file is missing or has changed."""
    return OSError(errno.EIO, "the lower file that has the data is missing or has changed")


def shift_for(limit: int) -> int:
    """Return the binary logarithm of the block size for a file of `limit` bytes."""
    shift = SHIFT
    while limit >> shift > BLOCKS_MOST:
        shift += 1
    return shift


def seek(fd: int, at: int, whence: int, end: int) -> int:
    """Return where data or a hole begins, `end` at most (lseek(2)). Past the last data everything is a hole."""
    try:
        return min(os.lseek(fd, at, whence), end)
    except OSError as exc:
        if exc.errno != errno.ENXIO:
            raise
        return end


def _holes(fd: int, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """List the holes of a file within ranges."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(set(ranges)):
        at = start
        while at < end:
            hole = seek(fd, at, os.SEEK_HOLE, end)
            at = seek(fd, hole, os.SEEK_DATA, end)
            if hole < at:
                found.append((hole, at))
    return found


# -- marks ------------------------------------------------------------------------------------------------------------


def read_marks(read: Callable[[str], bytes | None], names: Sequence[str]) -> Marks | None:
    """Return the marks of a file of the upper that has the attributes `names`, of which `read` returns the values;
    None: it has all of its data. Raises OSError; EIO for a record of another version."""
    for prefix in _PREFIXES:
        if prefix + _METACOPY not in names:
            continue
        has_own = read(prefix + _METACOPY) == markers.METACOPY_PARTIAL
        redirect = None
        for each in markers.REDIRECT_XATTRS:
            if redirect is None and each in names:
                redirect = read(each)
        if redirect is not None and not markers.is_sane_redirect(redirect):
            redirect = None
        value = read(markers.PARTIAL_XATTR) if markers.PARTIAL_XATTR in names else None
        if value is None and has_own:
            raise OSError(errno.EIO, "the file has only a part of its data, and no record of the others")
        return Marks(prefix, redirect, has_own, decode(value) if value is not None else None)
    return None


def make(fd: int, redirect: bytes, record: Record) -> Marks | None:
    """Turn an empty file into a file without any data of its own. Returns None, with the file in any state, if its
    filesystem does not distinguish holes from data or has no room for the marks. Raises OSError."""
    size = record.size
    if not tells_holes(fd):
        return None
    os.ftruncate(fd, size)
    if seek(fd, 0, os.SEEK_DATA, size) < size:
        return None
    for prefix in _PREFIXES:
        try:
            os.setxattr(fd, prefix + _METACOPY, b"")
            os.setxattr(fd, prefix + _REDIRECT, redirect)
            os.setxattr(fd, markers.PARTIAL_XATTR, encode(record))
        except PermissionError:
            continue
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE, errno.EOPNOTSUPP):
                return None
            raise
        return Marks(prefix, redirect, False, record)
    return None


def tells_holes(fd: int) -> bool:
    """Whether a file's filesystem is one that is known to distinguish data from holes exactly."""
    return files.filesystem_type(fd) in _SEEK


def write_record(fd: int, record: Record) -> None:
    """Store a record. Raises OSError."""
    _change(fd, functools.partial(os.setxattr, fd, markers.PARTIAL_XATTR, encode(record)))


def set_redirect(fd: int, prefix: str, redirect: bytes) -> None:
    """Let a file find its lower file by this path, whatever its own name is. Raises OSError."""
    _change(fd, functools.partial(os.setxattr, fd, prefix + _REDIRECT, redirect))


def _change(fd: int, change: Callable[[], None]) -> None:
    """Change attributes of a file, also of one of our own whose mode forbids it (xattr(7))."""
    try:
        change()
        return
    except PermissionError as exc:
        st = os.fstat(fd)
        if exc.errno != errno.EACCES or st.st_uid != os.geteuid():
            raise
    with AddedBits(f"/proc/self/fd/{fd}", st, 0o600):
        change()


def mark_own(fd: int, prefix: str, record: Record) -> Record:
    """Mark that the file may have data of its own from now on. Returns the new record. Raises OSError."""
    born, ino = identity(fd)
    record = record._replace(own_ino=ino, born_ns=born)
    write_record(fd, record)
    _change(fd, functools.partial(os.setxattr, fd, prefix + _METACOPY, markers.METACOPY_PARTIAL))
    return record


def identity(fd: int) -> tuple[int, int]:
    """Return (birth time in nanoseconds, inode number) of an open file: no copy of it has the same."""
    birth = statx.extended_stat(fd, b"").birth or (0, 0)
    return birth[0] * 1_000_000_000 + birth[1], os.fstat(fd).st_ino


def remove_marks(fd: int, prefix: str) -> None:
    """Remove the marks of a file all of whose data are its own and on disk. Raises OSError."""
    try:
        _change(fd, functools.partial(os.removexattr, fd, prefix + _METACOPY))  # this one first
    except OSError as exc:
        if exc.errno != errno.ENODATA:  # another thread has removed it
            raise
    for name in (prefix + _REDIRECT, markers.PARTIAL_XATTR):
        with contextlib.suppress(OSError):
            _change(fd, functools.partial(os.removexattr, fd, name))


def put_back(fd: int, before: Before) -> None:
    """Restore the attributes of a file that filling it has changed. Raises OSError."""
    st = os.fstat(fd)
    if st.st_mode & 0o7777 != before.mode:
        os.fchmod(fd, before.mode)
    if before.capability:
        with contextlib.suppress(OSError):  # not ours to set, without CAP_SETFCAP
            os.setxattr(fd, CAPABILITY, before.capability)
    os.utime(fd, ns=(st.st_atime_ns, before.mtime_ns))


def load(part: Partial, fd: int, lower_fd: int) -> None:
    """Find out which data of a file just opened are its own, and complete blocks that a crash has left in part. Raises
    OSError; EIO for a copy that another program has made, which may have filled the holes."""
    record = part.record
    assert record is not None
    if record.own_ino != os.fstat(fd).st_ino or record.born_ns != identity(fd)[0]:
        raise OSError(errno.EIO, "a copy of a file that has a part of its data")
    for start, end in part.load(fd):
        _bring(fd, lower_fd, start, end)
    part.load(fd)
    if record.before is not None:
        put_back(fd, record.before)
        part.record = record._replace(before=None)
        write_record(fd, part.record)


def _bring(fd: int, lower_fd: int, start: int, end: int) -> None:
    """Copy the lower file's data into a hole. Raises OSError, after making it a hole again."""
    data = os.pread(lower_fd, end - start, start) if lower_fd >= 0 else b""
    if len(data) < end - start:
        raise missing_error()
    try:
        if os.pwrite(fd, data, start) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        punch(fd, start, end)
        raise


def punch(fd: int, start: int, end: int) -> None:
    """Make a range a hole again, after a write there has failed: if ext4 has no room, it leaves zeros in a part of the
    range, and they would count as the file's own. Raises OSError."""
    files.fallocate(fd, files.PUNCH_HOLE | files.KEEP_SIZE, start, end - start)
