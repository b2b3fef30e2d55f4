"""Looks for the next request again and again for a moment, instead of sleeping until it comes (`--busy-poll`).

To be woken costs more than to serve: the processor has gone to sleep and its caches are cold, most of all in virtual
machines. A program that got its answer asks again within 200 microseconds in more than 95 of 100 cases. So before it
sleeps the daemon reads the device up to `LOOKS` times, which takes about so long. That keeps a processor busy:

    on      always look
    off     never look
    auto    look while a processor is to spare (`syscalls.processors`), and as long as two looks in three find a
            request; else try again after a while

What it gains is in benchmarks/README.md. The transport behind libfuse never looks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from unionfs.fuse.kernel.device import Device
from unionfs.fuse.options import BUSY_POLL_AUTO, BUSY_POLL_OFF

LOOKS: Final = 160
"""The most looks for one request."""
_MAX_CREDIT: Final = 16
_COST_OF_MISS: Final = 2  # of credit; a request that is found adds 1
_CREDIT_AFTER_PAUSE: Final = 4
_PAUSE: Final = 64
"""Requests without a look after the credit was used up."""
_PERIOD: Final = 16
"""Requests between two questions whether a processor is to spare."""


class BusyPoll:
    """Whether and how long to look for the next request of one device."""

    def __init__(self, mode: str, is_spare: Callable[[], bool]) -> None:
        """`mode`: "on", "off" or "auto"; `is_spare`: whether a processor is to spare now, asked in "auto" only."""
        self._mode = mode  # immutable
        self._is_spare = is_spare  # immutable
        self._credit = _MAX_CREDIT  # changed by look only, as are the next
        self._looks = mode != BUSY_POLL_OFF
        self._left = 0  # requests until is_spare is asked again

    def look(self, device: Device) -> int:
        """The length of the request that came while looking, as `Device.receive`; 0: none, or not looked. Raises:
        Gone."""
        if self._mode == BUSY_POLL_AUTO:
            if not self._left:
                self._left = _PERIOD
                self._looks = self._is_spare()
            self._left -= 1
        if not self._looks:
            return 0
        for _ in range(LOOKS):
            length = device.receive()
            if length:
                self._credit = min(self._credit + 1, _MAX_CREDIT)
                return length
        if self._mode == BUSY_POLL_AUTO:
            self._count_miss()
        return 0

    def _count_miss(self) -> None:
        self._credit -= _COST_OF_MISS
        if self._credit < 0:
            self._credit = _CREDIT_AFTER_PAUSE
            self._looks = False
            self._left = _PAUSE
        else:
            self._looks = self._is_spare()
