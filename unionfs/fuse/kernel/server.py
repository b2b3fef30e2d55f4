"""The loop: requests from the device to the dispatcher, answers back, slow work to threads.

The loop sleeps in read(2) on the device. While copy-ups or other work whose end it must handle are in threads, or the
branches are watched, it sleeps in poll(2) instead: threads write to an eventfd when such work has ended.

Work from `Dispatcher.slow` runs in worker threads: the thread that reads from a disk sends the answer itself; a copy-up
is committed here after the thread has copied. The threads touch nothing but descriptors and reply bytes.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from time import monotonic
from types import FrameType
from typing import Final

from unionfs.core.attrs import Invalidation
from unionfs.core.union import Union
from unionfs.fuse.calls import Calls
from unionfs.fuse.kernel import data, encode, turn
from unionfs.fuse.kernel.busy_poll import BusyPoll
from unionfs.fuse.kernel.device import Device, Gone
from unionfs.fuse.kernel.dispatch import CopyUpJob, Dispatcher
from unionfs.fuse.kernel.idle_fill import IdleFill
from unionfs.fuse.kernel.session import Session, Tuning
from unionfs.fuse.kernel.workers import Workers
from unionfs.fuse.options import ServeOptions
from unionfs.fuse.shutdown import WAKE
from unionfs.fuse.watching import UNWATCHED_S, Notifier
from unionfs.syscalls import processors

_TURN_S: Final = 0.005
"""Seconds for which the loop may serve requests before it does other work."""

_LAST_TURN_MS: Final = 1
"""Milliseconds that the loop waits for one more request until a notification ends."""


def serve(
    fd: int,
    union: Union,
    *,
    options: ServeOptions,
    tuning: Tuning | None = None,
    traffic: Session | None = None,
    notifier: Notifier | None = None,
) -> None:
    """Answer the requests that arrive on `fd`, a mounted /dev/fuse, until the union is unmounted. Closes `fd`. On the
    main thread, the only one that may use `union`.

    `traffic`: a session that was negotiated already (see `handshake`); `options` and `tuning` are then ignored.
    `notifier`: sends the kernel invalidations for changes made to the branches behind the mount.
    Raises: UnsupportedError when the kernel and this engine have no protocol in common; KeyboardInterrupt after SIGINT,
    between two requests. With `Kept.is_left` the process must end then, with its threads: the work of these is left to
    the daemon that continues, and requests that wait for it get no answer from here.
    """
    session = traffic or Session(options, tuning or Tuning())
    with ExitStack() as held:
        held.callback(os.close, fd)
        device = Device(fd, session.kept.record.request if session.kept is not None else None)
        dispatcher = Dispatcher(union, session)
        if session.options.passthrough:
            dispatcher.pass_through(device)
        if session.kept is not None:
            device.touch()
        if dispatcher.continues:
            dispatcher.continue_serving(device.request)
            with suppress(Gone):
                device.notify(encode.notify_resend())
        busy_poll = BusyPoll(session.options.busy_poll, processors.is_unlimited, processors.preemptions)
        engine = _Engine(device, busy_poll, dispatcher, notifier)
        engine.begin()
        held.enter_context(_interruptible(device))
        is_left = False
        try:
            with suppress(Gone):
                while not session.over:
                    engine.work()
                    if device.is_interrupted:
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            is_left = session.kept is not None and session.kept.is_left
            raise
        finally:
            if is_left:
                engine.leave()
            else:
                engine.end()


class _Engine:
    """Connects one device with one dispatcher, and tracks their work in threads."""

    def __init__(self, device: Device, busy_poll: BusyPoll, dispatcher: Dispatcher, notifier: Notifier | None) -> None:
        self._device = device  # immutable
        self._busy_poll = busy_poll  # immutable
        self._dispatcher = dispatcher  # immutable
        self._session = dispatcher.session  # immutable
        self._notifier = notifier  # set once by _begin_notifying, where there is no watch
        self._record = dispatcher.record  # immutable
        self._record_lock = threading.Lock()
        if notifier is not None:
            self._start_notifier(notifier)
            if not self._session.has_epochs:
                dispatcher.encoder.set_missing_timeout(UNWATCHED_S)
            notifier.resume(everything=dispatcher.continues, by_name=not self._session.has_epochs)
            if notifier.fd >= 0:
                device.add(notifier.fd)
        self._has_events = False  # whether the notifier has more changes to process
        self._main = threading.get_ident()  # immutable
        self._calls = Calls(self._wake, self._begin_notifying, self._has_notified, self._is_quiet)  # immutable
        self._session.calls = self._calls
        self._workers = Workers()  # immutable
        dispatcher.notify = self._notify_now
        self._away = 0  # copy-ups and tasks in threads
        self._changing = 0  # those of the tasks that may change a file of the upper
        self._telling = 0  # those that wait in the kernel for one of our answers
        self._ended: deque[tuple[CopyUpJob | data.ThreadTask, int, Exception | None]] = deque()
        """Work that has ended, with its outcome or error; filled by the threads."""
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # the threads write to it afterwards
        self._idle_fill = IdleFill(dispatcher.union, self._session, self._calls, self._start_one)  # immutable

    def begin(self) -> None:
        """Begin the work that the daemon before has left."""
        self._start()

    def work(self) -> None:
        """Serve requests, sleeping when there are none, until something else is to be done, and do that. Raises:
        Gone."""
        self._turn(sleeps=not (self._has_events or self._calls.is_busy))
        if self._calls.is_busy:
            self._device.is_awake()
            self._calls.work()
        if self._notifier is not None:
            self._has_events = self._notifier.process_events()

    # -- for fuse.calls ----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """In another thread: end a sleep of the loop."""
        self._device.wake()
        signal.pthread_kill(self._main, WAKE)

    def _begin_notifying(self) -> Callable[[list[Invalidation]], None]:
        """Return the function that sends invalidations to the kernel."""
        if self._notifier is None:
            self._notifier = Notifier(self._dispatcher.union, watches=False)
            self._start_notifier(self._notifier)
        return self._notifier.tell

    def _has_notified(self) -> bool:
        """In another thread: whether the kernel has got all invalidations."""
        return self._notifier is None or self._notifier.has_notified

    def _is_quiet(self) -> bool:
        """Whether no thread changes a file: copy-ups write to new files only."""
        return self._changing == 0

    def _start_notifier(self, notifier: Notifier) -> None:
        shorten = partial(self._dispatcher.encoder.set_timeout, UNWATCHED_S)
        notifier.start(self._notify, self._dispatcher.may_send, shorten)

    # -- slow work ---------------------------------------------------------------------------------------------------

    def _turn(self, *, sleeps: bool) -> None:
        until = monotonic() + _TURN_S
        turn.serve(self._device, self._busy_poll, self._dispatcher, until=until, sleeps=sleeps)
        if self._dispatcher.slow:
            self._start()
        if self._away:
            self._finish()

    def _start(self) -> None:
        """Begin the work in `Dispatcher.slow`. If no thread can be started, the work is done here."""
        slow = self._dispatcher.slow
        while slow:
            item = slow.pop(0)
            if isinstance(item, bytes):
                self._send(item)
            elif isinstance(item, CopyUpJob | data.ThreadTask):
                if not self._away:
                    self._device.add(self._bell)
                self._away += 1
                self._changing += isinstance(item, data.ThreadTask)
                if isinstance(item, data.ThreadTask) and item.waits_for_loop:
                    self._telling += 1
                    if self._session.death_helper is not None:
                        self._session.death_helper.start()
                    if not self._workers.run(partial(self._work, item)):
                        self._work(item._replace(work=_fail))
                elif not self._workers.run(partial(self._work, item)):
                    self._work(item)
            elif not self._workers.run(partial(self._answer, item)):
                self._answer(item)

    def _start_one(self, item: CopyUpJob) -> None:
        self._dispatcher.slow.append(item)
        self._start()

    def _work(self, item: CopyUpJob | data.ThreadTask) -> None:
        """In a thread: do work that the loop then finishes."""
        outcome, error = 0, None
        try:
            if isinstance(item, CopyUpJob):
                item.copy()
            else:
                outcome = item.work()
        except Exception as exc:  # noqa: BLE001  any error becomes the answer of the waiting requests
            error = exc
        self._ended.append((item, outcome, error))
        error = None  # its traceback holds this frame: a cycle, which would keep the copy's descriptors open
        os.eventfd_write(self._bell, 1)

    def _answer(self, work: data.Work) -> None:
        """In a thread: do work and send its answer."""
        if reply := work():
            self._send(reply)

    def _finish(self) -> None:
        """Answer the requests whose work has ended in a thread."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        while self._ended:
            self._away -= 1
            if not self._away:
                self._device.remove(self._bell)
            item, outcome, error = self._ended.popleft()
            self._changing -= isinstance(item, data.ThreadTask)
            if isinstance(item, data.ThreadTask) and item.waits_for_loop:
                self._telling -= 1
            if isinstance(item, CopyUpJob):
                for reply in self._dispatcher.finish(item, error):
                    self._send(reply)
                if self._notifier is not None:
                    self._notifier.release()
            elif answer := self._dispatcher.finish_task(item, outcome, error):
                self._send(answer)
            error = None  # as in _work
            self._start()  # requests that waited may have new work

    def _send(self, reply: bytes | memoryview) -> None:
        """Answer, from any thread. The end of the mount shows at the next read."""
        with suppress(Gone):
            turn.answer(self._device, reply)
        for observer in self._session.observers:
            observer.late(reply)

    def _notify_now(self, message: bytes) -> None:
        """In a thread: send a notification for which the kernel may wait for our answers."""
        with suppress(Gone), self._noted():
            self._device.notify(message)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """In a thread: record that it waits in a notification, so that the keeper does not wait for this thread if the
        daemon dies."""
        record, position = self._record, 0
        if record is not None:
            with self._record_lock:
                position = record.begin_notifying(threading.get_native_id())
        try:
            yield
        finally:
            if record is not None:
                record.end_notifying(position)

    def _notify(self, stale: Invalidation) -> None:
        """In the notifier's thread."""
        message = encode.notify_invalidation(stale, with_epochs=self._session.has_epochs)
        if message is not None:
            try:
                with self._noted():
                    self._device.notify(message)
            except Gone:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from None

    def end(self) -> None:
        """Cancel copy-ups and wait for all threads: the caller closes the descriptor."""
        self._calls.end()
        self._idle_fill.end()
        for waiting in self._session.waiting.values():
            waiting.cancel()
        if self._dispatcher.completion is not None:
            self._dispatcher.completion.end()
        if self._notifier is not None:
            self._notifier.stop()
        self._let_notifications_end()
        os.set_blocking(self._bell, True)
        while self._away:
            self._finish()
        self._workers.join()
        os.close(self._bell)
        self._device.end()

    def leave(self) -> None:
        """Wait only for threads that would keep the process from ending."""
        if self._notifier is not None:
            self._notifier.stop()
        self._let_notifications_end()

    def _let_notifications_end(self) -> None:
        """Keep serving until each write(2) of a notification to the device has returned. It cannot be cancelled and may
        wait in the kernel for one of our answers, which would keep the connection open for ever."""
        with suppress(Gone):
            while self._telling or (self._notifier is not None and self._notifier.is_sending):
                if self._device.wait(_LAST_TURN_MS):
                    self._turn(sleeps=False)


def _fail() -> int:
    """Replaces work for which no thread can be started, and which must not be done on the loop's thread."""
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


@contextmanager
def _interruptible(device: Device) -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt in a sleep. Anywhere else it would leave a request half done, so the loop asks
    `Device.is_interrupted` between two."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        device.is_interrupted = True
        if device.is_asleep:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    woken = signal.signal(WAKE, lambda *_: device.stop_reading())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(WAKE, woken)
