"""Record modes that are changed for a moment, so that the next daemon restores them if this one dies in that moment.

    work/live-PID-XXXX/mINO    a symlink: the mode in octal, "upper" or "work", and the object's path below that

An object that is moved meanwhile has a second one, nINO, with its other path. The paths are those of descriptors
(readlink(2) of /proc/self/fd), so no caller needs to know where an object is. A note that cannot be written is left
out: the disk may be full.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from unionfs.core.branch import Branch, Stat

_LETTERS: Final = (b"m", b"n")
_UPPER: Final = b"upper"
_WORK: Final = b"work"


class Place(NamedTuple):
    """The directory with the notes of one union. Immutable."""

    fd: int  # of the directory; the union's
    upper: Branch
    work: Branch


class Note(NamedTuple):
    """One note. Immutable."""

    leaf: bytes  # its name
    ino: int  # of the object
    mode: int
    branch: Branch
    components: list[bytes]  # of the object's path below the branch's root


class AddedBits:
    """Context in which the object at `path`, in /proc/self/fd, with attributes `st`, also has the permission `bits`.
    `moved_to`: its second path, if it is moved within the context."""

    def __init__(self, path: str, st: Stat, bits: int, moved_to: bytes = b"") -> None:
        self._path = path
        self._ino = st.st_ino
        self._mode = stat.S_IMODE(st.st_mode)
        self._bits = bits
        self._moved_to = moved_to
        self._notes: list[tuple[int, bytes]] = []

    def __enter__(self) -> None:
        self._notes = write(self._path, self._ino, self._mode, self._moved_to)
        os.chmod(self._path, self._mode | self._bits)

    def __exit__(self, *exc: object) -> None:
        os.chmod(self._path, self._mode)
        remove(self._notes)


_places: Final[list[Place]] = []  # of all unions of this process


def begin(place: Place) -> None:
    """Begin to note modes of a union's objects."""
    _places.append(place)


def end(fd: int) -> None:
    """Stop noting modes of a union's objects: its directory is about to be closed."""
    _places[:] = [place for place in _places if place.fd != fd]


def write(path: str, ino: int, mode: int, moved_to: bytes = b"") -> list[tuple[int, bytes]]:
    """Note the mode of the object behind a path in /proc/self/fd; `moved_to`: a second path of it. Returns the notes
    for `remove`."""
    made: list[tuple[int, bytes]] = []
    with suppress(OSError):
        for letter, there in zip(_LETTERS, (os.readlink(os.fsencode(path)), moved_to), strict=True):
            for place in _places:
                for word, branch in ((_UPPER, place.upper), (_WORK, place.work)):
                    top = os.readlink(b"/proc/self/fd/%d" % branch.root.fd()).rstrip(b"/")
                    if there == top or there.startswith(top + b"/"):
                        leaf = b"%s%x" % (letter, ino)
                        os.symlink(b"%o %s %s" % (mode, word, there[len(top) + 1 :]), leaf, dir_fd=place.fd)
                        made.append((place.fd, leaf))
    return made


def remove(notes: list[tuple[int, bytes]]) -> None:
    """Remove notes, since the mode has been restored."""
    for fd, leaf in notes:
        with suppress(OSError):
            os.unlink(leaf, dir_fd=fd)


def read(place: Place) -> list[Note]:
    """Return the notes that a daemon that has died has left. Raises OSError."""
    found = []
    for name in os.listdir(place.fd):
        leaf = os.fsencode(name)
        if leaf[:1] not in _LETTERS:
            continue
        with suppress(OSError, ValueError):
            mode, word, path = os.readlink(leaf, dir_fd=place.fd).split(b" ", 2)
            branch = place.upper if word == _UPPER else place.work
            found.append(
                Note(leaf, int(leaf[1:], 16), int(mode, 8), branch, [each for each in path.split(b"/") if each])
            )
    return found
