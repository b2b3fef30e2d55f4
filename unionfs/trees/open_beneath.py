"""Open a file by its path beneath a directory descriptor, so that nothing in the tree leads out of it.

`open_beneath` follows no symlink. `open_in_root` follows symlinks as a process would whose root directory the
descriptor is. Both work for paths longer than PATH_MAX or for `..`, respectively.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Final

from unionfs.syscalls import files

_CHUNK_MAX: Final = 3500  # bytes of a path given to one openat2(2); PATH_MAX is 4096 and a name may have 255
_ATTEMPTS_MAX: Final = 1000  # openat2(2) answers EAGAIN to a path with .. while anything on the machine is renamed
_ATTEMPTS_AT_ONCE: Final = 20
_PAUSE_S: Final = 0.001
_GONE: Final = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE}

_BENEATH: Final = files.RESOLVE_BENEATH | files.RESOLVE_NO_SYMLINKS | files.RESOLVE_NO_MAGICLINKS
_DIR_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_beneath(root_fd: int, rel: bytes, flags: int, resolve: int = 0) -> int:
    """Open what is at `rel` beneath a directory, however long the path is; the directory itself when it is empty.

    `resolve` adds RESOLVE_* bits of openat2(2). A symlink at the last name is not followed: O_PATH opens it.
    Raises: ELOOP at a symlink on the way, ENOTDIR, ENOENT, EACCES; EXDEV at a mountpoint with RESOLVE_NO_XDEV.
    """
    if len(rel) <= _CHUNK_MAX:
        return _open(root_fd, rel or b".", flags | os.O_NOFOLLOW, _BENEATH | resolve)
    at = root_fd
    try:
        while len(rel) > _CHUNK_MAX:
            cut = rel.rindex(b"/", 0, _CHUNK_MAX)
            deeper = _open(at, rel[:cut], os.O_PATH | os.O_DIRECTORY, _BENEATH | resolve)
            if at != root_fd:
                os.close(at)
            at = deeper
            rel = rel[cut + 1 :]
        return _open(at, rel, flags | os.O_NOFOLLOW, _BENEATH | resolve)
    finally:
        if at != root_fd:
            os.close(at)


def open_in_root(root_fd: int, path: str | bytes, flags: int = os.O_PATH) -> int:
    """Open `path` as a process whose root directory is `root_fd` would, symlinks followed. Raises: OSError."""
    return _retry(root_fd, os.fsencode(path), flags, files.RESOLVE_IN_ROOT | files.RESOLVE_NO_MAGICLINKS)


def is_gone(error: OSError) -> bool:
    """Whether opening a name that was listed before failed because another process has removed or replaced it."""
    return error.errno in _GONE


def _open(dir_fd: int, rel: bytes, flags: int, resolve: int) -> int:
    try:
        return _retry(dir_fd, rel, flags, resolve)
    except OSError as exc:
        # Before Linux 5.6, or refused by a filter of system calls that does not know openat2(2).
        if exc.errno not in (errno.ENOSYS, errno.EPERM) or resolve & files.RESOLVE_NO_XDEV:
            raise
    return _open_by_names(dir_fd, rel.split(b"/"), flags)


def _open_by_names(dir_fd: int, names: list[bytes], flags: int) -> int:
    at = dir_fd
    try:
        for name in names[:-1]:
            deeper = os.open(name, _DIR_FLAGS, dir_fd=at)
            if at != dir_fd:
                os.close(at)
            at = deeper
        return os.open(names[-1], flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    finally:
        if at != dir_fd:
            os.close(at)


def _retry(dir_fd: int, path: bytes, flags: int, resolve: int) -> int:
    for attempt in range(_ATTEMPTS_MAX):
        try:
            return files.openat2(dir_fd, path, flags, resolve)
        except OSError as exc:
            if exc.errno != errno.EAGAIN:
                raise
        if attempt >= _ATTEMPTS_AT_ONCE:
            time.sleep(_PAUSE_S)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), os.fsdecode(path))
