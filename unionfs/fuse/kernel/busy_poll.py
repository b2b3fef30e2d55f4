"""Poll for the next request for a short time before sleeping (`--busy-poll`).

Where waking up a processor is expensive, as in many virtual machines, a daemon that polls answers a program's next
request much sooner; where it is cheap, polling gains little and costs processor time. A daemon cannot know where it
runs, so it measures both.

    on      always poll
    off     never poll
    auto    poll while a second of processor time shortens the waits by a second or more. Never with a single
            processor, or under a quota of a cgroup (`syscalls.processors`)

In `auto` the daemon sleeps for `BLOCK` requests and polls for the next `BLOCK`, and compares the medians of the wait
for a request and of its processor time. If polling is worth it, the next `KEPT` blocks are polled for, and both are
measured again. If not, or if in one of three polls no request came or another thread wanted the processor, the daemon
sleeps for `REST` blocks before it tries again, and each time for twice as many, up to `MOST_REST`.

One poll reads the device up to `POLLS` times, and offers the processor to other threads in between (sched_yield(2)).
benchmarks/README.md has figures. The transport with libfuse never polls.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from unionfs.fuse.kernel.device import Device
from unionfs.fuse.options import BUSY_POLL_AUTO, BUSY_POLL_OFF

POLLS: Final = 100
"""Maximum number of reads for one request: some 200 microseconds."""
BLOCK: Final = 64
"""Requests in a block."""
KEPT: Final = 31
REST: Final = 4
MOST_REST: Final = 128

_SLEEP: Final = 0  # the states of `auto`: a block of sleeping is measured
_POLL: Final = 1  # a block of polling is measured
_KEEP: Final = 2  # polling
_REST: Final = 3  # sleeping

_yield: Final = os.sched_yield


class BusyPoll:
    """Waits for the next request of one device."""

    def __init__(
        self,
        mode: str,
        is_unlimited: Callable[[], bool],
        preemptions: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        processor_time: Callable[[], float] = time.thread_time,
    ) -> None:
        """`mode`: "on", "off" or "auto". In "auto" only, `is_unlimited` says once whether a processor may be kept busy,
        `preemptions` how often this thread was preempted (`syscalls.processors`), `clock` the time and `processor_time`
        that of this thread, in seconds."""
        self._adapts = mode == BUSY_POLL_AUTO and is_unlimited()  # immutable
        self._polls = mode not in (BUSY_POLL_OFF, BUSY_POLL_AUTO)  # immutable
        self._preemptions = preemptions  # immutable
        self._clock = clock  # immutable
        self._processor_time = processor_time  # immutable
        # The rest is for `auto`, and changed by `wait` only.
        self._state = _SLEEP
        self._left = BLOCK  # requests until the block ends
        self._kept = 0  # blocks left in _KEEP
        self._rest = REST  # blocks of the next rest
        self._waits: list[float] = []  # for each request of the block that is measured, in seconds
        self._costs: list[float] = []  # the processor time of these waits
        self._wait_asleep = 0.0  # medians of the last block of _SLEEP
        self._cost_asleep = 0.0
        self._in_vain = 0  # polls of the block in which no request came
        self._preempted = 0  # when the block began

    def wait(self, device: Device) -> int:
        """Read the next request, as `Device.sleep`. Raises: as that."""
        if not self._adapts:
            return (self._poll(device) if self._polls else 0) or device.sleep()
        if not self._left:
            self._end_block()
        self._left -= 1
        state = self._state
        if state == _REST:
            return device.sleep()
        if state == _KEEP:
            return self._poll(device) or device.sleep()
        began, used = self._clock(), self._processor_time()
        length = (self._poll(device) if state == _POLL else 0) or device.sleep()
        self._costs.append(self._processor_time() - used)
        self._waits.append(self._clock() - began)
        return length

    def _poll(self, device: Device) -> int:
        """The length of the request that came while polling, as `Device.receive`; 0: none. Raises: Gone."""
        length = device.receive()
        if length:
            return length
        for _ in range(POLLS - 1):
            _yield()
            length = device.receive()
            if length:
                return length
        self._in_vain += 1
        return 0

    def _end_block(self) -> None:
        """Choose what to do for the next block, or blocks."""
        state, self._left = self._state, BLOCK
        if state == _REST:
            self._begin(_SLEEP)
        elif state == _SLEEP:
            self._wait_asleep, self._cost_asleep = _median(self._waits), _median(self._costs)
            self._begin(_POLL)
        elif (self._in_vain + self._preemptions() - self._preempted) * 3 > BLOCK or (
            state == _POLL and self._wait_asleep - _median(self._waits) < _median(self._costs) - self._cost_asleep
        ):
            self._begin(_REST)
            self._left = self._rest * BLOCK
            self._rest = min(2 * self._rest, MOST_REST)
        elif state == _POLL:
            self._rest, self._kept = REST, KEPT
            self._begin(_KEEP)
        else:
            self._kept -= 1
            self._begin(_KEEP if self._kept else _SLEEP)

    def _begin(self, state: int) -> None:
        self._state = state
        self._waits.clear()
        self._costs.clear()
        self._in_vain = 0
        if state in (_POLL, _KEEP):
            self._preempted = self._preemptions()


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
