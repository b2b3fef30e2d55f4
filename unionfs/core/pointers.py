"""List the objects of an upper that depend on one lower: objects that were copied up from it, redirects into it,
entries of the hard-link index for its files, files whose data are in it.

They are listed before a lower is removed. The branches are opened again, so that this can run in any thread. Reads
every directory of the upper, and of the lower if the upper has marks of its filesystem. Knows branches and marks.
Changes nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple

from unionfs import markers
from unionfs.core import inodes, marks
from unionfs.core.branch import Branch, BranchDir
from unionfs.core.fds import FdCache
from unionfs.core.marks import proc_path

ORIGIN: Final = "copied up"
REDIRECT: Final = "renamed"
LINK: Final = "hard link"
DATA: Final = "data"

_FDS: Final = 64


class Pointer(NamedTuple):
    """An object of the upper that comes from the lower, or needs it."""

    kind: str  # ORIGIN, REDIRECT, LINK or DATA
    path: bytes  # in the upper; of LINK the key in the hard-link index


def pointers(upper_fd: int, index_fd: int, lower_fd: int) -> Iterator[Pointer]:
    """List the objects of the upper with the root `upper_fd` and the hard-link index `index_fd` that depend on the
    lower with the root `lower_fd`; all are O_PATH descriptors. Objects that are renamed meanwhile may be missed. Raises
    OSError for objects that cannot be read."""
    fds = FdCache(_FDS)
    upper, index, lower = (
        Branch("", fds, writable=writable, opened=proc_path(fd))
        for fd, writable in ((upper_fd, True), (index_fd, True), (lower_fd, False))
    )
    inos: set[int] | None = None
    try:
        for kind, path, ino in _marks(upper, index, lower):
            if kind in (ORIGIN, LINK):
                if inos is None:
                    inos = {ino for _, _, _, ino in _entries(lower)} | {lower.ino}
                if ino in inos:
                    yield Pointer(kind, path)
            else:
                yield Pointer(kind, path)
    finally:
        fds.clear()
        for branch in (upper, index, lower):
            branch.root.held = None


def pointers_at(upper: str, index: str, lower: str) -> list[Pointer]:
    """As `pointers`, for directories by their paths. Raises OSError."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    with ExitStack() as held:
        fds = []
        for path in (upper, index, lower):
            fds.append(os.open(path, flags))
            held.callback(os.close, fds[-1])
        return list(pointers(*fds))


def _entries(branch: Branch) -> Iterator[tuple[BranchDir, bytes, int, int]]:
    """List (directory, name, kind, inode number) of everything in a branch."""
    pending = [branch.root]
    while pending:
        place = pending.pop()
        try:
            found = place.scan()
        except (FileNotFoundError, NotADirectoryError):
            continue  # removed or renamed meanwhile, in an upper that is in use
        for name, kind, ino in found:
            yield place, name, kind, ino
            if kind == stat.S_IFDIR:
                pending.append(place.child(name))
        place.held = place.held if place.parent is None else None


def _marks(upper: Branch, index: Branch, lower: Branch) -> Iterator[tuple[str, bytes, int]]:
    """List (kind, path, inode number in the lower or 0) of all that may point into the lower."""
    for name, kind, _ in index.root.scan():
        if kind != stat.S_IFLNK and name.count(b"-") == 2 and name.startswith(lower.fsid + b"-"):
            with suppress(ValueError):
                yield LINK, name, inodes.ino_of_key(name)
    for place, name, kind, _ in _entries(upper):
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            continue
        with suppress(FileNotFoundError, NotADirectoryError):
            yield from _marks_of(place, name, kind, lower)


def _marks_of(place: BranchDir, name: bytes, kind: int, lower: Branch) -> Iterator[tuple[str, bytes, int]]:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.fd())
    try:
        present = marks.xattr_names(fd)
        origin = inodes.read_origin(fd) if markers.ORIGIN_XATTR in present else None
    finally:
        os.close(fd)
    path = b"/".join((*place.path_components(), name))
    if origin is not None and origin.startswith(lower.fsid + b"-"):
        with suppress(ValueError):
            yield ORIGIN, path, int(origin.rpartition(b"-")[2], 16)
    if kind == stat.S_IFDIR:
        redirect = marks.read_dir_marks(place.child(name)).redirect if present else None
        components = markers.redirect_components(redirect) if redirect is not None else None
        if redirect is not None and _is_in(lower, components or (*place.path_components(), redirect)):
            yield REDIRECT, path, 0
    elif any(mark in present for mark in markers.METACOPY_XATTRS):
        redirect = marks.metacopy_redirect(place, name)
        components = markers.redirect_components(redirect) if redirect is not None else None
        if _is_in(lower, components or (*place.path_components(), redirect or name)):
            yield DATA, path, 0


def _is_in(lower: Branch, components: tuple[bytes, ...]) -> bool:
    """Whether the lower has something at a path."""
    place = lower.root
    for part in components[:-1]:
        place = place.child(part)
    try:
        place.stat_entry(components[-1])
    except OSError:
        return False
    return True
