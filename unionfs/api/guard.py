"""One call at a time: the lock around a union's core, and what makes it refuse.

The core lives on one thread at a time. A call from another thread waits; one from within another call of the same
thread (a signal handler, a finalizer) is refused, because the core is in the middle of something. If anything but an
OSError leaves a call, KeyboardInterrupt above all, what is on disk is whole as after any crash, but what the core
remembers may not be: from then on every call is refused.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from types import TracebackType

from unionfs.core.union import Union as Core


class Guard:
    """`with guard as core:` is one call. ValueError when the union is closed, RuntimeError as above and in a child of
    the process that made it, EIO when a call was interrupted."""

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
                raise OSError(errno.EIO, "a call was interrupted: open the union anew")
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
        """A file of this node is closed. Never raises, never waits: finalizers come here, in any thread."""
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
        """End the core, once. Not in a child of the process that made it: what is on disk is the parent's."""
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
