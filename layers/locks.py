"""Locks between processes: flock(2) on files that exist only to be locked.

A lock ends when its process ends, also when that is killed. `try_lock` never waits, so that an event loop can use it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from unionfs import store_files

_ASK_AGAIN_S: Final = 0.05


def try_lock(path: str, *, shared: bool = False) -> int | None:
    """Take the lock; returns a descriptor that holds it until closed, or None if another process holds it."""
    fd = store_files.open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    if _is_at(fd, path):
        return fd
    os.close(fd)  # removed between opening and locking: the next process would lock a new file of this name
    return None


@contextmanager
def locked(path: str, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock within the block; waits for it without a limit."""
    fd = try_lock(path, shared=shared)
    while fd is None:
        time.sleep(_ASK_AGAIN_S)
        fd = try_lock(path, shared=shared)
    try:
        yield
    finally:
        os.close(fd)


def _is_at(fd: int, path: str) -> bool:
    try:
        st = os.stat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (st.st_dev, st.st_ino) == (mine.st_dev, mine.st_ino)
