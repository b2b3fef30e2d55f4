"""The hard-link index: maps a copied-up lower inode to its upper inode, so that all its names stay one file.

    work/index/KEY     a hard link to the upper inode that was copied up from a lower inode; KEY is the lower's
                       filesystem, inode number and mtime in hexadecimal
    work/index/KEY.n   a symlink whose target is how many of the lower inode's names still show through, or
                       N=    if all directories of the lowers were searched: N names are outside, or hidden by a lower
                       N?L    while one of them is given to the upper: N - 1 once the upper inode has L links
                       N!P    while one of them is hidden: N - 1 once the upper has something, or a whiteout, at path P

An entry is made for lower files with several names, and for symlinks, fifos, sockets and devices, which cannot carry
an origin mark (xattr(7): user attributes are for files and directories only). Because it is a hard link, the upper
inode's number cannot be used again while the entry is there. Knows the staging directory. Does not know nodes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Set
from typing import Final

from unionfs import markers
from unionfs.core.branch import BranchDir
from unionfs.core.staging import INDEX, PARTIAL, Staging

_COUNT: Final = b".n"
_SEARCHED: Final = b"="
_PATH_MAX: Final = 4000  # bytes of a path that are announced; a symlink holds 4095


class HardLinks:
    """The index in memory and on disk."""

    def __init__(self, staging: Staging, upper: BranchDir) -> None:
        """Read the index. `sweep` is to follow, when the nodes are known. Raises OSError."""
        self._staging = staging
        self.place: BranchDir = staging.index
        self._ino_of: dict[bytes, int] = {}  # key -> upper inode number
        self._key_of: dict[int, bytes] = {}  # the reverse
        self._remaining: dict[bytes, int] = {}  # key -> names of the lower inode that still show through
        self._searched: set[bytes] = set()  # keys whose names were looked for in all lowers: the upper has them
        self.on_change: Callable[[], None] | None = None  # set once; called when names may have begun to be missing
        counts: dict[bytes, bytes] = {}
        for name, _, ino in self.place.scan():
            if name.endswith(_COUNT):
                counts[name[: -len(_COUNT)]] = os.readlink(name, dir_fd=self.place.fd())
            elif name != PARTIAL:
                self._ino_of[name] = ino
        for key, text in counts.items():
            self._remaining[key] = self._read_count(key, text, upper)
            if text.endswith(_SEARCHED):
                self._searched.add(key)
            elif not text.isdigit():  # announced changes are settled now, before links are made or removed again
                self._write(key, b"%d" % self._remaining[key])
        for key, ino in self._ino_of.items():
            self._key_of[ino] = key

    def sweep(self, used: Set[bytes] = frozenset()) -> None:
        """Drop the entries that no name leads to any more, but for those that nodes use."""
        for key in self._ino_of.keys() - used:
            self.drop_if_unused(key)
        for key in [key for key in self._remaining if not self._remaining[key]]:
            if key not in self._ino_of:
                self._unlink(key + _COUNT)
                del self._remaining[key]

    def _read_count(self, key: bytes, target: bytes, upper: BranchDir) -> int:
        target = target.removesuffix(_SEARCHED)
        count, mark, detail = target[:20].partition(b"?")
        if mark and count.isdigit() and detail.isdigit():
            return int(count) - (self._nlink(key) >= int(detail))
        count, mark, path = target.partition(b"!")
        if mark and count.isdigit():
            return int(count) - _is_covered(upper, path)
        return int(target) if target.isdigit() else 0

    def _nlink(self, key: bytes) -> int:
        try:
            return os.stat(key, dir_fd=self.place.fd(), follow_symlinks=False).st_nlink
        except FileNotFoundError:
            return 0

    def upper_ino(self, key: bytes) -> int | None:
        """The upper inode that the lower inode `key` became, or None if it was not copied up."""
        return self._ino_of.get(key)

    def key_of(self, ino: int) -> bytes | None:
        """The lower inode that the upper inode `ino` came from, if it is indexed."""
        return self._key_of.get(ino)

    def remaining(self, key: bytes, default: int) -> int:
        """Return the number of names of the lower inode that still show through; `default` if not counted yet."""
        return self._remaining.get(key, default)

    def incomplete(self) -> list[bytes]:
        """The copied-up lower inodes of which the upper may lack names."""
        found = [key for key, count in self._remaining.items() if count > 0 and key in self._ino_of]
        return [key for key in found if key not in self._searched]

    def add(self, key: bytes, dir_fd: int, name: bytes, ino: int) -> None:
        """Enter the upper inode `ino`, found at (dir_fd, name), as the copy of the lower inode `key`."""
        with contextlib.suppress(FileExistsError):
            os.link(name, key, src_dir_fd=dir_fd, dst_dir_fd=self.place.fd(), follow_symlinks=False)
        self._ino_of[key] = ino
        self._key_of[ino] = key

    def announce(self, key: bytes, lower_nlink: int, upper_nlink: int) -> None:
        """One name of the lower inode is about to be given to the upper, whose inode will then have `upper_nlink`
        links."""
        count = self._remaining.get(key, lower_nlink)
        self._searched.discard(key)
        self._write(key, b"%d?%d" % (count, upper_nlink))
        self._remaining[key] = count

    def announce_hiding(self, key: bytes, lower_nlink: int, up: BranchDir, name: bytes) -> None:
        """One name of the lower inode is about to be hidden by something that comes to `name` in `up` or beside it."""
        count = self._remaining.get(key, lower_nlink)
        path = b"/".join((*up.path_components(), name))
        self._searched.discard(key)
        if len(path) <= _PATH_MAX:
            self._write(key, b"%d!%s" % (count, path))
            self._remaining[key] = count

    def cover(self, key: bytes, lower_nlink: int) -> None:
        """One name of the lower inode does not show through any more: it was hidden, or given to the upper.

        To be called after the change. If writing the count fails, the announcement still leads to the right count.
        """
        count = max(0, self._remaining.get(key, lower_nlink) - 1)
        self._remaining[key] = count
        with contextlib.suppress(OSError):
            self._write(key, b"%d" % count)

    def searched(self, key: bytes) -> None:
        """All lowers were searched for names of the lower inode, and the upper has those that were found."""
        self._searched.add(key)
        with contextlib.suppress(OSError):
            self._write(key, b"%d%s" % (self._remaining[key], _SEARCHED))

    def _write(self, key: bytes, text: bytes) -> None:
        tmp = self._staging.new_name()
        os.symlink(text, tmp, dir_fd=self._staging.fd())
        os.rename(tmp, key + _COUNT, src_dir_fd=self._staging.fd(), dst_dir_fd=self.place.fd())
        if self.on_change is not None:
            self.on_change()

    def drop_if_unused(self, key: bytes) -> bool:
        """Remove the entry if the index is the only name left of its inode and no lower name shows through."""
        if key not in self._ino_of or (self._remaining.get(key, 0) > 0 and key not in self._searched):
            return False
        try:
            st = os.stat(key, dir_fd=self.place.fd(), follow_symlinks=False)
        except FileNotFoundError:
            self._forget(key)
            return True
        if st.st_nlink > 1:
            return False
        self._unlink(key)
        self._forget(key)
        return True

    def withdraw(self, key: bytes) -> None:
        """The copy-up that entered `key` failed: take the entry out again. Earlier counts stay."""
        self._unlink(key)
        ino = self._ino_of.pop(key, None)
        if ino is not None:
            self._key_of.pop(ino, None)

    def remove(self, key: bytes) -> None:
        """Take the entry out: nothing needs it any more."""
        self._unlink(key)
        self._forget(key)

    def take(self, key: bytes, leaf: bytes) -> None:
        """Move the entry's inode to `leaf` in the staging directory: its last name has gone but it is still in use."""
        os.rename(key, leaf, src_dir_fd=self.place.fd(), dst_dir_fd=self._staging.fd())
        self._forget(key)

    def _forget(self, key: bytes) -> None:
        ino = self._ino_of.pop(key, None)
        if ino is not None:
            self._key_of.pop(ino, None)
        self._searched.discard(key)
        if self._remaining.pop(key, None) is not None:
            self._unlink(key + _COUNT)

    def _unlink(self, name: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.place.fd())


def is_complete(work: str) -> bool:
    """Whether, by the index in the work directory `work`, the upper has every name of the files in it, and all of their
    data. Raises OSError."""
    try:
        fd = os.open(
            os.path.join(work, os.fsdecode(INDEX)), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        )
    except FileNotFoundError:
        return True
    try:
        entries = {os.fsencode(name) for name in os.listdir(fd)}
        if PARTIAL in entries:
            return False
        for name in entries:
            if name.endswith(_COUNT) and name[: -len(_COUNT)] in entries:
                with contextlib.suppress(FileNotFoundError):
                    target = os.readlink(name, dir_fd=fd)
                    if target != b"0" and not target.endswith(_SEARCHED):
                        return False
    finally:
        os.close(fd)
    return True


def _is_covered(upper: BranchDir, path: bytes) -> bool:
    """Whether the upper has something at `path`, or a whiteout for it: then the lower's name does not show through."""
    *above, name = path.split(b"/")
    place = upper
    for part in above:
        place = place.child(part)
    for candidate in (name, markers.whiteout_name(name)):
        if candidate is None:
            continue
        try:
            os.stat(candidate, dir_fd=place.fd(), follow_symlinks=False)
        except OSError:
            continue
        return True
    return False
