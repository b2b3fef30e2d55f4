"""The first requests, answered while what is needed later is still to be imported.

Importing trio takes as long as mounting does, and whoever has mounted wants to use the mount at once. What is quick is
answered without it; the chores of a daemon's start are done in between, one by one, when nobody has asked for a moment.
Who asks in the middle of one waits for it: a chore should be short. What is slow needs threads and the loop: with the
first such request, and when all chores are done, this is over.
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

Chore = Callable[[], object]

_QUIET_MS: Final = 2
"""Nobody has asked for so long: time for a chore."""

_PATIENCE_S: Final = 0.1
"""So long the next chore waits for such a moment."""


def serve(device: Device, busy_poll: BusyPoll, dispatcher: Dispatcher, chores: Iterable[Chore]) -> None:
    """Do the chores, and serve meanwhile, as far as it goes without the loop. On the main thread.

    Raises: Gone, KeyboardInterrupt (between two requests), what a chore raises.
    """
    with _interrupted_later() as wish:
        for chore in chores:
            _serve_until_quiet(device, busy_poll, dispatcher, wish)
            chore()
            wish.fulfil()


def _serve_until_quiet(device: Device, busy_poll: BusyPoll, dispatcher: Dispatcher, wish: _Wish) -> None:
    patience = monotonic() + _PATIENCE_S
    while not dispatcher.slow and not dispatcher.session.over and monotonic() < patience:
        until = monotonic() + turn.TURN_S
        outcome = turn.serve(device, busy_poll, dispatcher, until=until, lingers=False, has_served=False)
        wish.fulfil()
        if outcome == turn.IDLE and not device.wait(_QUIET_MS):
            return


class _Wish:
    """A signal handler that only remembers: an exception in the middle of a request would tear it apart."""

    def __init__(self) -> None:
        self._is_told = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self._is_told = True

    def fulfil(self) -> None:
        """Raises KeyboardInterrupt if there was a signal."""
        if self._is_told:
            raise KeyboardInterrupt


@contextmanager
def _interrupted_later() -> Iterator[_Wish]:
    wish = _Wish()
    before = signal.signal(signal.SIGINT, wish)
    try:
        yield wish
    finally:
        signal.signal(signal.SIGINT, before)
    wish.fulfil()
