"""Remove any directory tree: deeper than PATH_MAX, with unwritable directories. Other mounts are not touched.

Knows descriptors and names only. Follows no symlink. Immutable and append-only flags (chattr(1)) are cleared where the
process may do that. If an entry may not be removed, the system's error is raised.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

from unionfs.syscalls import files
from unionfs.trees.open_beneath import open_beneath

_DEPTH_MAX: Final = 16
"""Levels entered at once, one descriptor each. Directories further down are first moved to the top of the tree."""

_CANNOT_MOVE: Final = (errno.EXDEV, errno.ENOSPC, errno.EDQUOT)
"""Errnos of rename(2) into another subvolume of btrfs or on a full disk. Such a directory is emptied in place, with
more descriptors."""

_PROTECTED: Final = files.IMMUTABLE | files.APPEND


def remove_tree(dir_fd: int, name: bytes) -> None:
    """Remove `name`, a file or a directory tree; no error if it is missing or removed meanwhile.

    Needs at most 20 descriptors. Directories that this process owns are made writable first.
    Raises: EXDEV where another filesystem is mounted inside, EACCES, EPERM and so on as the system reports them.
    """
    try:
        st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(st.st_mode):
        _unlink(dir_fd, name)
        return
    try:
        fd = _open(dir_fd, name)
    except FileNotFoundError:
        return
    try:
        _empty_in_place(fd)
    finally:
        os.close(fd)
    _rmdir(dir_fd, name)


def remove_path(path: str) -> None:
    """remove_tree() for a path of which only the last name may be hostile."""
    parent, name = os.path.split(os.path.abspath(path))
    fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(fd, os.fsencode(name))
    finally:
        os.close(fd)


class _Removal:
    """The removal of the content of one directory."""

    def __init__(self, top_fd: int) -> None:
        self._top_fd = top_fd  # immutable
        self._serial = 0  # of the last name given at the top

    def empty(self, fd: int, depth: int) -> bool:
        """Remove the content of an open directory. Returns whether some of it was moved to the top instead."""
        moved = False
        os.lseek(fd, 0, os.SEEK_SET)  # or Btrfs shows what was there when it was last listed or opened
        for text in os.listdir(fd):
            name = os.fsencode(text)
            if _unlink(fd, name):
                continue
            try:
                inner = _open(fd, name)
            except FileNotFoundError:
                continue
            try:
                if depth == _DEPTH_MAX and self._move_up(fd, name):
                    moved = True
                    continue
                if depth < _DEPTH_MAX:
                    moved |= self.empty(inner, depth + 1)
                else:
                    _empty_in_place(inner)
            finally:
                os.close(inner)
            _rmdir(fd, name)
        return moved

    def _move_up(self, fd: int, name: bytes) -> bool:
        """Move a directory to the top under a number. Returns False if that is not possible."""
        while True:
            self._serial += 1
            try:
                files.renameat2(fd, name, self._top_fd, b"%d" % self._serial, files.RENAME_NOREPLACE)
            except FileExistsError:
                continue
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno not in _CANNOT_MOVE:
                    raise
                return False
            return True


def _empty_in_place(fd: int) -> None:
    removal = _Removal(fd)
    while removal.empty(fd, 0):
        pass


def _unlink(dir_fd: int, name: bytes) -> bool:
    """Remove an entry that is not a directory. Returns False if `name` is one."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno == errno.EISDIR:
            return False
        if error.errno != errno.EPERM:
            raise
        if stat.S_ISDIR(os.lstat(name, dir_fd=dir_fd).st_mode):
            return False
        if not _unprotect(dir_fd, name):
            raise
        os.unlink(name, dir_fd=dir_fd)
    return True


def _rmdir(dir_fd: int, name: bytes) -> None:
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except PermissionError:
        if not _unprotect(dir_fd, name):
            raise
        os.rmdir(name, dir_fd=dir_fd)


def _unprotect(dir_fd: int, name: bytes) -> bool:
    """Clear the flags that protect a name and its directory. Returns whether one has been cleared."""
    cleared = _clear_flags(dir_fd)
    mode = os.lstat(name, dir_fd=dir_fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # opening others may act on the machine
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            fd = os.open(name, flags, dir_fd=dir_fd)
            try:
                cleared |= _clear_flags(fd)
            finally:
                os.close(fd)
    return cleared


def _clear_flags(fd: int) -> bool:
    try:
        flags = files.inode_flags(fd)
        if not flags & _PROTECTED:
            return False
        files.set_inode_flags(fd, flags & ~_PROTECTED)
    except OSError:  # the filesystem has no flags, O_PATH, or we may not clear them
        return False
    return True


def _open(dir_fd: int, name: bytes) -> int:
    """Open a directory for listing; our own one is made accessible first. Raises: EXDEV at another mount."""
    try:
        fd = open_beneath(dir_fd, name, os.O_RDONLY | os.O_DIRECTORY, files.RESOLVE_NO_XDEV)
    except PermissionError:
        path_fd = open_beneath(dir_fd, name, os.O_PATH | os.O_DIRECTORY, files.RESOLVE_NO_XDEV)
        try:
            with contextlib.suppress(PermissionError):  # not ours: the next call reports the error
                os.chmod(f"/proc/self/fd/{path_fd}", 0o700)
            return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=path_fd)
        finally:
            os.close(path_fd)
    if os.fstat(fd).st_mode & 0o700 != 0o700:
        with contextlib.suppress(PermissionError):  # a directory of another user may be writable
            os.fchmod(fd, 0o700)
    return fd
