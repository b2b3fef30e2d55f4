"""Complete the upper of a union that has views, a moment after it has begun to lack names of hard links.

A daemon completes the upper when its union is unmounted (core.complete). While a view is used the daemon lives on, and
no request reports that the union itself was unmounted; so the upper is completed without waiting for that. A thread
waits for the moment, the loop does the work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event
from time import monotonic
from typing import Final

from unionfs.core.view import View
from unionfs.fuse.kernel import data

log = logging.getLogger(__name__)

_DELAY_S: Final = 0.05
_DELAY_MOST_S: Final = 5.0
_DELAY_SHARE: Final = 20
"""A search for names reads all directories: the next one begins after at least this many times its duration."""


class Completion:
    """Completes the upper of one union. On the loop's thread, but for `_wait`."""

    def __init__(self, view: View, start: Callable[[data.ThreadTask], None]) -> None:
        """`view`: of the union whose upper it is. `start` has the loop start a task."""
        self._view = view  # immutable
        self._start = start  # immutable
        self._over = Event()  # set once: the daemon ends
        self._is_due = False  # whether a task is under way
        self._delay_s = _DELAY_S
        view.when_incomplete(self._begin)

    def _begin(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._start(data.ThreadTask(0, self._wait, self._complete))

    def _wait(self) -> int:
        self._over.wait(self._delay_s)
        return 0

    def _complete(self, _waited: int) -> bytes:
        """Complete the upper. Returns no reply."""
        began = monotonic()
        try:
            self._view.complete_viewed()
        except OSError as error:
            log.warning("the upper may lack names of hard links: %s", error)
        self._delay_s = min(max(_DELAY_S, _DELAY_SHARE * (monotonic() - began)), _DELAY_MOST_S)
        self._is_due = False  # the search's own changes of the index are no reason for another search
        return b""

    def end(self) -> None:
        """End the wait: the daemon ends."""
        self._over.set()
