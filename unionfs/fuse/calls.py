"""Work that other threads give to the union's thread, which does it in slices between requests.

Knows neither transport: the union's thread calls `work` between two turns, and provides functions that wake it up and
that send invalidations to the kernel.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from unionfs.core.attrs import Invalidation

Work = Callable[[], bool]
"""A function that does a part of some work, for a few milliseconds. Returns whether more is to be done."""

_AGAIN_S: Final = 0.02
"""A wake-up may come just before the thread goes to sleep, so it is repeated until the work has begun."""


class EndedError(Exception):
    """The union has ended before the work was done."""


class _Job:
    def __init__(self, work: Work) -> None:
        self.work = work  # immutable
        self.has_begun = False
        self.error: Exception | None = None  # set once, before `ended`
        self.ended = threading.Event()


class Calls:
    """The jobs of one union, done one after the other."""

    def __init__(
        self,
        wake: Callable[[], None],
        begin_notifying: Callable[[], Callable[[list[Invalidation]], None]],
        has_notified: Callable[[], bool],
        is_quiet: Callable[[], bool],
    ) -> None:
        """`wake` is called in other threads: it has the union's thread call `work` soon."""
        self._wake = wake  # immutable
        self.begin_notifying = (
            begin_notifying  # immutable; on the union's thread: returns the function that sends invalidations
        )
        self.is_quiet = (
            is_quiet  # immutable; on the union's thread: whether no other thread changes a file of the upper
        )
        self.has_notified = has_notified  # immutable; in any thread: whether all invalidations were sent
        self._jobs: deque[_Job] = deque()
        self._is_over = False  # set once, by `end`

    def do(self, work: Work) -> None:
        """Have the union's thread call `work` until it returns False, and wait for that. Not on the union's thread.
        Raises: what `work` raises; EndedError."""
        job = _Job(work)
        self._jobs.append(job)
        while True:
            if not job.has_begun:
                self._wake()
            if job.ended.wait(_AGAIN_S):
                break
            if self._is_over:
                raise EndedError
        if job.error is not None:
            raise job.error

    @property
    def is_busy(self) -> bool:
        """Whether there is work."""
        return bool(self._jobs)

    def work(self) -> None:
        """Do a part of the first job. On the union's thread."""
        if not self._jobs:
            return
        job = self._jobs[0]
        job.has_begun = True
        try:
            if job.work():
                return
        except Exception as exc:  # noqa: BLE001 - it is raised where the work was asked for
            job.error = exc
        self._jobs.popleft()
        job.ended.set()

    def end(self) -> None:
        """End all jobs, since the union has ended: `do` raises EndedError."""
        self._is_over = True
