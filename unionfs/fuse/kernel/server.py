"""The trio loop: the device's requests to the dispatcher, its answers back, slow work to threads.

The loop's turn is a plain function (`turn`) that serves until nothing is left to read, and gives the thread back to
trio after `turn.TURN_S` in any case, for other tasks' sake.

Work from `Dispatcher.slow` leaves the thread: a read that waits for a disk is answered by the thread that did it, a
copy-up comes back to be committed here. Nothing but descriptors and reply bytes is touched over there.
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
"""Reads waiting for disks at once; any more are done in the loop, so that a storm cannot make threads without end."""


def run(device: Device, busy_poll: BusyPoll, dispatcher: Dispatcher, notifier: Notifier | None) -> None:
    """Answer the requests that arrive on `device` until the union is unmounted, those first that are waiting in the
    dispatcher's `slow`. The Union belongs to this thread.

    `notifier`: tells the kernel of changes that others make to the branches.
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
    """What really ended the loop, without trio's wrappers: a signal handler may raise anywhere, inside trio too."""
    while True:
        if isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
            exc = exc.exceptions[0]
        elif isinstance(exc, trio.TrioInternalError) and exc.__cause__ is not None:
            exc = exc.__cause__
        else:
            return exc


class _Engine:
    """One device and one dispatcher, and the work of theirs that is under way in threads."""

    def __init__(self, device: Device, busy_poll: BusyPoll, dispatcher: Dispatcher, notifier: Notifier | None) -> None:
        self._device = device  # immutable
        self._busy_poll = busy_poll  # immutable
        self._dispatcher = dispatcher  # immutable
        self.session = dispatcher.session  # immutable
        self._notifier = notifier  # immutable
        if notifier is not None:
            notifier.start(self._notify, dispatcher.may_tell, partial(dispatcher.encoder.believe, UNWATCHED_S))
            if not dispatcher.session.has_epochs:
                dispatcher.encoder.believe_missing(UNWATCHED_S)
        self._threads = threading.Semaphore(_THREADS)  # taken by _start, given back by the thread
        self._away = 0  # copy-ups and errands under way; loop's thread only

    @trio.lowlevel.enable_ki_protection  # being told to leave must not tear a request apart
    def turn(self, nursery: trio.Nursery) -> bool:
        """Serve what is there. Whether there may be more: False when it is time to sleep until the device is readable.

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
                lingers=not self._away,  # the end of what is away is told by trio
                has_served=outcome == turn.SLOW,
            )
            if outcome != turn.SLOW:
                return outcome == turn.BUSY
            self._start(nursery)

    async def _copy_up(self, job: CopyUpJob, nursery: trio.Nursery) -> None:
        """Copy the bytes in a thread, commit here, and serve who waited."""
        error: Exception | None = None
        try:
            await trio.to_thread.run_sync(job.copy)
        except Exception as exc:  # noqa: BLE001  whatever it is, it becomes the answer of those that wait
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

    async def _run_errand(self, errand: data.Errand, nursery: trio.Nursery) -> None:
        """Do the work in a thread and answer here."""
        outcome, error = 0, None
        try:
            outcome = await trio.to_thread.run_sync(errand.work)
        except Exception as exc:  # noqa: BLE001  whatever it is, it becomes the answer
            error = exc
        self._away -= 1
        reply = self._dispatcher.bring_back(errand, outcome, error)
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
        """Serve on while a notification is on its way. It cannot be called back, and a thread that waits in the kernel
        for an answer of ours would keep the connection, and so itself, alive."""
        if self._notifier is not None:
            self._notifier.stop()
            with suppress(Gone):
                while self._notifier.is_sending:
                    self.turn(nursery)
                    self._device.wait(turn.LINGER_MS)

    def _start(self, nursery: trio.Nursery) -> None:
        """Begin what the dispatcher left as slow."""
        slow = self._dispatcher.slow
        while slow:
            item = slow.pop(0)
            if isinstance(item, bytes):
                self._send(item)
            elif isinstance(item, CopyUpJob):
                self._away += 1
                nursery.start_soon(self._copy_up, item, nursery)
            elif isinstance(item, data.Errand):
                self._away += 1
                nursery.start_soon(self._run_errand, item, nursery)
            elif self._threads.acquire(blocking=False):
                trio.lowlevel.start_thread_soon(partial(self._read, item), lambda _outcome: None, "unionfs read")
            else:
                self._do(item)

    def _do(self, work: data.Work) -> None:
        if reply := work():
            self._send(reply)

    def _read(self, work: data.Work) -> None:
        """In a thread: wait for the disk, and answer."""
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
        """Wait for the threads: none may use the descriptor after this."""
        for _ in range(_THREADS):
            self._threads.acquire()
