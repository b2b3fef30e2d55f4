"""Directories held by a descriptor: everything in them is reached by relative paths, through no symlink, into no other
mount, however long the path is.

Knows system calls. Does not know layers. Paths are tuples of names.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from unionfs.syscalls import files
from unionfs.trees.open_beneath import open_beneath

Path = tuple[bytes, ...]

KEPT: Final = 48  # descriptors of directories; the usual limit of a process is 1024


class Directories:
    """Descriptors of the directories of one tree, the last used of which stay open. Close it after use."""

    def __init__(self, root_fd: int, keep: int = KEPT) -> None:
        self.root_fd = root_fd  # immutable; belongs to whoever made this
        self._keep = max(keep, 1)
        self._kept: OrderedDict[Path, int] = OrderedDict()  # last used last

    def fd(self, path: Path) -> int:
        """A descriptor of the directory `path`, for use with *at calls until the next call of anything here."""
        if not path:
            return self.root_fd
        found = self._kept.get(path)
        if found is not None:
            self._kept.move_to_end(path)
            return found
        found = self._open(path)
        self._kept[path] = found
        if len(self._kept) > self._keep:
            os.close(self._kept.popitem(last=False)[1])
        return found

    def _open(self, path: Path) -> int:
        """From the parent, when that is open: most lookups go to a directory beside or below the last one."""
        parent = self._kept.get(path[:-1])
        if parent is not None:
            return open_beneath(parent, path[-1], os.O_RDONLY | os.O_DIRECTORY, files.RESOLVE_NO_XDEV)
        return open_beneath(self.root_fd, b"/".join(path), os.O_RDONLY | os.O_DIRECTORY, files.RESOLVE_NO_XDEV)

    def forget(self) -> None:
        """Close all: a directory was moved or removed."""
        while self._kept:
            os.close(self._kept.popitem()[1])


@contextmanager
def directories(root: str | bytes) -> Iterator[Directories]:
    """The directories of the tree at the host path `root`."""
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    opened = Directories(root_fd)
    try:
        yield opened
    finally:
        opened.forget()
        os.close(root_fd)
