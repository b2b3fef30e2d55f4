"""The lookout: how often it looks for a request without sleeping, by what looking has been worth so far."""

from __future__ import annotations

from typing import cast

from unionfs.fuse.kernel import turn
from unionfs.fuse.kernel.device import Device


class Looked:
    """A device that has a request or none, as told, and counts how often it was asked."""

    def __init__(self) -> None:
        self.answers: list[bool] = []  # those still to be given; then there is nothing for ever
        self.looks = 0

    def receive(self) -> int:
        self.looks += 1
        return 40 if self.answers and self.answers.pop(0) else 0

    def looks_of(self, lookout: turn.Lookout) -> int:
        """How often one call looks, when nothing comes but what is in `answers`."""
        before = self.looks
        lookout.look(cast(Device, self))
        return self.looks - before


def test_a_request_that_comes_ends_the_looking() -> None:
    device, lookout = Looked(), turn.Lookout(2)
    device.answers = [False, False, True, True]
    assert lookout.look(cast(Device, device))
    assert device.looks == 3
    assert lookout.look(cast(Device, device))
    assert device.looks == 4


def test_a_single_processor_is_left_to_who_is_going_to_ask() -> None:
    device, lookout = Looked(), turn.Lookout(1)
    assert [device.looks_of(lookout) for _ in range(200)] == [0] * 200


def test_looking_in_vain_becomes_less_and_then_rare() -> None:
    device, lookout = Looked(), turn.Lookout(2)
    looks = [device.looks_of(lookout) for _ in range(1000)]
    assert looks[0] == turn.LOOKS
    assert looks[1] == turn.LOOKS // 2
    assert looks[:20] == sorted(looks[:20], reverse=True)
    assert looks[19] == 0
    assert sum(looks) / len(looks) < 1, "less than one look for each request, in the long run"


def test_looking_becomes_more_again_bit_by_bit_when_it_is_worth_it() -> None:
    device, lookout = Looked(), turn.Lookout(2)
    for _ in range(20):
        device.looks_of(lookout)
    device.answers = [True]
    asked = 0
    while not lookout.look(cast(Device, device)):
        asked += 1
        assert asked < 100
    some = device.looks_of(lookout)
    assert 0 < some < turn.LOOKS
    for _ in range(100):
        device.answers = [True]
        assert lookout.look(cast(Device, device))
    assert device.looks_of(lookout) == turn.LOOKS
