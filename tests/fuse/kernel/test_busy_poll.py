"""Busy polling: how often it looks for a request without sleeping, by what that was worth and who wants to run."""

from __future__ import annotations

from typing import cast

import pytest

from unionfs.fuse.kernel.busy_poll import POLLS, BusyPoll
from unionfs.fuse.kernel.device import Device


class Looked:
    """A device that has a request or none, as told, and counts how often it was asked."""

    def __init__(self) -> None:
        self.answers: list[bool] = []  # those still to be given; then there is nothing for ever
        self.looks = 0

    def receive(self) -> int:
        self.looks += 1
        return 40 if self.answers and self.answers.pop(0) else 0

    def looks_of(self, busy_poll: BusyPoll, *answers: bool) -> int:
        """How often one call looks, when nothing comes but what is in `answers`."""
        before = self.looks
        self.answers = list(answers)
        busy_poll.look(cast(Device, self))
        return self.looks - before


class Others:
    """Other threads, which have taken the processor as often as told."""

    def __init__(self) -> None:
        self.preemptions = 0
        self.asked = 0

    def __call__(self) -> int:
        self.asked += 1
        return self.preemptions


def automatic(others: Others | None = None) -> BusyPoll:
    return BusyPoll("auto", lambda: True, others or Others())


def test_a_request_that_comes_ends_the_looking() -> None:
    device, busy_poll = Looked(), automatic()
    device.answers = [False, False, True, True]
    assert busy_poll.look(cast(Device, device)) == 40
    assert device.looks == 3
    assert busy_poll.look(cast(Device, device)) == 40
    assert device.looks == 4


def test_without_a_free_processor_there_is_no_polling() -> None:
    device, busy_poll = Looked(), BusyPoll("auto", lambda: False, Others())
    assert [device.looks_of(busy_poll, True) for _ in range(100)] == [0] * 100


def test_looking_in_vain_becomes_rare() -> None:
    device, busy_poll = Looked(), automatic()
    looks = [device.looks_of(busy_poll) for _ in range(100_000)]
    assert looks[:9] == [POLLS] * 9
    assert looks[9:73] == [0] * 64
    assert looks[73:76] == [POLLS] * 3
    assert looks[76:204] == [0] * 128, "each pause is twice as long"
    assert looks.count(POLLS) == 63
    last = len(looks) - looks[::-1].index(POLLS)
    assert len(looks) - last <= 8192, "but there is a longest one"


def test_looking_is_rare_while_others_want_the_processor() -> None:
    """Also if it finds requests: a program beside it, or another daemon, had to wait for it."""
    device, others = Looked(), Others()
    busy_poll = automatic(others)
    looked = 0
    for _ in range(10_000):
        others.preemptions += 1
        looked += device.looks_of(busy_poll, False, True) > 0
    assert looked < 40


def test_polling_begins_again_after_a_pause() -> None:
    device, others = Looked(), Others()
    busy_poll = automatic(others)
    for _ in range(2000):
        others.preemptions += 1
        device.looks_of(busy_poll, False, True)
    for _ in range(2000):
        device.looks_of(busy_poll, False, True)
    assert [device.looks_of(busy_poll, False, True) for _ in range(100)] == [2] * 100
    others.preemptions += 1
    looks = [device.looks_of(busy_poll, False, True) for _ in range(10)]
    assert looks == [2] * 10, "once is no reason to end it"


def test_requests_that_are_there_already_say_nothing_about_looking() -> None:
    device, others = Looked(), Others()
    busy_poll = automatic(others)
    asked = others.asked
    for _ in range(200):
        others.preemptions += 1
        assert device.looks_of(busy_poll, True) == 1
    assert others.asked == asked


def test_two_finds_in_three_are_worth_the_looking() -> None:
    device, busy_poll = Looked(), automatic()
    for _ in range(200):
        assert device.looks_of(busy_poll, False, True) == 2
        assert device.looks_of(busy_poll, False, True) == 2
        assert device.looks_of(busy_poll) == POLLS


def test_one_find_in_four_is_not() -> None:
    device, busy_poll = Looked(), automatic()
    looked = [device.looks_of(busy_poll, False, number % 4 == 0) for number in range(4000)]
    assert len([looks for looks in looked if looks > 2]) < 50


@pytest.mark.parametrize(("mode", "looks"), [("on", POLLS), ("off", 0)])
def test_on_and_off_depend_on_nothing(mode: str, looks: int) -> None:
    device, others = Looked(), Others()
    busy_poll = BusyPoll(mode, lambda: mode == "off", others)
    for _ in range(200):
        others.preemptions += 1
        assert device.looks_of(busy_poll) == looks
