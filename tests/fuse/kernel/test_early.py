"""The first requests of a mount, served between the tasks of its start. The device is a socket that keeps messages
apart, as /dev/fuse does."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

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

    def task(self, name: str, then: Callable[[], object] = lambda: None) -> early.StartupTask:
        def do() -> None:
            self.log.append(f"{name} after {self.answers()}")
            then()

        return do

    def start(self, *tasks: early.StartupTask) -> None:
        early.serve(self.device, BusyPoll("off", lambda: False), self.served.dispatcher, tasks)

    def close(self) -> None:
        self.end.close()
        self._device_end.close()


@pytest.fixture
def kernel(served: Served) -> Iterator[Kernel]:
    made = Kernel(served)
    yield made
    made.close()


def test_what_is_asked_goes_before_each_task(kernel: Kernel) -> None:
    for _ in range(3):
        kernel.ask()
    kernel.start(kernel.task("first", kernel.ask), kernel.task("second"), kernel.task("third"))
    assert kernel.log == ["first after 3", "second after 1", "third after 0"]


def test_who_asks_for_ever_does_not_keep_tasks_from_being_done(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    receive = Device.receive
    kernel.ask()

    def busy(self: Device) -> int:
        length = receive(self)
        kernel.ask()
        kernel.end.recv(1 << 20, socket.MSG_DONTWAIT) if length and kernel.log else None
        return length

    monkeypatch.setattr(Device, "receive", busy)
    monkeypatch.setattr(early, "_MAX_DELAY_S", 0.01)
    monkeypatch.setattr(Device, "send", lambda self, reply: True)
    since = time.monotonic()
    early.serve(kernel.device, BusyPoll("off", lambda: False), kernel.served.dispatcher, [lambda: None] * 3)
    assert 0.03 <= time.monotonic() - since < 10


def test_what_is_slow_waits_for_the_loop_and_ends_the_waiting(kernel: Kernel) -> None:
    big = kernel.served.node(b"big")
    kernel.ask(wire.write(big, BIG, b"x"))
    kernel.start(kernel.task("first", kernel.ask), kernel.task("second"))
    assert kernel.log == ["first after 0", "second after 0"], "what came after the slow one is for the loop"
    assert len(kernel.served.dispatcher.slow) == 1
    (job,) = kernel.served.dispatcher.slow
    kernel.served.dispatcher.slow.clear()
    kernel.served.dispatcher.finish(job, OSError(5, "not wanted here"))  # type: ignore[arg-type]


def test_the_end_of_the_mount(kernel: Kernel) -> None:
    kernel.ask(wire.request(wire.DESTROY, 0))
    kernel.start(kernel.task("first"), kernel.task("second"))
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
        kernel.start(kernel.task("never"))
    assert kernel.answers() == 1
    assert kernel.log == []
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_in_the_last_task(kernel: Kernel) -> None:
    with pytest.raises(KeyboardInterrupt):
        kernel.start(kernel.task("only", lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert kernel.log == ["only after 0"]


def test_a_task_that_fails(kernel: Kernel) -> None:
    def fail() -> None:
        raise OSError(12, "no memory")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(OSError, match="no memory"):
        kernel.start(fail, kernel.task("never"))
    assert kernel.log == []
    assert signal.getsignal(signal.SIGINT) is before
