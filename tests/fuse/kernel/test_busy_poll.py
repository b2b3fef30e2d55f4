"""Busy polling: when the daemon polls for a request, given the costs of sleeping and polling, and other threads."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import pytest

from unionfs.fuse.kernel.busy_poll import BLOCK, KEPT, MOST_REST, POLLS, REST, BusyPoll
from unionfs.fuse.kernel.device import Device

_US = 1e-6


class FakeDevice:
    """A device, its clocks and the other threads. Each request comes `think` microseconds after the one before."""

    def __init__(self, think: float, wake: float) -> None:
        """`think`: until the next request is there; `wake`: how much longer a sleeper waits for it. In microseconds."""
        self.think = think
        self.wake = wake
        self.cost_of_sleep = 4.0  # processor time in microseconds
        self.now = 0.0
        self.used = 0.0
        self.preemptions = 0
        self.preempts = False  # whether each poll is preempted once
        self.polls = 0
        self.clock_reads = 0
        self._arrives = 0.0

    def receive(self) -> int:
        self.polls += 1
        self.now += 2 * _US
        self.used += 2 * _US
        if self.now < self._arrives:
            return 0
        return self._give()

    def sleep(self) -> int:
        self.now = max(self.now, self._arrives) + self.wake * _US
        self.used += self.cost_of_sleep * _US
        return self._give()

    def _give(self) -> int:
        self.preemptions += self.preempts
        self._arrives = self.now + self.think * _US
        return 40

    def clock(self) -> float:
        self.clock_reads += 1
        return self.now

    def busy_poll(self, mode: str = "auto", *, is_unlimited: bool = True) -> BusyPoll:
        return BusyPoll(mode, lambda: is_unlimited, lambda: self.preemptions, self.clock, lambda: self.used)

    def polled(self, busy_poll: BusyPoll, count: int) -> list[bool]:
        """For each of `count` requests, whether the device was polled for it."""
        polled = []
        for _ in range(count):
            before = self.polls
            assert busy_poll.wait(cast(Device, self)) == 40
            polled.append(self.polls > before)
        return polled


def blocks(polled: list[bool]) -> list[bool]:
    """For each whole block, whether it was polled for; all requests of a block are treated alike."""
    found = [set(polled[at : at + BLOCK]) for at in range(0, len(polled) - BLOCK + 1, BLOCK)]
    assert all(len(block) == 1 for block in found)
    return [True in block for block in found]


def test_polling_where_waking_is_expensive() -> None:
    device = FakeDevice(think=10, wake=30)
    polled = blocks(device.polled(device.busy_poll(), BLOCK * 2 * (2 + KEPT)))
    assert polled == [False, True, *[True] * KEPT] * 2, "and measures again after some blocks"


def test_sleeping_where_waking_is_cheap() -> None:
    device = FakeDevice(think=20, wake=5)
    trials = [at for at, is_polled in enumerate(blocks(device.polled(device.busy_poll(), BLOCK * 1000))) if is_polled]
    rests = [next_one - at - 2 for at, next_one in pairwise(trials)]
    assert rests[:6] == [REST, 2 * REST, 4 * REST, 8 * REST, 16 * REST, MOST_REST], "each rest is twice as long"
    assert set(rests[5:]) == {MOST_REST}, "but there is a longest one"


def test_polling_for_a_program_that_sends_requests_at_once() -> None:
    """Polling then takes no more processor time than falling asleep and waking up."""
    device = FakeDevice(think=2, wake=3)
    assert sum(blocks(device.polled(device.busy_poll(), BLOCK * 66))) == 64


def test_polling_ends_when_the_program_sends_requests_more_slowly() -> None:
    device = FakeDevice(think=10, wake=30)
    busy_poll = device.busy_poll()
    device.polled(busy_poll, BLOCK * (2 + KEPT))
    device.think, device.wake = 100, 5
    assert blocks(device.polled(busy_poll, BLOCK * (2 + REST))) == [False, True, *[False] * REST]


def test_polls_without_requests_end_polling_at_once() -> None:
    device = FakeDevice(think=10, wake=30)
    busy_poll = device.busy_poll()
    device.polled(busy_poll, BLOCK * 3)
    device.think = 2 * POLLS + 100
    assert blocks(device.polled(busy_poll, BLOCK * (1 + REST))) == [True, *[False] * REST]


def test_waiting_threads_end_polling_at_once() -> None:
    """Also if the polls find requests: a program beside it, or another daemon, had to wait for it."""
    device = FakeDevice(think=10, wake=30)
    busy_poll = device.busy_poll()
    device.polled(busy_poll, BLOCK * 3)
    device.preempts = True
    polled = blocks(device.polled(busy_poll, BLOCK * 1000))
    assert polled[: 1 + REST] == [True, *[False] * REST]
    assert sum(polled) < 16


def test_a_vain_poll_reads_the_device_so_often() -> None:
    device = FakeDevice(think=10_000, wake=30)
    busy_poll = device.busy_poll("on")
    device.polled(busy_poll, 1)
    before = device.polls
    device.polled(busy_poll, 1)
    assert device.polls - before == POLLS


@pytest.mark.parametrize(("mode", "is_unlimited", "polls"), [("on", False, 5), ("off", True, 0), ("auto", False, 0)])
def test_without_polling_nothing_is_measured(mode: str, is_unlimited: bool, polls: int) -> None:
    """`auto` without a free processor is as `off`."""
    device = FakeDevice(think=9, wake=30)  # which a read takes 2 of
    busy_poll = device.busy_poll(mode, is_unlimited=is_unlimited)
    device.polled(busy_poll, 1)
    for _ in range(200):
        before = device.polls
        assert busy_poll.wait(cast(Device, device)) == 40
        assert device.polls - before == polls
    assert device.clock_reads == 0
