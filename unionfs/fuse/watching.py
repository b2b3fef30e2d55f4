"""Send invalidations to the kernel, from a thread of its own: for external changes to the branches (`--watch`), and for
branches that are added and removed.

A notification may wait for the lock of a directory or page, held by a program that waits for an answer of the daemon.
So the answering thread sends none: it goes on serving while the notifier's thread waits. For the same reason a daemon
must not die while a notification waits for a request that takes long: notifications about a directory with such a
request are held back until it is answered (`may_send`, `Notifier.release`).

Knows neither transport: each passes its own function to send a notification.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from unionfs.core import takeover
from unionfs.core.attrs import Invalidation
from unionfs.core.union import Union

log = logging.getLogger(__name__)

UNWATCHED_S: Final = 1.0
"""The kernel's timeout for names and attributes when not every change can be noticed."""

_LIMITS: Final = {
    errno.ENOSPC: "the limit of inotify watches is reached (sysctl fs.inotify.max_user_watches)",
    errno.EACCES: "there are directories that may be searched but not read",
}


class Notifier:
    """Takes invalidations from a union and sends them to the kernel, in order, from a thread of its own."""

    def __init__(self, union: Union, *, watches: bool = True) -> None:
        """Start to watch, unless not `watches`: then there are only the invalidations of `tell`. Raises OSError with
        EMFILE beyond fs.inotify.max_user_instances."""
        self.limit = 0  # the errno for which some directories cannot be watched; union's thread only
        self.sent = 0  # notifications; changed by the thread only, may be read from anywhere
        self._queued = 0  # notifications given to the thread; union's thread only
        self._over = False  # set once, by `stop`
        self._queue: queue.SimpleQueue[Invalidation | None] = queue.SimpleQueue()
        self._held: list[Invalidation] = []  # not to be sent now; union's thread only
        self._send: Callable[[Invalidation], None] = lambda _: None  # this and the next three are set once, by `start`
        self._may_send: Callable[[Invalidation], bool] = lambda _: True
        self._shorten_timeouts: Callable[[], None] = lambda: None
        self._has_started = False  # likewise
        self._union = union  # immutable
        self.fd = union.watch(self.tell, self._limit_hit) if watches else -1
        """Readable when there are external changes, -1 without a watch; changed by `resume`."""
        self._is_paused = False  # changed by pause and resume

    def start(
        self,
        send: Callable[[Invalidation], None],
        may_send: Callable[[Invalidation], bool],
        shorten_timeouts: Callable[[], None],
    ) -> None:
        """Start to send. `send` may block, is called in the thread, and raises OSError only when the mount has ended;
        `may_send` is called on the union's thread and returns whether an invalidation may be sent now;
        `shorten_timeouts` is called there when the kernel's timeouts must become UNWATCHED_S."""
        self._send, self._may_send, self._shorten_timeouts = send, may_send, shorten_timeouts
        self._has_started = True
        if self.limit:
            self._limit_hit(self.limit)
        threading.Thread(target=self._run, name="notifier", daemon=True).start()

    def _limit_hit(self, code: int) -> None:
        self.limit = code
        if not self._has_started:
            return
        log.warning("%s; names and attributes are asked for again after %g s", limit_reached(code), UNWATCHED_S)
        self._shorten_timeouts()

    def pause(self) -> None:
        """End the watch; a process that this one forks calls `resume`."""
        takeover.pause_watching(self._union)
        self._is_paused = True

    def resume(self, *, everything: bool, by_name: bool) -> None:
        """Watch again after `pause`. `everything` that is known may have changed: another daemon has died meanwhile.
        `by_name`: the kernel has no notification for all names at once."""
        if self._is_paused:
            self._is_paused = False
            self.fd = takeover.resume_watching(self._union, everything=everything, by_name=by_name)

    def process_events(self) -> bool:
        """Process external changes for some milliseconds, on the union's thread. Returns whether more are pending."""
        try:
            return self._union.process_events()
        except Exception:
            log.exception("bug while processing external changes")
            return False

    def tell(self, stale: list[Invalidation]) -> None:
        """Send invalidations, now or when `may_send` says so. Union's thread only."""
        for each in stale:
            if self._may_send(each) and not self._held:
                self._queued += 1
                self._queue.put(each)
            else:
                self._held.append(each)

    def release(self) -> None:
        """Send the invalidations held back, after a slow request was answered. Union's thread only."""
        if self._held:
            held, self._held = self._held, []
            self.tell(held)

    def stop(self) -> None:
        """Send no more notifications; one in progress goes on."""
        self._over = True
        self._queue.put(None)

    def wait(self, seconds: float) -> None:
        """Wait up to `seconds` for the notification in progress."""
        until = time.monotonic() + seconds
        while self.is_sending and time.monotonic() < until:
            time.sleep(0.01)

    @property
    def is_sending(self) -> bool:
        """Whether a notification is in progress: it may wait until a program's request is answered."""
        return self.sent != self._queued

    @property
    def has_notified(self) -> bool:
        """Whether all invalidations have been sent."""
        return not self.is_sending and not self._held

    def _run(self) -> None:
        while (stale := self._queue.get()) is not None:
            try:
                if not self._over:
                    self._send(stale)
            except OSError:
                self._over = True
            except Exception:
                log.exception("bug while sending an invalidation to the kernel")
            self.sent += 1


def limit_reached(code: int) -> str:
    """Return a message: why some directories cannot be watched, and what limits that."""
    return f"not every directory can be watched: {_LIMITS.get(code, os.strerror(code))}"
