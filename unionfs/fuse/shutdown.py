"""Shut a daemon down on request: unmount first, give users of the mount a moment, then stop serving.

Requested by SIGTERM, SIGINT or SIGHUP (those that were not ignored at the start), or by end of file on the lifeline, a
descriptor whose other end another process holds open for as long as it needs the union. When the kernel ends the
connection (unmounted, namespace gone) none of this is needed: serving just returns. A daemon that leaves the mount to
another one (fuse.upgrade) stops serving without unmounting.

A thread waits for the signals, which are blocked everywhere else, because unmounting may block: the kernel writes
dirty pages first, and the serving thread must take them. Serving is stopped by KeyboardInterrupt, which the transports
raise where it does no harm.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
from collections.abc import Callable
from typing import Final

from unionfs.fuse.detachment import Mounted

GRACE_S: Final = 5.0
"""Programs that still have files open after the union was taken from its mountpoint may use them this long: enough to
finish most work, less than the 10 s after which container managers kill the daemon."""

_RETRY_S: Final = 0.2
"""An interrupt is lost in code that swallows exceptions, or just before a system call that waits, so it is repeated
until serving has ended."""

WAKE: Final = signal.SIGURG
"""Interrupts a system call of the main thread, so that Python handles a simulated SIGINT. Unlike other signals, it ends
no process that gets it by mistake."""


class GracefulShutdown:
    """Handles the signals that end the daemon. One per process, made on the main thread before any other.

    The signals are blocked from then on, so that none ends the process between mounting and `listen`.
    """

    def __init__(self) -> None:
        self._over = threading.Event()  # serving has ended
        self._unmounting = threading.Lock()  # held while a process of ours unmounts; protects `is_leaving`
        self.has_begun_to_end = False  # set once: a signal has come; protected by `_unmounting`
        self.is_leaving = False  # set once, by `leave`: another daemon continues
        self.pass_on: Callable[[int], None] = _to_keeper  # gives a signal to the daemon that continues; set once
        self._main = threading.get_ident()  # immutable
        self.has_interrupted = False  # set once: KeyboardInterrupt from serving is a requested stop
        exit_signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        self._signals = {
            number for number in exit_signals if signal.getsignal(number) is not signal.SIG_IGN
        }  # immutable
        self._signals.add(signal.SIGTERM)  # the lifeline uses it
        # SIGINT in any case: where it was ignored, the transport's handler would end the daemon without unmounting.
        signal.pthread_sigmask(signal.SIG_BLOCK, {*self._signals, signal.SIGINT})
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the one that trio takes over
        signal.signal(WAKE, lambda *_: None)

    def listen(self, mounted: Mounted, lifeline_fd: int | None) -> None:
        """Start the threads that wait for the signals and the end of the lifeline. Called once."""
        threading.Thread(target=self._unmount_and_stop, args=(mounted,), name="shutdown", daemon=True).start()
        if lifeline_fd is not None:
            threading.Thread(target=_terminate_at_end_of, args=(lifeline_fd,), name="lifeline", daemon=True).start()

    def serving_ended(self) -> None:
        """Stop interrupting, since serving has ended, and wait for a child process that is still unmounting.

        The kernel ends the connection, and with it serving, before that process has ended; it must not outlive us.
        """
        self._over.set()
        if self._unmounting.acquire(timeout=GRACE_S):
            self._unmounting.release()

    def leave(self) -> None:
        """Have serving stop so that another daemon continues, unless the union is being unmounted. Returns when it has
        stopped, if the process lives on."""
        with self._unmounting:
            if self.has_begun_to_end:
                return
            self.is_leaving = True
        self._interrupt()

    def _unmount_and_stop(self, mounted: Mounted) -> None:
        number = signal.sigwait(self._signals)
        with self._unmounting:
            if self.is_leaving:
                self.pass_on(number)
                return
            self.has_begun_to_end = True
            has_unmounted = mounted.unmount()
        if has_unmounted:
            signal.sigtimedwait(self._signals, GRACE_S)  # a second signal ends the grace period
        self._interrupt()

    def _interrupt(self) -> None:
        """Interrupt serving until it has ended."""
        self.has_interrupted = True
        while not self._over.is_set():
            _thread.interrupt_main(signal.SIGINT)
            signal.pthread_kill(self._main, WAKE)
            self._over.wait(_RETRY_S)


def _to_keeper(number: int) -> None:
    os.kill(os.getppid(), number)  # the keeper passes it on


def _terminate_at_end_of(lifeline_fd: int) -> None:
    while os.read(lifeline_fd, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
