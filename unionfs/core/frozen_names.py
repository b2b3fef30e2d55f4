"""The names of a frozen branch, recorded in an attribute of its root directory, so that no directory of it is read.

Nothing changes a frozen branch of a container. With tens of them, as after forks of forks, most system calls of a
lookup ask a branch for a name that it does not have. The record answers these, and gives listings. It holds the type
and inode number of each name, marks included, and which directories have attributes that are marks. It names its
directory by inode number and birth time, so a copy of the branch, which may change, has no record.

A branch with more names than fit into an attribute has none. Knows nothing of the union.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from typing import Any, Final, final

from unionfs import markers

_MOST: Final = 1000  # names; more would make a freeze slow, and on most filesystems not fit into an attribute
_VERSION: Final = b"1"
_KIND_SHIFT: Final = 12
_DIRECTORY: Final = 4  # S_IFDIR >> _KIND_SHIFT


@final
class RecordedDir:
    """A directory of a recorded branch. Immutable once it is read."""

    __slots__ = ("names", "below", "has_marks")

    def __init__(self, has_marks: bool) -> None:
        self.names: dict[bytes, int] = {}  # of all its entries, marks included -> ino << 4 | S_IFMT bits >> 12
        self.below: dict[bytes, RecordedDir] = {}  # its directories
        self.has_marks = has_marks  # whether its attributes must be read for marks


def record(path: str) -> bool:
    """Record the names of the branch at `path`, which nothing changes from now on. Returns False, with nothing
    recorded, where that is not possible: too many names, or a filesystem without the room for them."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            value = _collected(fd)
            if value is not None:
                os.setxattr(fd, markers.NAMES_XATTR, value)
        finally:
            os.close(fd)
    except OSError:
        return False
    return value is not None


def forget(fd: int) -> None:
    """Remove the record of a branch that is going to change. `fd` is its root, may be O_PATH."""
    path = f"/proc/self/fd/{fd}"
    try:
        if markers.NAMES_XATTR in os.listxattr(path):
            os.removexattr(path, markers.NAMES_XATTR)
    except OSError:  # no attributes here, or not our branch
        return


def read(fd: int) -> RecordedDir | None:
    """Return the root of the recorded branch behind a descriptor, which may be O_PATH; None: it is not recorded."""
    try:
        value = os.getxattr(f"/proc/self/fd/{fd}", markers.NAMES_XATTR)
    except OSError:
        return None
    own = _identity(fd)
    if not value.startswith(own):
        return None
    import zlib  # late: few mounts need these modules
    from json import loads

    try:
        return _decoded(loads(zlib.decompress(value[len(own) :])))
    except (ValueError, KeyError, TypeError, IndexError, zlib.error):
        return None


def _identity(fd: int) -> bytes:
    from unionfs.syscalls import statx  # late: it imports ctypes

    birth = statx.extended_stat(fd, b"").birth or (0, 0)
    return b"%s %d %d.%d " % (_VERSION, os.fstat(fd).st_ino, *birth)


def _collected(root_fd: int) -> bytes | None:
    """Return the value of the attribute; None: there are too many names.

    Columns compress better than rows: of the directories, in the order of their levels, the number of entries and
    whether they have marks; of all their entries the names, the types, and the differences of the inode numbers.
    """
    import zlib
    from json import dumps

    names: list[str] = []
    kinds, inos, counts, marked = [], [], [], []
    pending, last = deque([b"."]), 0
    while pending:
        rel = pending.popleft()
        rows, has_marks = _read(root_fd, rel)
        if len(names) + len(rows) > _MOST:
            return None
        counts.append(len(rows))
        marked.append(int(has_marks))
        for name, kind, ino in rows:
            names.append(name.decode("latin-1"))
            kinds.append(kind)
            inos.append(ino - last)
            last = ino
            if kind == _DIRECTORY:
                pending.append(rel + b"/" + name)
    columns = {"counts": counts, "marked": marked, "kinds": kinds, "inos": inos, "names": "/".join(names)}
    return _identity(root_fd) + zlib.compress(dumps(columns, separators=(",", ":")).encode("ascii"), 9)


def _read(root_fd: int, rel: bytes) -> tuple[list[tuple[bytes, int, int]], bool]:
    """Return name, type and inode number of the entries of a directory, and whether its attributes have marks."""
    from unionfs.trees.open_beneath import open_beneath

    fd = open_beneath(root_fd, rel, os.O_RDONLY | os.O_DIRECTORY)
    try:
        has_marks = any(markers.is_private_xattr(name) and name != markers.ORIGIN_XATTR for name in os.listxattr(fd))
        with os.scandir(fd) as entries:
            rows = [(os.fsencode(entry.name), kind_of(entry) >> _KIND_SHIFT, entry.inode()) for entry in entries]
    finally:
        os.close(fd)
    return sorted(rows), has_marks


def kind_of(entry: os.DirEntry[str]) -> int:
    """Return the S_IFMT bits of a directory entry; calls stat(2) only for types that scandir does not tell."""
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_symlink():
        return stat.S_IFLNK
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)


def _decoded(columns: Any) -> RecordedDir:
    names = columns["names"].encode("latin-1").split(b"/") if columns["names"] else []
    entries = zip(names, columns["kinds"], columns["inos"], strict=True)
    root = RecordedDir(bool(columns["marked"][0]))
    pending, at, last = deque([root]), 0, 0
    for count in columns["counts"]:
        here = pending.popleft()
        for _ in range(count):
            name, kind, difference = next(entries)
            last += difference
            here.names[name] = last << 4 | kind
            if kind == _DIRECTORY:
                at += 1
                below = here.below[name] = RecordedDir(bool(columns["marked"][at]))
                pending.append(below)
    return root
