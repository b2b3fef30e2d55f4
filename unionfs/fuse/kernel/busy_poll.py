"""Poll for the next request for a short time before sleeping (`--busy-poll`).

Waking up costs more than serving a request, most of all in virtual machines: the processor has gone to sleep and its
caches are cold. A program that got its answer sends the next request within 200 microseconds in more than 95 of 100
cases. So before it sleeps the daemon reads the device up to `POLLS` times, which takes about this time, and offers its
processor to other threads in between (sched_yield(2)).

    on      always poll
    off     never poll
    auto    poll as long as two polls in three find a request and no other thread wants the processor; else try again
            after some requests. Never with a single processor, or under a quota of a cgroup (`syscalls.processors`)

benchmarks/README.md has figures. The transport with libfuse never polls.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from unionfs.fuse.kernel.device import Device
from unionfs.fuse.options import BUSY_POLL_AUTO, BUSY_POLL_OFF

POLLS: Final = 160
"""Maximum number of reads for one request."""
_MAX_CREDIT: Final = 16
_COST_OF_FAILURE: Final = 2  # of credit; a success adds 1
_CREDIT_AFTER_PAUSE: Final = 4
_PAUSE: Final = 64
"""Requests without polling after the credit was used up. Each pause is twice as long, until the credit is full."""
_MAX_PAUSE: Final = 8192

_yield: Final = os.sched_yield


class BusyPoll:
    """Decides whether and how long to poll for the next request of one device."""

    def __init__(self, mode: str, is_unlimited: Callable[[], bool], preemptions: Callable[[], int]) -> None:
        """`mode`: "on", "off" or "auto". In "auto" only, `is_unlimited` says once whether a processor may be kept busy,
        and `preemptions` how often this thread was preempted (`syscalls.processors`)."""
        self._adapts = mode == BUSY_POLL_AUTO  # immutable
        self._looks = mode != BUSY_POLL_OFF and (mode != BUSY_POLL_AUTO or is_unlimited())  # immutable
        self._preemptions = preemptions  # immutable
        self._preempted = preemptions()  # changed by look only, as are the next
        self._credit = _MAX_CREDIT
        self._left = 0  # requests until the pause is over
        self._pause = _PAUSE

    def look(self, device: Device) -> int:
        """The length of the request that came while polling, as `Device.receive`; 0: none, or not polled. Raises:
        Gone."""
        if not self._looks:
            return 0
        if self._left:
            self._left -= 1
            return 0
        length = device.receive()
        if length:
            return length
        for _ in range(POLLS - 1):
            _yield()
            length = device.receive()
            if length:
                break
        if self._adapts:
            preempted = self._preemptions()
            self._count(length > 0 and preempted == self._preempted)
            self._preempted = preempted
        return length

    def _count(self, is_success: bool) -> None:
        if is_success:
            self._credit += 1
            if self._credit >= _MAX_CREDIT:
                self._credit, self._pause = _MAX_CREDIT, _PAUSE
            return
        self._credit -= _COST_OF_FAILURE
        if self._credit < 0:
            self._credit, self._left = _CREDIT_AFTER_PAUSE, self._pause
            self._pause = min(2 * self._pause, _MAX_PAUSE)
