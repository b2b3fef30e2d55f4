"""Resolve paths of a union to nodes, with one lookup for each name. No path leads out of the union.

A path is relative to the union's root, with or without a leading slash. `..` of the root is the root; the target of a
symlink is a path of the union, too, so no symlink of a branch leads to the host (path_resolution(7), as in a chroot).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final, NamedTuple, NoReturn

from unionfs.api.access import SEARCH, Access
from unionfs.core.attrs import ROOT, Attrs, Entry
from unionfs.core.union import Union as Core

StrPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""A path of a caller; str is converted by os.fsencode, so names that are not UTF-8 are surrogates."""

_LINKS_MAX: Final = 40  # limit of symlinks in one path (path_resolution(7))


class Place(NamedTuple):
    """The last name of a path and its directory. `name` is empty for a path without one: the root, `.` or `..`."""

    parent: Entry
    name: bytes
    entry: Entry | None  # the entry, which may be a symlink; None: it does not exist
    slash: bool  # the path ends in a slash, so it must be a directory
    dots: bytes  # `.` or `..` if `name` is empty; empty for the root
    above: tuple[int, ...]  # node ids of `parent` and the directories above it


def refuse(code: int) -> NoReturn:
    """Raise the OSError for `code`; the caller adds the path."""
    raise OSError(code, os.strerror(code))


def names_of(path: StrPath) -> bytes:
    """The path as bytes. Raises: ValueError for a NUL byte, ENOENT for an empty path."""
    text = os.fsencode(path)
    if b"\0" in text:
        raise ValueError("embedded null byte")
    return text


class Walk:
    """The lookups of one call. `end` forgets all of them."""

    def __init__(self, core: Core, access: Access) -> None:
        self.core = core  # immutable
        self.access = access  # immutable
        self._owed: list[int] = []  # node ids, one for each lookup

    def end(self) -> None:
        """Forget all looked-up nodes except those of `keep`."""
        while self._owed:
            self.core.forget(self._owed.pop())

    def owe(self, entry: Entry) -> Entry:
        """Add a looked-up entry, which is forgotten when this walk ends."""
        self._owed.append(entry.nodeid)
        return entry

    def keep(self, entry: Entry) -> int:
        """Do not forget one of the entries: the caller will."""
        self._owed.remove(entry.nodeid)
        return entry.nodeid

    def root(self) -> Entry:
        """The root directory, which needs no forget."""
        return Entry(ROOT, self.core.getattr(ROOT))

    def child(self, parent: Entry, name: bytes) -> Entry | None:
        """Look `name` up in a directory; None if it does not exist. Raises: ENAMETOOLONG, EACCES."""
        self.access.require(self.core, parent.nodeid, parent.attrs, SEARCH)
        entry = self.core.find(parent.nodeid, name)
        return None if entry is None else self.owe(entry)

    def find(self, path: StrPath, *, follow: bool = True) -> Entry:
        """The entry at a path. Raises: ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG, EACCES."""
        place = self.place(path, follow=follow or names_of(path).endswith(b"/"))
        if place.entry is None:
            refuse(errno.ENOENT)
        return place.entry

    def place(self, path: StrPath, *, follow: bool = False) -> Place:
        """Resolve a path. Its last name need not exist; if it is a symlink, it is followed with `follow`. Raises:
        ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG, EACCES."""
        text = names_of(path)
        if not text:
            refuse(errno.ENOENT)
        chain = [self.root()]  # from the root to where the walk is
        todo = _reversed(text)
        slash = text.endswith(b"/")
        links = 0
        while todo:
            name = todo.pop()
            if name == b"..":
                del chain[max(1, len(chain) - 1) :]
            if name in (b".", b".."):
                if not todo:
                    return _at(chain, b"", chain[-1], slash, name)
                continue
            entry = self.child(chain[-1], name)
            kind = stat.S_IFMT(entry.attrs.mode) if entry is not None else 0
            if kind == stat.S_IFLNK and entry is not None and (todo or follow):
                links += 1
                if links > _LINKS_MAX:
                    refuse(errno.ELOOP)
                target = self.core.readlink(entry.nodeid)
                if target.startswith(b"/"):
                    del chain[1:]
                slash = slash or (not todo and target.endswith(b"/"))
                todo += _reversed(target)
                continue
            if not todo:
                if follow and slash and entry is not None and kind != stat.S_IFDIR:
                    refuse(errno.ENOTDIR)
                return _at(chain, name, entry, slash)
            if entry is None:
                refuse(errno.ENOENT)
            if kind != stat.S_IFDIR:
                refuse(errno.ENOTDIR)
            chain.append(entry)
        return _at(chain, b"", chain[-1], slash)

    def to_make(self, path: StrPath, *, directory: bool = False) -> tuple[Entry, bytes]:
        """The directory and the name for a new object. Raises: EEXIST if the path exists, ENOENT if it
        ends in a slash and the object is no `directory`, EROFS, EACCES (mkdir(2), link(2), symlink(2))."""
        place = self.place(path)
        if place.entry is not None:
            refuse(errno.EEXIST)
        if place.slash and not directory:
            refuse(errno.ENOENT)
        self.require_writable(place.parent)
        return place.parent, place.name

    def require_writable(self, directory: Entry) -> None:
        """Refuse a directory in which this process may not add or remove names. Raises: EROFS, EACCES."""
        if self.core.options.upper is None:
            refuse(errno.EROFS)
        self.access.require(self.core, directory.nodeid, directory.attrs, os.W_OK | SEARCH)

    def attrs(self, entry: Entry) -> Attrs:
        """The current attributes of an entry."""
        return self.core.getattr(entry.nodeid)


def _at(chain: list[Entry], name: bytes, entry: Entry | None, slash: bool, dots: bytes = b"") -> Place:
    return Place(chain[-1], name, entry, slash, dots, tuple(above.nodeid for above in chain))


def _reversed(path: bytes) -> list[bytes]:
    return [name for name in reversed(path.split(b"/")) if name]
