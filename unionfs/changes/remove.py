"""Remove a directory tree, whatever is in it: deeper than any path, locked by its own modes, other mounts left alone.

Knows descriptors and names only. Follows no symlink. What the process may not remove fails as the system says.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

from unionfs.changes.objects import BENEATH
from unionfs.syscalls import files

_DEPTH: Final = 64  # deeper directories are moved up first, so that descriptors do not run out


def remove_tree(dir_fd: int, name: bytes) -> None:
    """Remove `name`, a file or a directory with all it holds. Fine if it is not there, or somebody else removes it too.

    Raises: EXDEV where another filesystem is mounted inside, EACCES, EPERM and so on as the system reports them.
    """
    try:
        st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(st.st_mode):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=dir_fd)
        return
    try:
        fd = _open(dir_fd, name)
    except FileNotFoundError:
        return
    try:
        count = 0
        while (deeper := _empty(fd, 0)) is not None:
            count = _move_up(*deeper, fd, count)
    finally:
        os.close(fd)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=dir_fd)


def _move_up(from_fd: int, name: bytes, top_fd: int, count: int) -> int:
    """Move a directory that is too deep to the top of the tree, under a number; returns the last number tried."""
    try:
        while True:
            count += 1
            try:
                files.renameat2(from_fd, name, top_fd, b"%d" % count, files.RENAME_NOREPLACE)
            except FileExistsError:
                continue
            except FileNotFoundError:
                pass
            return count
    finally:
        os.close(from_fd)


def remove_path(path: str) -> None:
    """remove_tree() for a path of which only the last name may be hostile."""
    parent, name = os.path.split(os.path.abspath(path))
    fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(fd, os.fsencode(name))
    finally:
        os.close(fd)


def _open(dir_fd: int, name: bytes) -> int:
    """Open a directory for listing, unlocking it if it is ours. EXDEV if another filesystem is mounted there."""
    path_fd = files.openat2(dir_fd, name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, BENEATH | files.RESOLVE_NO_XDEV)
    try:
        if stat.S_IMODE(os.fstat(path_fd).st_mode) & 0o700 != 0o700:
            # One that is not ours stays as it is, and may be readable all the same.
            with contextlib.suppress(PermissionError):
                os.chmod(f"/proc/self/fd/{path_fd}", 0o700)
        return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=path_fd)
    finally:
        os.close(path_fd)


def _empty(fd: int, depth: int) -> tuple[int, bytes] | None:
    """Remove everything in an open directory; None when that is done. A directory that is too deep stops the work.

    It is returned as its name and a descriptor, to be closed by the caller, of the directory it is in.
    """
    os.lseek(fd, 0, os.SEEK_SET)  # or Btrfs shows what was there when it was last listed or opened
    for text in os.listdir(fd):
        name = os.fsencode(text)
        try:
            os.unlink(name, dir_fd=fd)
            continue
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
            if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                raise
        try:
            inner = _open(fd, name)
        except FileNotFoundError:
            continue
        if depth == _DEPTH:
            os.close(inner)
            return os.dup(fd), name
        try:
            deeper = _empty(inner, depth + 1)
        finally:
            os.close(inner)
        if deeper is not None:
            return deeper
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(name, dir_fd=fd)
    return None
