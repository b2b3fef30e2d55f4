"""The trio loop: the device's requests to the dispatcher, its answers back, slow work to threads.

The loop's turn is a plain function (`turn`) that serves until nothing is left to read, and gives the thread back to
trio after `turn.TURN_S` at the latest, so that other tasks run.

Work from `Dispatcher.slow` runs in worker threads: the thread that reads from a disk sends the answer itself; a copy-up
is committed here after the thread has copied. The threads touch nothing but descriptors and reply bytes.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Final

import trio

from unionfs.core.attrs import Invalidation
from unionfs.fuse.kernel import data, encode, turn
from unionfs.fuse.kernel.busy_poll import BusyPoll
from unionfs.fuse.kernel.device import Device, Gone
from unionfs.fuse.kernel.dispatch import CopyUpJob, Dispatcher
from unionfs.fuse.watching import UNWATCHED_S, Notifier

log = logging.getLogger(__name__)

_THREADS: Final = 32
"""Most threads that read from disks at once; further reads run in the loop, so the number of threads has a limit."""


def run(device: Device, busy_poll: BusyPoll, dispatcher: Dispatcher, notifier: Notifier | None) -> None:
    """Begin what `dispatcher.slow` holds, then answer the requests on `device` until the union is unmounted. Only this
    thread may use the Union.

    `notifier`: sends the kernel invalidations for changes made to the branches behind the mount.
    Raises: UnsupportedError when the kernel and this engine have no protocol in common.
    """
    try:
        trio.run(serve_async, device, busy_poll, dispatcher, notifier)
    except (BaseExceptionGroup, trio.TrioInternalError) as exc:
        raise _innermost(exc) from None


async def serve_async(
    device: Device, busy_poll: BusyPoll, dispatcher: Dispatcher, notifier: Notifier | None = None
) -> None:
    """As `run`, beside other tasks of a trio program."""
    engine = _Engine(device, busy_poll, dispatcher, notifier)
    if notifier is None:
        await _serve(engine, device.fd)
        return
    async with trio.open_nursery() as beside:
        beside.start_soon(notifier.process_events)
        await _serve(engine, device.fd)
        beside.cancel_scope.cancel()


async def _serve(engine: _Engine, fd: int) -> None:
    session = engine.session
    try:
        async with trio.open_nursery() as nursery:
            try:
                while not session.over:
                    if engine.turn(nursery):
                        await trio.lowlevel.checkpoint()
                    else:
                        await trio.lowlevel.wait_readable(fd)
            except Gone:
                pass
            finally:
                for waiting in session.waiting.values():
                    waiting.cancel()
                engine.let_notifier_end(nursery)
    finally:
        engine.join()


def _innermost(exc: BaseException) -> BaseException:
    """The exception that ended the loop, without trio's wrappers: a signal handler may raise inside trio, too."""
    while True:
        if isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
            exc = exc.exceptions[0]
        elif isinstance(exc, trio.TrioInternalError) and exc.__cause__ is not None:
            exc = exc.__cause__
        else:
            return exc


class _Engine:
    """Connects one device with one dispatcher, and tracks their work in threads."""

    def __init__(self, device: Device, busy_poll: BusyPoll, dispatcher: Dispatcher, notifier: Notifier | None) -> None:
        self._device = device  # immutable
        self._busy_poll = busy_poll  # immutable
        self._dispatcher = dispatcher  # immutable
        self.session = dispatcher.session  # immutable
        self._notifier = notifier  # immutable
        if notifier is not None:
            notifier.start(self._notify, dispatcher.may_send, partial(dispatcher.encoder.set_timeout, UNWATCHED_S))
            if not dispatcher.session.has_epochs:
                dispatcher.encoder.set_missing_timeout(UNWATCHED_S)
        self._threads = threading.Semaphore(_THREADS)  # taken by _start, given back by the thread
        self._away = 0  # copy-ups and tasks in threads; changed on the loop's thread only

    @trio.lowlevel.enable_ki_protection  # KeyboardInterrupt is not raised in the middle of a request
    def turn(self, nursery: trio.Nursery) -> bool:
        """Serve one turn. Returns whether there may be more requests; False: sleep until the device is readable.

        Raises: Gone.
        """
        dispatcher = self._dispatcher
        until = monotonic() + turn.TURN_S
        if dispatcher.slow:
            self._start(nursery)
        outcome = turn.IDLE
        while True:
            outcome = turn.serve(
                self._device,
                self._busy_poll,
                dispatcher,
                until=until,
                may_wait=not self._away,  # trio wakes the loop when work in a thread ends
                has_served=outcome == turn.SLOW,
            )
            if outcome != turn.SLOW:
                return outcome == turn.BUSY
            self._start(nursery)

    async def _copy_up(self, job: CopyUpJob, nursery: trio.Nursery) -> None:
        """Copy the bytes in a thread, commit here, and answer the requests that waited."""
        error: Exception | None = None
        try:
            await trio.to_thread.run_sync(job.copy)
        except Exception as exc:  # noqa: BLE001  any error becomes the answer of the waiting requests
            error = exc
        self._away -= 1
        replies = self._dispatcher.finish(job, error)
        error = None  # its traceback holds this frame: a cycle, which would keep the copy's descriptors open
        with suppress(Gone):
            for reply in replies:
                self._send(reply)
            self._start(nursery)
        if self._notifier is not None:
            self._notifier.release()

    async def _run_in_thread(self, task: data.ThreadTask, nursery: trio.Nursery) -> None:
        """Run the task in a thread and send its answer here."""
        outcome, error = 0, None
        try:
            outcome = await trio.to_thread.run_sync(task.work)
        except Exception as exc:  # noqa: BLE001  any error becomes the answer
            error = exc
        self._away -= 1
        reply = self._dispatcher.finish_task(task, outcome, error)
        error = None  # as in _copy_up
        with suppress(Gone):
            if reply is not None:
                self._send(reply)
            self._start(nursery)

    def _notify(self, stale: Invalidation) -> None:
        """In the notifier's thread."""
        message = encode.notify_invalidation(stale, with_epochs=self._dispatcher.session.has_epochs)
        if message is not None:
            try:
                self._device.notify(message)
            except Gone:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from None

    def let_notifier_end(self, nursery: trio.Nursery) -> None:
        """Keep serving until the notifier's write(2) to the device has returned. It cannot be cancelled and may wait in
        the kernel for one of our answers, which would keep the connection open for ever."""
        if self._notifier is not None:
            self._notifier.stop()
            with suppress(Gone):
                while self._notifier.is_sending:
                    self.turn(nursery)
                    self._device.wait(turn.WAIT_MS)

    def _start(self, nursery: trio.Nursery) -> None:
        """Begin the work in `Dispatcher.slow`."""
        slow = self._dispatcher.slow
        while slow:
            item = slow.pop(0)
            if isinstance(item, bytes):
                self._send(item)
            elif isinstance(item, CopyUpJob):
                self._away += 1
                nursery.start_soon(self._copy_up, item, nursery)
            elif isinstance(item, data.ThreadTask):
                self._away += 1
                nursery.start_soon(self._run_in_thread, item, nursery)
            elif self._threads.acquire(blocking=False):
                trio.lowlevel.start_thread_soon(partial(self._read, item), lambda _outcome: None, "unionfs read")
            else:
                self._do(item)

    def _do(self, work: data.Work) -> None:
        if reply := work():
            self._send(reply)

    def _read(self, work: data.Work) -> None:
        """In a thread: read from the disk and send the answer."""
        try:
            self._do(work)
        except Gone:
            pass
        except Exception:
            log.exception("bug in a thread")
        finally:
            self._threads.release()

    def _send(self, reply: bytes | memoryview) -> None:
        """Answer."""
        turn.answer(self._device, reply)

    def join(self) -> None:
        """Wait until all threads have ended: the caller closes the descriptor."""
        for _ in range(_THREADS):
            self._threads.acquire()
