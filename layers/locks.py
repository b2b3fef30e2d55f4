"""Locks between processes: flock(2) on files that only exist to be locked.

A lock ends with its process, however that ends. Waiting is in the caller's hands: `try_lock` never waits, so that an
event loop may ask again.
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
    """A descriptor that holds the lock until it is closed; None when somebody else holds it."""
    fd = store_files.open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    if _is_still(fd, path):
        return fd
    os.close(fd)  # removed between opening and locking: whoever comes next locks another file
    return None


@contextmanager
def locked(path: str, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock, waiting for it."""
    fd = try_lock(path, shared=shared)
    while fd is None:
        time.sleep(_ASK_AGAIN_S)
        fd = try_lock(path, shared=shared)
    try:
        yield
    finally:
        os.close(fd)


def _is_still(fd: int, path: str) -> bool:
    try:
        st = os.stat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (st.st_dev, st.st_ino) == (mine.st_dev, mine.st_ino)
