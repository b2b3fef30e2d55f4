"""Busy polling: how often it looks for a request without sleeping, by what that was worth and who wants to run."""

from __future__ import annotations

from typing import cast

from unionfs.fuse.kernel.busy_poll import LOOKS, BusyPoll
from unionfs.fuse.kernel.device import Device


class Looked:
    """A device that has a request or none, as told, and counts how often it was asked."""

    def __init__(self) -> None:
        self.answers: list[bool] = []  # those still to be given; then there is nothing for ever
        self.looks = 0

    def receive(self) -> int:
        self.looks += 1
        return 40 if self.answers and self.answers.pop(0) else 0

    def looks_of(self, busy_poll: BusyPoll) -> int:
        """How often one call looks, when nothing comes but what is in `answers`."""
        before = self.looks
        busy_poll.look(cast(Device, self))
        return self.looks - before


class Processor:
    """Whether one is to spare, as told, and how often that was asked."""

    def __init__(self, is_to_spare: bool = True) -> None:
        self.is_to_spare = is_to_spare
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.is_to_spare


def test_a_request_that_comes_ends_the_looking() -> None:
    device, busy_poll = Looked(), BusyPoll("auto", Processor())
    device.answers = [False, False, True, True]
    assert busy_poll.look(cast(Device, device))
    assert device.looks == 3
    assert busy_poll.look(cast(Device, device))
    assert device.looks == 4


def test_a_processor_that_others_want_is_left_to_them() -> None:
    device, processor = Looked(), Processor(False)
    busy_poll = BusyPoll("auto", processor)
    assert [device.looks_of(busy_poll) for _ in range(1600)] == [0] * 1600
    assert processor.asked == 100


def test_looking_begins_when_there_is_a_processor_to_spare() -> None:
    device, processor = Looked(), Processor(False)
    busy_poll = BusyPoll("auto", processor)
    assert device.looks_of(busy_poll) == 0
    processor.is_to_spare = True
    looks = [device.looks_of(busy_poll) for _ in range(16)]
    assert looks[:15] == [0] * 15
    assert looks[15] == LOOKS


def test_looking_ends_when_others_want_the_processor() -> None:
    device, processor = Looked(), Processor()
    busy_poll = BusyPoll("auto", processor)
    for _ in range(5):
        device.answers = [True]
        assert device.looks_of(busy_poll) == 1
    processor.is_to_spare = False
    assert device.looks_of(busy_poll) == LOOKS, "nobody has been asked yet"
    assert device.looks_of(busy_poll) == 0, "in vain, so somebody was"


def test_others_are_asked_after_while_looking_is_worth_it() -> None:
    device, processor = Looked(), Processor()
    busy_poll = BusyPoll("auto", processor)
    for _ in range(160):
        device.answers = [True]
        assert device.looks_of(busy_poll) == 1
    assert processor.asked == 10
    processor.is_to_spare = False
    assert device.looks_of(busy_poll) == 0


def test_looking_in_vain_becomes_rare() -> None:
    device, busy_poll = Looked(), BusyPoll("auto", Processor())
    looks = [device.looks_of(busy_poll) for _ in range(10_000)]
    assert looks[:9] == [LOOKS] * 9
    assert looks[9:73] == [0] * 64
    assert sum(looks) / len(looks) < LOOKS / 20, "one request in more than 20 looked for, in the long run"


def test_two_finds_in_three_are_worth_the_looking() -> None:
    device, busy_poll = Looked(), BusyPoll("auto", Processor())
    for _ in range(1000):
        device.answers = [True]
        assert device.looks_of(busy_poll) == 1
        device.answers = [True]
        assert device.looks_of(busy_poll) == 1
        assert device.looks_of(busy_poll) == LOOKS


def test_one_find_in_four_is_not() -> None:
    device, busy_poll = Looked(), BusyPoll("auto", Processor())
    wanted = 0
    for number in range(4000):
        device.answers = [number % 4 == 0]
        wanted += device.looks_of(busy_poll) > 1
    assert wanted < 1000


def test_on_looks_at_each_request_and_asks_for_no_processor() -> None:
    device, processor = Looked(), Processor(False)
    busy_poll = BusyPoll("on", processor)
    assert [device.looks_of(busy_poll) for _ in range(100)] == [LOOKS] * 100
    device.answers = [True]
    assert busy_poll.look(cast(Device, device)) == 40
    assert processor.asked == 0


def test_off_never_looks() -> None:
    device, processor = Looked(), Processor()
    busy_poll = BusyPoll("off", processor)
    device.answers = [True]
    assert [device.looks_of(busy_poll) for _ in range(100)] == [0] * 100
    assert processor.asked == 0
