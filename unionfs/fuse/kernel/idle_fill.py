"""Complete files of which the upper has a part, while the union has nothing else to do.

A thread notices that no requests have come for a while and has the loop begin a piece of a file, which a worker thread
copies; then it asks for the next piece, until a request comes or nothing is left. The thread runs only while there are
partial files to complete.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from unionfs.core.fill import Fill
from unionfs.core.union import Union
from unionfs.fuse.calls import Calls, EndedError
from unionfs.fuse.kernel.dispatch import CopyUpJob
from unionfs.fuse.kernel.session import Session

log = logging.getLogger(__name__)

_IDLE_S: Final = 10.0
"""Seconds without a request before a piece begins."""

_NOTHING: Final = 0  # nothing is left to do
_BUSY: Final = 1  # not now
_PIECE: Final = 2  # a piece is under way


class IdleFill:
    """Completes the files of one union. On the loop's thread, but for `_run`."""

    def __init__(
        self, union: Union, session: Session, calls: Calls, start: Callable[[CopyUpJob], None], idle_s: float = _IDLE_S
    ) -> None:
        """`start` has the loop start a job."""
        self._union = union  # immutable
        self._session = session  # immutable
        self._calls = calls  # immutable
        self._start = start  # immutable
        self._idle_s = idle_s  # immutable
        self._over = threading.Event()  # set once: the daemon ends
        self._has_ended = threading.Event()  # the piece under way has been copied, or given up
        self._is_running = False  # whether there is a thread that waits
        self._found = _NOTHING  # of the last call; read by the thread after it
        union.when_growing(self._begin)

    def _begin(self) -> None:
        """Begin to wait for a time without requests, since a file has got blocks."""
        if not self._is_running:
            self._is_running = True
            try:
                threading.Thread(target=self._run, name="unionfs idle", daemon=True).start()
            except RuntimeError:  # "can't start new thread"
                self._is_running = False

    def _run(self) -> None:
        """In a thread of its own."""
        count = -1
        try:
            while not self._over.wait(self._idle_s):
                before, count = count, self._count()
                while count == before and not self._over.is_set():
                    self._has_ended.clear()
                    self._calls.do(self._piece)
                    if self._found == _NOTHING:
                        return
                    if self._found == _BUSY:
                        break
                    self._has_ended.wait()
                    before = self._count()
        except EndedError:
            pass

    def _count(self) -> int:
        return sum(self._session.counts)

    def _piece(self) -> bool:
        """Begin to copy a piece. Returns False: this call of `fuse.calls` is done."""
        if self._session.waiting:  # a copy-up is in progress, perhaps of the same file
            self._found = _BUSY
            return False
        try:
            job = self._union.fill_begin()
        except OSError as error:
            log.warning("a file cannot be completed: %s", error)
            self._found = _BUSY
            return False
        if job is None:
            self._found, self._is_running = _NOTHING, False
            return False
        self._found = _PIECE
        waiting = self._session.hold(job.node.nodeid, job.cancel)
        self._start(CopyUpJob(waiting, job.copy, partial(self._commit, job), partial(self._abort, job)))
        return False

    def _commit(self, job: Fill) -> None:
        try:
            self._union.copyup_commit(job)
        except OSError:
            self._union.give_up_filling(job)
            raise
        finally:
            self._has_ended.set()

    def _abort(self, job: Fill) -> None:
        try:
            self._union.give_up_filling(job)
            self._union.copyup_abort(job)
        finally:
            self._has_ended.set()

    def end(self) -> None:
        """End the wait: the daemon ends."""
        self._over.set()
        self._has_ended.set()
