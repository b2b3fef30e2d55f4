"""Answers the first requests while the modules that the loop needs are still to be imported.

Importing trio takes as long as mounting does, and a new mount is used at once. Quick requests are answered without the
loop; the start-up tasks (imports, and what the daemon adds) run one by one in between, when no request has come for
2 ms. A request that comes during a task waits for its end, so tasks should be short. This phase ends with the first
request that needs a thread or the loop, or when all tasks are done.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType
from typing import Final

from unionfs.fuse.kernel import turn
from unionfs.fuse.kernel.busy_poll import BusyPoll
from unionfs.fuse.kernel.device import Device
from unionfs.fuse.kernel.dispatch import Dispatcher

StartupTask = Callable[[], object]

_QUIET_MS: Final = 2
"""A task runs when no request has come for so long."""

_MAX_DELAY_S: Final = 0.1
"""Longest delay of the next task while requests keep coming."""


def serve(device: Device, busy_poll: BusyPoll, dispatcher: Dispatcher, tasks: Iterable[StartupTask]) -> None:
    """Run the tasks and answer requests in between, as far as possible without the loop. On the main thread.

    Raises: Gone, KeyboardInterrupt (between two requests), what a task raises.
    """
    with _deferred_interrupt() as interrupt:
        for task in tasks:
            _serve_until_quiet(device, busy_poll, dispatcher, interrupt)
            task()
            interrupt.raise_if_pending()


def _serve_until_quiet(device: Device, busy_poll: BusyPoll, dispatcher: Dispatcher, interrupt: _Interrupt) -> None:
    deadline = monotonic() + _MAX_DELAY_S
    while not dispatcher.slow and not dispatcher.session.over and monotonic() < deadline:
        until = monotonic() + turn.TURN_S
        outcome = turn.serve(device, busy_poll, dispatcher, until=until, may_wait=False, has_served=False)
        interrupt.raise_if_pending()
        if outcome == turn.IDLE and not device.wait(_QUIET_MS):
            return


class _Interrupt:
    """A signal handler that only sets a flag: an exception in the middle of a request would leave it half done."""

    def __init__(self) -> None:
        self._pending = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self._pending = True

    def raise_if_pending(self) -> None:
        """Raises KeyboardInterrupt if there was a signal."""
        if self._pending:
            raise KeyboardInterrupt


@contextmanager
def _deferred_interrupt() -> Iterator[_Interrupt]:
    interrupt = _Interrupt()
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
    interrupt.raise_if_pending()
