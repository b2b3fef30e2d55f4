"""The loop and the device over a socket pair, which keeps messages apart as /dev/fuse does: the test is the kernel."""

from __future__ import annotations

import errno
import itertools
import os
import platform
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from tests.core.trees import tree
from tests.fuse.kernel import wire
from tests.support.timing import limit
from unionfs.core.options import Options
from unionfs.core.union import Union
from unionfs.fuse.kernel import handshake, server
from unionfs.fuse.kernel.device import Device, Gone
from unionfs.fuse.kernel.handshake import negotiate
from unionfs.fuse.kernel.session import Session, Tuning, UnsupportedError
from unionfs.fuse.kernel.workers import Workers
from unionfs.fuse.options import ServeOptions

BIG = 3 << 20  # bytes: too many to be copied between two requests
READ = {"x86_64": "0", "aarch64": "63"}.get(platform.machine())


class Kernel:
    """The kernel's end: asks, and reads the answer."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(limit(60))
        for end in (self.ours, self.theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)

    def say(self, request: bytes) -> None:
        self.ours.send(request)

    def hear(self) -> wire.Reply:
        return wire.reply(self.ours.recv(2 << 20))

    def ask(self, request: bytes) -> wire.Reply:
        self.say(request)
        return self.hear()

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


def asleep_in_read(thread: int) -> bool:
    """Whether a thread of this process waits in read(2), by proc_pid_syscall(5)."""
    return Path(f"/proc/self/task/{thread}/syscall").read_text().split()[0] == READ


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


@pytest.fixture
def union(tmp_path: Path) -> Iterator[Union]:
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    lower = tree(tmp_path / "lower", "f=hello d/a=1")
    (lower / "big").write_bytes(b"b" * BIG)
    made = Union(Options(
        lowers=(str(lower),),
        upper=str(tmp_path / "upper"),
        work=str(tmp_path / "work"),
        durability="normal",
    ))  # fmt: skip
    yield made
    made.close()


def while_serving(
    kernel: Kernel, union: Union, talk: Callable[[], None], options: ServeOptions | None = None
) -> Session:
    """Serve in this thread while `talk` speaks as the kernel in another; it is ended by DESTROY."""
    failed: list[BaseException] = []
    session = Session(options or ServeOptions(), Tuning())

    def speak() -> None:
        try:
            assert kernel.ask(wire.init()).error == 0
            talk()
        except BaseException as failure:  # noqa: BLE001  raised again in the main thread
            failed.append(failure)
        finally:
            kernel.say(wire.request(wire.DESTROY, 0, unique=999))

    speaker = threading.Thread(target=speak)
    speaker.start()
    server.serve(os.dup(kernel.theirs.fileno()), union, options=ServeOptions(), traffic=session)
    speaker.join()
    if failed:
        raise failed[0]
    return session


def test_a_conversation(kernel: Kernel, union: Union) -> None:
    def talk() -> None:
        node = wire.entry_out(kernel.ask(wire.request(wire.LOOKUP, body=b"f\0")).body).nodeid
        assert kernel.ask(wire.read(node, 0, 4096)).body == b"hello"
        assert kernel.ask(wire.write(node, 0, b"J")).error == 0
        assert kernel.ask(wire.read(node, 0, 4096)).body == b"Jello"
        assert kernel.ask(wire.request(wire.FSYNC, node, bytes(16))).error == 0

    session = while_serving(kernel, union, talk)
    assert session.messages == {"LOOKUP": 1, "READ": 2, "WRITE": 1, "FSYNC": 1, "INIT": 1, "DESTROY": 1}
    assert kernel.hear()[:2] == (0, 999)


def test_malformed_requests_do_not_end_it(
    kernel: Kernel, union: Union, expect_log: Callable[[str], AbstractContextManager[list[str]]]
) -> None:
    def talk() -> None:
        for request in (b"x", b"\0" * 39, wire.request(wire.FORGET, 1, b"")):
            kernel.say(request)
        assert kernel.ask(wire.request(wire.LOOKUP, body=b"no end")).error == errno.EIO
        assert kernel.ask(wire.request(wire.SETATTR, body=bytes(3))).error == errno.EIO
        assert kernel.ask(wire.request(wire.LOOKUP, body=b"f\0")).error == 0

    with expect_log("malformed"):
        while_serving(kernel, union, talk)


GETATTR = wire.request(wire.GETATTR, 1, bytes(16))


def keep_busy(kernel: Kernel, until: Callable[[wire.Reply], bool]) -> None:
    """Send requests so that there is always one more, until a reply satisfies `until`."""
    for _ in range(50):
        kernel.say(GETATTR)
    while not until(kernel.hear()):
        kernel.say(GETATTR)
    for _ in range(50):
        kernel.hear()


def test_slow_work_is_finished_however_fast_requests_come(kernel: Kernel, union: Union) -> None:
    def talk() -> None:
        node = wire.entry_out(kernel.ask(wire.request(wire.LOOKUP, body=b"f\0")).body).nodeid
        assert kernel.ask(wire.write(node, 0, b"J")).error == 0
        allocated = struct.pack("=QQQII", 0, 0, 4 << 20, 0, 0)
        kernel.say(wire.request(wire.FALLOCATE, node, allocated, unique=77))
        keep_busy(kernel, lambda reply: reply.unique == 77)

    while_serving(kernel, union, talk)


def test_without_threads_the_loop_does_slow_work_itself(
    kernel: Kernel, union: Union, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workers, "run", lambda *_: False)

    def talk() -> None:
        node = wire.entry_out(kernel.ask(wire.request(wire.LOOKUP, body=b"big\0")).body).nodeid
        assert kernel.ask(wire.write(node, 0, b"B")).error == 0
        assert kernel.ask(wire.request(wire.FSYNC, node, bytes(16))).error == 0
        assert kernel.ask(wire.request(wire.FALLOCATE, node, struct.pack("=QQQII", 0, 0, 4 << 20, 0, 0))).error == 0

    while_serving(kernel, union, talk)
    assert union.ledger.bytes == BIG


def interrupted_while(kernel: Kernel, union: Union, talk: Callable[[], None]) -> None:
    """Serve in this thread, which is interrupted, while `talk` speaks as the kernel in another."""
    before = signal.getsignal(signal.SIGINT)
    speaker = threading.Thread(target=talk)
    speaker.start()
    with pytest.raises(KeyboardInterrupt):
        server.serve(os.dup(kernel.theirs.fileno()), union, options=ServeOptions())
    kernel.theirs.close()
    speaker.join()
    assert signal.getsignal(signal.SIGINT) is before


def interrupt() -> bool:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    return False


def test_an_interrupt_ends_the_loop_under_load(kernel: Kernel, union: Union) -> None:
    def talk() -> None:
        kernel.ask(wire.init())
        replies = itertools.count()
        with suppress(OSError, struct.error):
            keep_busy(kernel, lambda _: interrupt() if next(replies) == 100 else False)

    interrupted_while(kernel, union, talk)


@pytest.mark.skipif(READ is None, reason="the number of read(2) on this machine is not known here")
def test_an_interrupt_ends_its_sleep(kernel: Kernel, union: Union) -> None:
    def talk() -> None:
        kernel.ask(wire.init())
        while not asleep_in_read(threading.main_thread().native_id or 0):
            time.sleep(0.001)
        interrupt()

    interrupted_while(kernel, union, talk)


def test_an_interrupt_waits_for_the_end_of_a_request(
    kernel: Kernel, union: Union, monkeypatch: pytest.MonkeyPatch
) -> None:
    statfs = union.statfs

    def interrupted_meanwhile() -> object:
        interrupt()
        return statfs()

    monkeypatch.setattr(union, "statfs", interrupted_meanwhile)
    replies = []

    def talk() -> None:
        kernel.ask(wire.init())
        replies.append(kernel.ask(wire.request(wire.STATFS)))

    interrupted_while(kernel, union, talk)
    assert [reply.error for reply in replies] == [0]


def test_every_request_is_logged_when_asked_for(kernel: Kernel, union: Union, caplog: pytest.LogCaptureFixture) -> None:
    def talk() -> None:
        kernel.ask(wire.request(wire.UNLINK, body=b"nothing\0", unique=17))
        kernel.ask(wire.request(wire.LOOKUP, body=b"f\0", unique=18))

    with caplog.at_level("DEBUG", "unionfs.fuse.kernel.dispatch"):
        while_serving(kernel, union, talk, ServeOptions(debug=True))
    user = f"by uid {os.geteuid()} pid 1"
    assert f"17 UNLINK node 1 {user}: ENOENT" in caplog.messages
    assert f"18 LOOKUP node 1 {user}: 144 bytes" in caplog.messages


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_exception_that_ends_the_loop_is_raised_unchanged(
    kernel: Kernel, union: Union, monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    """Unchanged: the daemon looks for its own exceptions."""

    def torn(*_: object) -> None:
        raise interrupt

    monkeypatch.setattr(union, "statfs", torn)
    kernel.say(wire.init())
    kernel.say(wire.request(wire.STATFS))
    with pytest.raises(interrupt):
        server.serve(os.dup(kernel.theirs.fileno()), union, options=ServeOptions())


# -- the first exchange ----------------------------------------------------------------------------------------------


def test_negotiating_before_serving(kernel: Kernel) -> None:
    kernel.say(wire.init(40))
    session = negotiate(kernel.theirs.fileno(), ServeOptions())
    assert session.minor == 40
    assert session.messages == {"INIT": 1}
    assert struct.unpack_from("=II", kernel.hear().body) == (7, 40)


def test_a_kernel_that_is_too_old_gets_its_answer(kernel: Kernel) -> None:
    kernel.say(wire.init(26))
    with pytest.raises(UnsupportedError, match=r"7\.26.*--transport pyfuse3"):
        negotiate(kernel.theirs.fileno(), ServeOptions())
    assert kernel.hear().error == errno.EPROTO


def test_a_newer_major_version_gets_a_second_init(kernel: Kernel) -> None:
    kernel.say(wire.init(1, major=8))
    kernel.say(wire.init(45))
    assert negotiate(kernel.theirs.fileno(), ServeOptions()).minor == 45


def test_a_request_before_init_is_an_error(kernel: Kernel) -> None:
    """Then somebody else has answered that one: two cannot serve one mount."""
    kernel.say(wire.request(wire.GETATTR, body=bytes(16)))
    with pytest.raises(OSError, match="another process has begun"):
        negotiate(kernel.theirs.fileno(), ServeOptions())
    assert kernel.hear().error == errno.EIO


def test_a_kernel_that_sends_no_init(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "_WAIT_MS", 1)
    with pytest.raises(TimeoutError, match="sends no INIT"):
        negotiate(kernel.theirs.fileno(), ServeOptions())


# -- the device ------------------------------------------------------------------------------------------------------


def test_a_descriptor_that_is_gone() -> None:
    reading, writing = os.pipe()
    device = Device(reading)
    assert device.receive() == 0
    assert not device.wait(0)
    os.close(writing)
    os.close(reading)
    with pytest.raises(Gone):
        device.receive()
    with pytest.raises(Gone):
        device.send(b"reply")


def test_answers_that_the_kernel_refuses_or_ignores(fuse_device: Path) -> None:
    """A descriptor that is not mounted yet takes nothing (EPERM), and that is not hidden."""
    fd = os.open(fuse_device, os.O_RDWR)
    try:
        with pytest.raises(OSError) as caught:
            Device(fd).send(b"reply" * 10)
        assert caught.value.errno == errno.EPERM
    finally:
        os.close(fd)
