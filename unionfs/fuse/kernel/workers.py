"""Threads that run slow work: started when there is work for them, kept for a while, ended at the latest by `join`.

Knows nothing of requests. Most work is done by threads that exist already: starting one takes as long as several
requests.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

Work = Callable[[], object]

_MOST: Final = 32
"""Threads at once; further work waits for one of them."""

_IDLE_S: Final = 10.0
"""Seconds without work after which a thread ends."""


class Workers:
    """A pool of threads. `run` and `join` are called by one thread."""

    def __init__(self, most: int = _MOST, idle_s: float = _IDLE_S) -> None:
        self._most, self._idle_s = most, idle_s  # immutable
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()  # None: the thread that gets it ends
        self._lock = threading.Lock()
        self._free = 0  # threads that wait for work, less the work in the queue; protected by _lock
        self._threads: set[threading.Thread] = set()  # protected by _lock

    def run(self, work: Work) -> bool:
        """Have `work` run by a thread, now or when one of the threads is free. Returns False if there is no thread and
        none can be started (RLIMIT_NPROC, memory): the caller runs it itself. An exception of `work` is logged."""
        with self._lock:
            self._free -= 1
            if self._free < 0 and len(self._threads) < self._most and not self._start() and not self._threads:
                self._free += 1
                return False
        self._queue.put(work)
        return True

    def _start(self) -> bool:
        thread = threading.Thread(target=self._serve, name="unionfs worker", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # "can't start new thread"
            return False
        self._threads.add(thread)
        self._free += 1
        return True

    def join(self) -> None:
        """Wait until all work is done and all threads have ended."""
        with self._lock:
            threads = list(self._threads)
        for _ in threads:
            self._queue.put(None)
        for thread in threads:
            thread.join()

    def _serve(self) -> None:
        while True:
            try:
                work = self._queue.get(timeout=self._idle_s)
            except queue.Empty:
                with self._lock:
                    if self._free <= 0:
                        continue  # work for this thread is on its way
                    self._free -= 1
                    self._threads.discard(threading.current_thread())
                return
            if work is None:
                return
            try:
                work()
            except Exception:
                log.exception("bug in a thread")
            work = None  # it may hold a descriptor open
            with self._lock:
                self._free += 1
