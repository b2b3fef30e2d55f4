"""The first requests of a mount, served between the chores of its start. The device is a socket that keeps messages
apart, as /dev/fuse does."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.core.trees import tree
from tests.fuse.kernel import wire
from tests.fuse.kernel.dispatched_union import BIG, Served
from tests.fuse.kernel.wire import ROOT
from unionfs.fuse.kernel import early
from unionfs.fuse.kernel.busy_poll import BusyPoll
from unionfs.fuse.kernel.device import Device

LOOKUP = wire.request(wire.LOOKUP, ROOT, b"f\0")


class Kernel:
    """The other end of the device, and a daemon's start at this one."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.end, self._device_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.device = Device(self._device_end.fileno())
        self.log: list[str] = []

    def ask(self, request: bytes = LOOKUP) -> None:
        self.end.send(request)

    def answers(self) -> int:
        """How many have come since the last time."""
        count = 0
        while True:
            try:
                answer = self.end.recv(1 << 20, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return count
            wire.reply(answer)
            count += 1

    def chore(self, name: str, then: Callable[[], object] = lambda: None) -> early.Chore:
        def do() -> None:
            self.log.append(f"{name} after {self.answers()}")
            then()

        return do

    def start(self, *chores: early.Chore) -> None:
        early.serve(self.device, BusyPoll("off", lambda: False), self.served.dispatcher, chores)

    def close(self) -> None:
        self.end.close()
        self._device_end.close()


@pytest.fixture
def kernel(served: Served) -> Iterator[Kernel]:
    made = Kernel(served)
    yield made
    made.close()


def test_what_is_asked_goes_before_each_chore(kernel: Kernel) -> None:
    for _ in range(3):
        kernel.ask()
    kernel.start(kernel.chore("first", kernel.ask), kernel.chore("second"), kernel.chore("third"))
    assert kernel.log == ["first after 3", "second after 1", "third after 0"]


def test_who_asks_for_ever_does_not_keep_chores_from_being_done(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = Device.receive
    kernel.ask()

    def busy(self: Device) -> int:
        length = receive(self)
        kernel.ask()
        kernel.end.recv(1 << 20, socket.MSG_DONTWAIT) if length and kernel.log else None
        return length

    monkeypatch.setattr(Device, "receive", busy)
    monkeypatch.setattr(early, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(Device, "send", lambda self, reply: True)
    since = time.monotonic()
    early.serve(kernel.device, BusyPoll("off", lambda: False), kernel.served.dispatcher, [lambda: None] * 3)
    assert 0.03 <= time.monotonic() - since < 10


def test_what_is_slow_waits_for_the_loop_and_ends_the_waiting(kernel: Kernel) -> None:
    big = kernel.served.node(b"big")
    kernel.ask(wire.write(big, BIG, b"x"))
    kernel.start(kernel.chore("first", kernel.ask), kernel.chore("second"))
    assert kernel.log == ["first after 0", "second after 0"], "what came after the slow one is for the loop"
    assert len(kernel.served.dispatcher.slow) == 1
    (job,) = kernel.served.dispatcher.slow
    kernel.served.dispatcher.slow.clear()
    kernel.served.dispatcher.finish(job, OSError(5, "not wanted here"))  # type: ignore[arg-type]


def test_the_end_of_the_mount(kernel: Kernel) -> None:
    kernel.ask(wire.request(wire.DESTROY, 0))
    kernel.start(kernel.chore("first"), kernel.chore("second"))
    assert kernel.log == ["first after 1", "second after 0"]
    assert kernel.served.dispatcher.session.over
    kernel.served.dispatcher.session.over = False  # for the fixture


def test_an_interrupt_waits_for_the_end_of_a_request(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    handle = kernel.served.dispatcher.handle

    def told_meanwhile(buf: memoryview, end: int) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return handle(buf, end)

    monkeypatch.setattr(kernel.served.dispatcher, "handle", told_meanwhile)
    kernel.ask()
    with pytest.raises(KeyboardInterrupt):
        kernel.start(kernel.chore("never"))
    assert kernel.answers() == 1
    assert kernel.log == []
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_in_the_last_chore(kernel: Kernel) -> None:
    with pytest.raises(KeyboardInterrupt):
        kernel.start(kernel.chore("only", lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert kernel.log == ["only after 0"]


def test_a_chore_that_fails(kernel: Kernel) -> None:
    def fail() -> None:
        raise OSError(12, "no memory")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(OSError, match="no memory"):
        kernel.start(fail, kernel.chore("never"))
    assert kernel.log == []
    assert signal.getsignal(signal.SIGINT) is before


def test_copies_made_ahead_do_not_stay_between_chores(kernel: Kernel, tmp_path: Path) -> None:
    """Each time nobody asks, the union rests."""
    served = kernel.served
    tree(served.lower, " ".join(f"many/f{number}=content" for number in range(12)))
    many = served.node(b"many")
    listing = [
        entry.name for entry in wire.dirents(served.ask(wire.read(many, 0, 1 << 16, wire.READDIRPLUS)).body, plus=True)
    ]
    files = [served.node(name, many) for name in listing if name.startswith(b"f")]
    for file in files[:6]:
        kernel.ask(wire.setattr_(file, 1, mode=0o600))
    mtime = (served.lower / "many").stat().st_mtime_ns
    kernel.start(kernel.chore("first"))
    assert kernel.log == ["first after 6"]
    assert [name for name in os.listdir(served.work) if name.startswith("live")]
    assert [leaf for _top, _dirs, leaves in os.walk(served.work) for leaf in leaves if leaf.startswith("t")] == []
    assert (served.upper / "many").stat().st_mtime_ns == mtime
