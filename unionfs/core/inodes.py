"""Stable inode numbers: the st_ino that users see, unchanged by copy-up and remount.

A file shows the number of the object it came from: its own if it was made in the upper, the lower's if it was copied
up. If the branches are on several filesystems, the index of the filesystem goes into the upper byte, so that
numbers do not collide. In a view (core.view) another bit is flipped. Knows branches. Does not know nodes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from unionfs import markers
from unionfs.core.attrs import VIEW_MARK
from unionfs.core.branch import Branch, Stat
from unionfs.core.marks import private_xattr, proc_path

_FS_SHIFT: Final = 56
_INO_MASK: Final = (1 << _FS_SHIFT) - 1


class Numbering(NamedTuple):
    """The numbering of a union, for another process. Immutable."""

    devices: tuple[tuple[int, int], ...]
    filesystems: tuple[tuple[bytes, int], ...]
    kept: tuple[tuple[int, int], ...]


class Inodes:
    """The numbering of one union."""

    def __init__(self, branches: Iterable[Branch], given: Numbering | None = None) -> None:
        self._index_of_dev: dict[int, int] = {}  # st_dev -> filesystem index; changed by `add` only
        self._index_of_fsid: dict[bytes, int] = {}  # f_fsid in hexadecimal -> filesystem index; likewise
        self.kept: dict[int, int] = {}
        """Inode numbers that are shown as other numbers: those of objects that have replaced known ones when the
        branches changed. core.kept_numbers replaces this dictionary."""
        if given is not None:
            self._index_of_dev, self._index_of_fsid = dict(given.devices), dict(given.filesystems)
            self.kept = dict(given.kept)
        self._mark = 0  # bits that are flipped in every number; set once, by `marked`
        for branch in branches:
            self.add(branch)

    def add(self, branch: Branch) -> None:
        """Number the filesystem of one more branch. Numbers are never used again."""
        branch.fs_index = self._index_of_dev.setdefault(branch.dev, len(self._index_of_dev)) & 0xFF
        self._index_of_fsid.setdefault(branch.fsid, branch.fs_index)

    def numbering(self) -> Numbering:
        """Return the values from which another process gives the same numbers."""
        devices, filesystems = self._index_of_dev.items(), self._index_of_fsid.items()
        return Numbering(tuple(devices), tuple(filesystems), tuple(self.kept.items()))

    def marked(self) -> Inodes:
        """Return the numbering of a view: the same with VIEW_MARK flipped."""
        made = Inodes(())
        made._index_of_dev, made._index_of_fsid, made._mark = self._index_of_dev, self._index_of_fsid, VIEW_MARK
        return made

    def shown(self, fs_index: int, ino: int) -> int:
        """Return the number users see for inode `ino` of a filesystem. Never 0: readers of directories skip entries
        with number 0."""
        number = (fs_index << _FS_SHIFT) | ((ino ^ (ino >> _FS_SHIFT)) & _INO_MASK) if fs_index else ino or 1
        if self.kept:
            number = self.kept.get(number, number)
        return number ^ self._mark

    def of_origin(self, origin: bytes) -> int | None:
        """Return the number that an origin mark gives; None if its filesystem is not in this union."""
        fsid, _, ino = origin.partition(b"-")
        index = self._index_of_fsid.get(fsid)
        if index is None:
            return None
        try:
            return self.shown(index, int(ino, 16))
        except ValueError:
            return None


def origin_of(branch: Branch, st: Stat) -> bytes:
    """Return the origin mark for an object of a lower."""
    return b"%s-%x" % (branch.fsid, st.st_ino)


def link_key(branch: Branch, st: Stat) -> bytes:
    """Return the key of a lower inode in the hard-link index: filesystem, inode number and mtime. The mtime keeps a
    reused inode number of a replaced lower from matching."""
    return b"%s-%x-%x" % (branch.fsid, st.st_ino, st.st_mtime_ns & 0xFFFFFFFFFFFFFFFF)


def origin_of_key(key: bytes) -> bytes:
    """Return the origin mark that belongs to a key of the hard-link index."""
    return key.rpartition(b"-")[0]


def ino_of_key(key: bytes) -> int:
    """The lower's inode number in a key of the hard-link index."""
    return int(key.split(b"-")[1], 16)


def read_origin(fd: int) -> bytes | None:
    """Read the origin mark of the upper's object behind an O_PATH descriptor; None if it has none."""
    return private_xattr(proc_path(fd), markers.ORIGIN_XATTR, on_upper=True)
