"""Access our own upper objects whose mode forbids it: missing owner bits are set first and removed again.

Copy-up places a file in a directory of mode 0555, rmdir checks whether a directory of mode 0000 is empty, a mark is
read from an unreadable object, a file is opened again that was opened before its mode changed: the kernel did not
check the owner's permission for that, or checked it before. Root, also of a user namespace, needs none of this
(capabilities(7), CAP_DAC_OVERRIDE). If the daemon is killed meanwhile, `restore` gives the objects their modes again.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack, suppress
from typing import Final

from unionfs.core import mode_notes
from unionfs.core.branch import BranchDir
from unionfs.core.mode_notes import AddedBits
from unionfs.syscalls import files

_OWNER: Final = stat.S_IRWXU


class OwnerOverride:
    """Context in which our own upper directory can be read, searched and written, with any mode.

    `with_parents`: and every directory above it in its branch, for a file that was opened before one of them lost its
    search permission. Does nothing to lowers, to directories of other owners, and as root.
    """

    def __init__(self, place: BranchDir, *, with_parents: bool = False) -> None:
        self._places = [place]  # from the top down
        at = place.parent if with_parents else None
        while at is not None:
            self._places.append(at)
            at = at.parent
        self._places.reverse()
        self._added: list[AddedBits] = []  # in the order they were entered

    def __enter__(self) -> None:
        euid = os.geteuid()
        if euid == 0 or not self._places[-1].branch.writable:
            return
        try:
            for place in self._places:
                st = os.fstat(place.fd()) if place.branch.overrides is not None else place.stat()
                if st.st_uid == euid and st.st_mode & _OWNER != _OWNER:
                    added = AddedBits(f"/proc/self/fd/{place.fd()}", st, _OWNER)
                    added.__enter__()
                    self._added.append(added)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exc: object) -> None:
        while self._added:
            self._added.pop().__exit__()


class _MovableEntry:
    """Context in which our own directory can be moved, with any mode; other objects can always be moved."""

    def __init__(self, place: BranchDir, name: bytes, new_place: BranchDir, new_name: bytes) -> None:
        self._new_place = new_place  # immutable
        self._new_name = new_name  # immutable
        self.fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.fd())
        self.added: AddedBits | None = None

    def __enter__(self) -> None:
        st = os.fstat(self.fd)
        if stat.S_ISDIR(st.st_mode) and st.st_uid == os.geteuid() and not st.st_mode & stat.S_IWUSR:
            moved_to = os.readlink(b"/proc/self/fd/%d" % self._new_place.fd()) + b"/" + self._new_name
            self.added = AddedBits(f"/proc/self/fd/{self.fd}", st, stat.S_IWUSR, moved_to)
            self.added.__enter__()

    def __exit__(self, *exc: object) -> None:
        if self.added is not None:
            self.added.__exit__()
        os.close(self.fd)


def rename(place: BranchDir, name: bytes, new_place: BranchDir, new_name: bytes, flags: int = 0) -> None:
    """renameat2(2) between two directories of the upper's filesystem, of an entry that the caller may move.

    The kernel wants to write a directory that gets another parent. It has checked that for the caller's rename, but not
    for a move to or from the work directory, which only we make.
    """
    try:
        files.renameat2(place.fd(), name, new_place.fd(), new_name, flags)
        return
    except PermissionError as exc:
        if exc.errno != errno.EACCES or os.geteuid() == 0:
            raise
    with ExitStack() as movable:
        movable.enter_context(_MovableEntry(place, name, new_place, new_name))
        if flags & files.RENAME_EXCHANGE:
            movable.enter_context(_MovableEntry(new_place, new_name, place, name))
        files.renameat2(place.fd(), name, new_place.fd(), new_name, flags)


def read_xattr_as_owner(path: str, name: str) -> bytes:
    """Read a user attribute of an object of our own whose mode forbids it. Raises EACCES if it is not ours, ENODATA."""
    st = os.stat(path)
    if st.st_uid != os.geteuid() or stat.S_ISLNK(st.st_mode):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    with AddedBits(path, st, stat.S_IRUSR):
        return os.getxattr(path, name)


def open_as_owner(place: BranchDir, leaf: bytes, flags: int) -> int:
    """Open a regular upper file of our own whose mode forbids it. Raises EACCES if it is none.

    The kernel has checked the user's permission already: when the mode still allowed it, or when the file was made by
    that open (open(2): the mode of a new file applies to later opens only). We open anew after closing a descriptor.
    """
    fd = place.fd()
    st = os.stat(leaf, dir_fd=fd, follow_symlinks=False)
    if not place.branch.writable or st.st_uid != os.geteuid() or not stat.S_ISREG(st.st_mode):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fsdecode(leaf))
    path_fd = os.open(leaf, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    try:
        path = f"/proc/self/fd/{path_fd}"
        with AddedBits(path, st, stat.S_IRUSR | stat.S_IWUSR):
            return os.open(path, flags & ~os.O_NOFOLLOW)
    finally:
        os.close(path_fd)


def restore(place: mode_notes.Place) -> None:
    """Restore the modes that a dead daemon had changed for a moment. Can be repeated. Raises OSError."""
    for note in mode_notes.read(place):
        *above, leaf = note.components or [b"."]
        at = note.branch.root
        for name in above:
            at = at.child(name)
        with suppress(FileNotFoundError, NotADirectoryError), OwnerOverride(at, with_parents=True):
            st = os.stat(leaf, dir_fd=at.fd(), follow_symlinks=False)
            if st.st_ino == note.ino and not stat.S_ISLNK(st.st_mode):
                files.chmod_nofollow(at.fd(), leaf, note.mode)
        mode_notes.remove([(place.fd, note.leaf)])
