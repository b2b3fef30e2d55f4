"""Write files through to their device, by syncfs(2) in a thread, while further files are made.

A last syncfs(2) after all of them takes less time then. Knows only a descriptor.
"""

from __future__ import annotations

import threading
from typing import Final

from unionfs.syscalls import files

_FILES: Final = 3000  # made since the last sync began; a sync of fewer takes no less time in all


class EarlySync:
    """Begins a sync after every so many files, unless one is running. Used by one thread."""

    def __init__(self, fd: int | None) -> None:
        """`fd`: on the filesystem, open until `wait`. None: no sync is wanted."""
        self._fd = fd  # immutable
        self._made = 0  # files since the last sync began
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None  # set by the thread, read when it has ended

    def made_file(self) -> None:
        """Count a file. Raises OSError of an earlier sync."""
        self._made += 1
        if self._made < _FILES or self._fd is None or (self._thread is not None and self._thread.is_alive()):
            return
        self.wait()
        self._made = 0
        self._thread = threading.Thread(target=self._sync, args=(self._fd,))
        self._thread.start()

    def wait(self) -> None:
        """Wait for a sync that is running. Raises OSError of a sync: EIO, ENOSPC, EDQUOT."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error

    def _sync(self, fd: int) -> None:
        try:
            files.syncfs(fd)
        except OSError as error:
            self._error = error
