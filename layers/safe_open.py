"""Access to a directory tree by descriptors: paths are relative, follow no symlink, enter no other mount, and may be
longer than PATH_MAX.

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

OPEN_DIRECTORIES_MAX: Final = 48  # descriptors of directories; the usual limit of a process is 1024


class Directories:
    """Descriptors of the directories of one tree; the most recently used ones stay open. Call `close_all` after use."""

    def __init__(self, root_fd: int, open_max: int = OPEN_DIRECTORIES_MAX) -> None:
        self.root_fd = root_fd  # immutable; closed by the caller
        self._open_max = max(open_max, 1)
        self._open_fds: OrderedDict[Path, int] = OrderedDict()  # last used last

    def fd(self, path: Path) -> int:
        """A descriptor of the directory `path` for *at calls, valid until the next call of a method."""
        if not path:
            return self.root_fd
        found = self._open_fds.get(path)
        if found is not None:
            self._open_fds.move_to_end(path)
            return found
        found = self._open(path)
        self._open_fds[path] = found
        if len(self._open_fds) > self._open_max:
            os.close(self._open_fds.popitem(last=False)[1])
        return found

    def _open(self, path: Path) -> int:
        """Open from the parent if that is open: most lookups go to a directory beside or below the last one."""
        parent = self._open_fds.get(path[:-1])
        if parent is not None:
            return open_beneath(parent, path[-1], os.O_RDONLY | os.O_DIRECTORY, files.RESOLVE_NO_XDEV)
        return open_beneath(self.root_fd, b"/".join(path), os.O_RDONLY | os.O_DIRECTORY, files.RESOLVE_NO_XDEV)

    def close_all(self) -> None:
        """Close all descriptors but the root's; needed when a directory was moved or removed."""
        while self._open_fds:
            os.close(self._open_fds.popitem()[1])


@contextmanager
def directories(root: str | bytes) -> Iterator[Directories]:
    """Open the tree at the host path `root` for the block."""
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    opened = Directories(root_fd)
    try:
        yield opened
    finally:
        opened.close_all()
        os.close(root_fd)
