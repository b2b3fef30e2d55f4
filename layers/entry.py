"""The entries of a layer, as tars hold them and directories show them. A pure value."""

from __future__ import annotations

import stat
from typing import Final, NamedTuple

from layers.safe_open import Path

FILE: Final = stat.S_IFREG
DIRECTORY: Final = stat.S_IFDIR
SYMLINK: Final = stat.S_IFLNK
CHARACTER: Final = stat.S_IFCHR
BLOCK: Final = stat.S_IFBLK
FIFO: Final = stat.S_IFIFO
LINK: Final = -1  # a further name of a file
WHITEOUT: Final = -2  # hides a name of the layers beneath
OPAQUE: Final = -3  # hides all names of a directory of the layers beneath

WORDS: Final = {
    FILE: "file",
    DIRECTORY: "directory",
    SYMLINK: "symlink",
    FIFO: "fifo",
    stat.S_IFSOCK: "socket",
    CHARACTER: "device",
    BLOCK: "device",
}
"""File types (S_IFMT) in words, for messages."""


class Entry(NamedTuple):
    """One entry of a layer. `path` of a WHITEOUT or OPAQUE is the hidden path, not the mark's own name."""

    path: Path
    kind: int
    mode: int = 0  # permission bits, with set-id and sticky
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: bytes = b""  # of a SYMLINK
    link: Path = ()  # of a LINK: the file of which it is a further name
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, bytes], ...] = ()
    extents: tuple[tuple[int, int], ...] | None = None  # of a sparse file: (offset, length) of its data, in order
