"""Directories held by a descriptor: everything in them is reached by relative paths, through no symlink, into no other
mount, however long the path is.

Knows system calls. Does not know layers. Paths are tuples of names.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from unionfs.syscalls import files

Path = tuple[bytes, ...]

_BENEATH: Final = (
    files.RESOLVE_BENEATH | files.RESOLVE_NO_SYMLINKS | files.RESOLVE_NO_MAGICLINKS | files.RESOLVE_NO_XDEV
)
_CHUNK_MAX: Final = 3500  # bytes of a path given to one openat2(2); PATH_MAX is 4096 and a name may have 255
_RACES_MAX: Final = 20  # openat2(2) answers EAGAIN while somebody renames on the way
KEPT: Final = 48  # descriptors of directories; the usual limit of a process is 1024


def open_beneath(root_fd: int, path: Path, flags: int) -> int:
    """Open what is at `path` beneath a directory.

    Raises: ELOOP at a symlink on the way, ENOTDIR, ENOENT, EXDEV at a mountpoint.
    """
    rel = b"/".join(path)
    at = root_fd
    try:
        while len(rel) > _CHUNK_MAX:
            cut = rel.rindex(b"/", 0, _CHUNK_MAX)
            deeper = _openat2(at, rel[:cut], os.O_PATH | os.O_DIRECTORY)
            if at != root_fd:
                os.close(at)
            at, rel = deeper, rel[cut + 1 :]
        return _openat2(at, rel or b".", flags | os.O_NOFOLLOW)
    finally:
        if at != root_fd:
            os.close(at)


def _openat2(dir_fd: int, rel: bytes, flags: int) -> int:
    for attempt in range(_RACES_MAX):
        try:
            return files.openat2(dir_fd, rel, flags, _BENEATH)
        except OSError as error:
            if error.errno != errno.EAGAIN or attempt == _RACES_MAX - 1:
                raise
    raise AssertionError("unreachable")


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
            return _openat2(parent, path[-1], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        return open_beneath(self.root_fd, path, os.O_RDONLY | os.O_DIRECTORY)

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


def remove_tree(dir_fd: int, name: bytes) -> None:
    """Remove `name` from a directory with all that is in it; a name that is not there is fine.

    However deep it is: each directory in it is first moved to the top. Nothing may use the tree meanwhile.
    Raises: OSError as the disk does, with some of the tree already gone.
    """
    try:
        st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(st.st_mode):
        os.unlink(name, dir_fd=dir_fd)
        return
    top = _open_to_remove(dir_fd, name)
    try:
        moved = 0
        while True:
            inner = _empty_of_files(top)
            if not inner:
                break
            for entry in inner:
                fd = _open_to_remove(top, entry)
                try:
                    for deeper in _empty_of_files(fd):
                        moved += 1
                        _move_up(fd, deeper, top, moved)
                finally:
                    os.close(fd)
                os.rmdir(entry, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=dir_fd)


def _move_up(fd: int, name: bytes, top: int, number: int) -> None:
    for attempt in range(100):
        try:
            files.renameat2(fd, name, top, b".moved-%d-%d" % (number, attempt), files.RENAME_NOREPLACE)
            return
        except FileExistsError:
            continue
        except PermissionError:
            # Renaming a directory changes its "..", which needs write permission on it.
            os.close(_open_to_remove(fd, name))
    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(name))


def _open_to_remove(dir_fd: int, name: bytes) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    if os.geteuid() != 0:
        with suppress(OSError):  # what follows says what is wrong
            files.chmod_nofollow(dir_fd, name, 0o700)
    return os.open(name, flags, dir_fd=dir_fd)


def _empty_of_files(fd: int) -> list[bytes]:
    """Remove what is not a directory; the directories that are left."""
    inner = []
    os.lseek(fd, 0, os.SEEK_SET)  # or Btrfs shows what was there when it was last listed or opened
    with os.scandir(fd) as found:
        listed = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in found]
    for name, is_dir in listed:
        if is_dir:
            inner.append(name)
        else:
            os.unlink(name, dir_fd=fd)
    return inner
