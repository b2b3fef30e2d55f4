"""Changes that others make to the branches (`--watch`): heard on the union's thread, told to the kernel by another.

A notification may have to wait for a directory's or a page's lock, which a program holds that waits for an answer of
ours. So none is sent by the thread that answers: it goes on serving while the notifier waits. For the same reason a
daemon must not die while a notification waits for a request that is held back for long; which is why those about a
directory with such a request are kept until it is answered (`Notifier.hold`).

Knows both transports' needs, but neither: how a notification is sent is handed in.
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

from unionfs.core.attrs import Invalidation
from unionfs.core.union import Union

log = logging.getLogger(__name__)

UNWATCHED_S: Final = 1.0
"""For so long the kernel may believe what it was told when not every change can be noticed."""

_LIMITS: Final = {
    errno.ENOSPC: "the limit of inotify watches is reached (sysctl fs.inotify.max_user_watches)",
    errno.EACCES: "there are directories that may be searched but not read",
}


class Notifier:
    """Hears from a union what is stale and sends it to the kernel, in order, from a thread of its own."""

    def __init__(self, union: Union) -> None:
        """Begin to watch. Raises OSError with EMFILE beyond fs.inotify.max_user_instances."""
        self.limit = 0  # the errno for which some directories cannot be watched; union's thread only
        self.sent = 0  # notifications; the thread only, may be read from anywhere
        self._told = 0  # of which the thread knows; union's thread only
        self._over = False  # set once, by `stop`
        self._queue: queue.SimpleQueue[Invalidation | None] = queue.SimpleQueue()
        self._held: list[Invalidation] = []  # not to be sent now; union's thread only
        self._send: Callable[[Invalidation], None] = lambda _: None  # this and the next three are set once, by `start`
        self._may_go: Callable[[Invalidation], bool] = lambda _: True
        self._shorten_timeouts: Callable[[], None] = lambda: None
        self._has_started = False  # likewise
        self._union = union  # immutable
        self._fd = union.watch(self._tell, self._limited)  # immutable

    def start(
        self,
        send: Callable[[Invalidation], None],
        may_go: Callable[[Invalidation], bool],
        shorten_timeouts: Callable[[], None],
    ) -> None:
        """Begin to send. `send` may block, is called in the thread, and raises OSError only when the mount is no more;
        `may_go` is asked on the union's thread whether something may be sent now; `shorten_timeouts` is called there
        when from now on the kernel should believe nothing for longer than UNWATCHED_S."""
        self._send, self._may_go, self._shorten_timeouts = send, may_go, shorten_timeouts
        self._has_started = True
        if self.limit:
            self._limited(self.limit)
        threading.Thread(target=self._run, name="notifier", daemon=True).start()

    def _limited(self, code: int) -> None:
        self.limit = code
        if not self._has_started:
            return
        log.warning("%s; names and attributes are asked for again after %g s", limit_reached(code), UNWATCHED_S)
        self._shorten_timeouts()

    async def process_events(self) -> None:
        """Hear of changes, for ever. A task beside the transport's loop, on the union's thread."""
        import trio  # late: a mount waits for what is imported before it is made

        while True:
            await trio.lowlevel.wait_readable(self._fd)
            while self._heed_once():
                await trio.lowlevel.checkpoint()

    def _heed_once(self) -> bool:
        try:
            return self._union.process_events()
        except Exception:
            log.exception("bug while looking at changes")
            return False

    def _tell(self, stale: list[Invalidation]) -> None:
        for each in stale:
            if self._may_go(each) and not self._held:
                self._told += 1
                self._queue.put(each)
            else:
                self._held.append(each)

    def release(self) -> None:
        """A request that was held back has been answered: what was kept for its sake may go. Union's thread only."""
        if self._held:
            held, self._held = self._held, []
            self._tell(held)

    def stop(self) -> None:
        """Send nothing more, but for what is on its way."""
        self._over = True
        self._queue.put(None)

    def wait(self, seconds: float) -> None:
        """Wait for what is on its way, so long at most."""
        until = time.monotonic() + seconds
        while self.is_sending and time.monotonic() < until:
            time.sleep(0.01)

    @property
    def is_sending(self) -> bool:
        """Whether a notification is on its way: somebody may have to be answered before it arrives."""
        return self.sent != self._told

    def _run(self) -> None:
        while (stale := self._queue.get()) is not None:
            try:
                if not self._over:
                    self._send(stale)
            except OSError:
                self._over = True
            except Exception:
                log.exception("bug while telling the kernel of a change")
            self.sent += 1


def limit_reached(code: int) -> str:
    """Why some directories cannot be watched, and what to do about it."""
    return f"not every directory can be watched: {_LIMITS.get(code, os.strerror(code))}"
