"""Work on an upper directory of our own whose mode forbids it.

Copy-up puts a file into a directory of mode 0555, rmdir looks whether one of mode 0000 is empty, a mark has to be
read: the kernel asked nothing of the directory's owner for that. Root and user-namespace root need nothing of
this.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from typing import Final

from unionfs.core.branch import BranchDir
from unionfs.syscalls import files

_OWNER: Final = 0o700


class Loosened:
    """Within this context an upper directory can be read, searched and written by us, its owner, whatever its mode
    says."""

    def __init__(self, place: BranchDir) -> None:
        self.place = place
        self.mode: int | None = None  # the mode to restore

    def __enter__(self) -> None:
        if not self.place.branch.writable or os.geteuid() == 0:
            return
        st = os.fstat(self.place.fd()) if self.place.branch.overrides is not None else self.place.stat()
        if st.st_uid == os.geteuid() and st.st_mode & _OWNER != _OWNER:
            self.mode = stat.S_IMODE(st.st_mode)
            os.chmod(f"/proc/self/fd/{self.place.fd()}", self.mode | _OWNER)

    def __exit__(self, *exc: object) -> None:
        if self.mode is not None:
            os.chmod(f"/proc/self/fd/{self.place.fd()}", self.mode)


class LoosenedChain:
    """As `Loosened`, for an upper directory and every directory above it: the way to a file that was opened before
    one of them lost its search permission."""

    def __init__(self, place: BranchDir) -> None:
        self.chain: list[BranchDir] = []  # from the root down
        at: BranchDir | None = place
        while at is not None:
            self.chain.append(at)
            at = at.parent
        self.chain.reverse()
        self.stack = ExitStack()

    def __enter__(self) -> None:
        try:
            for place in self.chain:
                self.stack.enter_context(Loosened(place))
        except BaseException:
            self.stack.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self.stack.close()


class _MovableEntry:
    """Within this context a directory of our own can be moved, whatever its mode says; anything else can anyway."""

    def __init__(self, place: BranchDir, name: bytes) -> None:
        self.fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.fd())
        self.mode: int | None = None  # the mode to restore

    def __enter__(self) -> None:
        st = os.fstat(self.fd)
        if stat.S_ISDIR(st.st_mode) and st.st_uid == os.geteuid() and not st.st_mode & stat.S_IWUSR:
            self.mode = stat.S_IMODE(st.st_mode)
            os.chmod(f"/proc/self/fd/{self.fd}", self.mode | stat.S_IWUSR)

    def __exit__(self, *exc: object) -> None:
        if self.mode is not None:
            os.chmod(f"/proc/self/fd/{self.fd}", self.mode)
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
        movable.enter_context(_MovableEntry(place, name))
        if flags & files.RENAME_EXCHANGE:
            movable.enter_context(_MovableEntry(new_place, new_name))
        files.renameat2(place.fd(), name, new_place.fd(), new_name, flags)


def read_xattr_as_owner(path: str, name: str) -> bytes:
    """Read a user attribute of an object of our own whose mode forbids it. Raises EACCES if it is not ours, ENODATA."""
    st = os.stat(path)
    if st.st_uid != os.geteuid() or stat.S_ISLNK(st.st_mode):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    mode = stat.S_IMODE(st.st_mode)
    os.chmod(path, mode | stat.S_IRUSR)
    try:
        return os.getxattr(path, name)
    finally:
        os.chmod(path, mode)
