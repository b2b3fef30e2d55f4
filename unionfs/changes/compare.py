"""Find the differences of two objects: attributes, extended attributes, bytes.

Knows branches. Does not know which of the two is newer or what the difference means.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

from unionfs.changes.objects import Branches, BranchPath, Object

_CHUNK: Final = 1 << 20  # bytes compared at once

TYPE: Final = "type"
CONTENT: Final = "content"
MODE: Final = "mode"
OWNER: Final = "owner"
XATTRS: Final = "xattrs"
MTIME: Final = "mtime"
"""The words of Change.what."""


def differences(branches: Branches, new: Object, old: Object) -> tuple[str, ...]:
    """The differences of `new` from `old`; empty if there are none. Bytes of files are compared if all else is
    equal."""
    if new.kind != old.kind:
        return (TYPE,)
    if new.is_dir and (new.sealed or old.sealed):
        return ()  # the shown attributes of a sealed directory are not its own
    found = []
    if not _same_content(branches, new, old):
        found.append(CONTENT)
    if new.kind != stat.S_IFLNK and stat.S_IMODE(new.mode) != stat.S_IMODE(old.mode):
        found.append(MODE)
    if (new.uid, new.gid) != (old.uid, old.gid):
        found.append(OWNER)
    if new.place != old.place and branches.xattrs(new.place) != branches.xattrs(old.place):
        found.append(XATTRS)
    if new.mtime_ns != old.mtime_ns:
        found.append(MTIME)
    return tuple(found)


def _same_content(branches: Branches, new: Object, old: Object) -> bool:
    if new.kind in (stat.S_IFCHR, stat.S_IFBLK):
        return new.rdev == old.rdev
    if new.kind == stat.S_IFLNK:
        return new.place == old.place or branches.readlink(new.place) == branches.readlink(old.place)
    if new.kind != stat.S_IFREG:
        return True
    if new.size != old.size:
        return False
    if new.data == old.data or (new.dev, new.ino) == (old.dev, old.ino):
        return True
    return _same_bytes(branches, new.data, old.data)


def _same_bytes(branches: Branches, new: BranchPath, old: BranchPath) -> bool:
    """Whether two files have the same bytes. Files that cannot be read count as different."""
    with contextlib.ExitStack() as opened:
        fds = []
        for place in (new, old):
            try:
                fd = branches.open_data(place)
            except PermissionError:
                return False
            opened.callback(os.close, fd)
            fds.append(fd)
        return _equal(*fds)


def _equal(first: int, second: int) -> bool:
    """Compare two open files of the same size; common holes are not read."""
    offset = 0
    while True:
        starts = [start for start in (_next_data(first, offset), _next_data(second, offset)) if start is not None]
        if not starts:
            return True
        offset = min(starts)
        left, right = os.pread(first, _CHUNK, offset), os.pread(second, _CHUNK, offset)
        if left != right:
            return False
        if not left:
            return True
        offset += len(left)


def _next_data(fd: int, offset: int) -> int | None:
    """The offset of the next data from `offset` on; None if a hole follows to the end; `offset` if that is unknown."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return None
        if exc.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return offset
        raise
