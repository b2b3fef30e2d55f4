"""The lock around a union's core, which allows one call at a time, and the reasons for which it refuses calls.

Only one thread at a time may use the core. A call from another thread waits; a call within another call of the same
thread (a signal handler, a finalizer) is refused, because the core's state is inconsistent then. If a call ends with
another exception than OSError, such as KeyboardInterrupt, the disk is as after a crash, but the core's memory
may be inconsistent: every later call is refused.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from types import TracebackType

from unionfs.core.union import Union as Core


class Guard:
    """`with guard as core:` is one call. Raises: ValueError if the union is closed, RuntimeError for a nested call and
    in a forked child, EIO after an interrupted call."""

    def __init__(self, core: Core) -> None:
        self._core = core  # immutable
        self._lock = threading.Lock()
        self._holder = 0  # the thread that is in a call
        self._pid = os.getpid()  # immutable
        self._interrupted = False  # set once
        self._unpaid: deque[int] = deque()  # node ids of closed files, forgotten with the next call
        self.closed = False  # set once, by `close`

    def __enter__(self) -> Core:
        if os.getpid() != self._pid:
            raise RuntimeError(f"this union belongs to process {self._pid}, which made it")
        me = threading.get_ident()
        if self._holder == me:
            raise RuntimeError("called from within another call of the same union")
        self._lock.acquire()
        self._holder = me
        try:
            if self.closed:
                raise ValueError("the union is closed")
            if self._interrupted:
                raise OSError(errno.EIO, "a call was interrupted: open the union again")
            self._pay()
        except BaseException:
            self._holder = 0
            self._lock.release()
            raise
        return self._core

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, (OSError, ValueError)):
            self._interrupted = True
        self._holder = 0
        self._lock.release()

    def forget(self, nodeid: int) -> None:
        """Record that a file of this node was closed. Never raises or waits: finalizers call it, in any thread."""
        self._unpaid.append(nodeid)
        if not self._lock.acquire(blocking=False):
            return  # the next call does it
        self._holder = threading.get_ident()
        try:
            if os.getpid() == self._pid and not self.closed and not self._interrupted:
                self._pay()
        finally:
            self._holder = 0
            self._lock.release()

    def close(self) -> None:
        """Close the core, once. Not in a forked child: the files on disk belong to the parent."""
        if os.getpid() != self._pid:
            return
        if self._holder == threading.get_ident():
            raise RuntimeError("closed from within another call of the same union")
        with self._lock:
            if not self.closed:
                self.closed = True
                self._core.close()

    def _pay(self) -> None:
        while self._unpaid:
            self._core.forget(self._unpaid.popleft())
