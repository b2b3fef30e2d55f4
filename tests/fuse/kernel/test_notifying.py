"""Notifications to the kernel: their bytes, when they are sent, and when they must wait. The test is the kernel."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.core.trees import tree
from tests.fuse.kernel import wire
from tests.fuse.kernel.dispatched_union import Served, done
from tests.fuse.kernel.wire import ROOT
from tests.support.timing import limit
from unionfs.core.attrs import ANY_NAME, Invalidation
from unionfs.core.options import Options
from unionfs.core.union import Union
from unionfs.fuse.kernel import encode, server
from unionfs.fuse.kernel.abi import Notify
from unionfs.fuse.kernel.session import Session, Tuning
from unionfs.fuse.options import ServeOptions
from unionfs.fuse.watching import UNWATCHED_S, Notifier


@pytest.mark.parametrize(
    ("stale", "code", "body"),
    [
        (Invalidation(7, b""), Notify.INVAL_INODE, struct.pack("=Qqq", 7, -1, 0)),
        (Invalidation(7, b"", data=True), Notify.INVAL_INODE, struct.pack("=Qqq", 7, 0, 0)),
        (Invalidation(1, b"name"), Notify.INVAL_ENTRY, struct.pack("=QII", 1, 4, 0) + b"name\0"),
        (Invalidation(1, b"name", 7), Notify.DELETE, struct.pack("=QQII", 1, 7, 4, 0) + b"name\0"),
        (ANY_NAME, Notify.INC_EPOCH, b""),
    ],
)
def test_the_bytes(stale: Invalidation, code: Notify, body: bytes) -> None:
    message = encode.notify_invalidation(stale, with_epochs=True)
    assert message == struct.pack("=IiQ", 16 + len(body), code, 0) + body


def test_without_epochs_not_every_name_can_be_invalidated() -> None:
    assert encode.notify_invalidation(ANY_NAME, with_epochs=False) is None


class Watched:
    """A watched union that is served, and the kernel's end of it."""

    def __init__(self, base: Path) -> None:
        (base / "work").mkdir()
        self.lower = tree(base / "lower", "f=hello d/a=1")
        self.upper = tree(base / "upper", "")
        lowers = (str(self.lower),)
        self.union = Union(Options(lowers=lowers, upper=str(self.upper), work=str(base / "work")))
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(limit(60))

    def serve(self, minor: int, talk: Callable[[], None]) -> None:
        failed: list[BaseException] = []

        def speak() -> None:
            try:
                talk()
            except BaseException as failure:  # noqa: BLE001  raised again in the main thread
                failed.append(failure)
            finally:
                self.ours.send(wire.request(wire.DESTROY, 0, unique=999))

        notifier = Notifier(self.union)
        session = Session(ServeOptions(), Tuning())
        request = wire.init(minor)
        session.init(1, memoryview(request), len(request))
        speaker = threading.Thread(target=speak)
        speaker.start()
        fd = os.dup(self.theirs.fileno())
        server.serve(fd, self.union, options=ServeOptions(), traffic=session, notifier=notifier)
        speaker.join()
        if failed:
            raise failed[0]

    def ask(self, request: bytes) -> wire.Reply:
        self.ours.send(request)
        return wire.reply(self.ours.recv(1 << 20))

    def hear(self) -> tuple[int, bytes]:
        """The next notification: its code and what it says."""
        message = self.ours.recv(1 << 20)
        length, code, unique = struct.unpack_from("=IiQ", message)
        assert (length, unique) == (len(message), 0)
        return code, message[16:]

    def close(self) -> None:
        self.union.close()
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path)
    yield made
    made.close()


def test_changes_are_notified(watched: Watched) -> None:
    def talk() -> None:
        node = wire.entry_out(watched.ask(wire.request(wire.LOOKUP, body=b"f\0")).body).nodeid
        assert watched.ask(wire.request(wire.GETATTR, body=bytes(16))).error == 0
        (watched.lower / "f").chmod(0o600)
        assert watched.hear() == (Notify.INVAL_INODE, struct.pack("=Qqq", node, -1, 0))
        os.truncate(watched.lower / "f", 1)
        assert watched.hear() == (Notify.INVAL_INODE, struct.pack("=Qqq", node, 0, 0))
        (watched.lower / "f").unlink()
        assert watched.hear() == (Notify.DELETE, struct.pack("=QQII", ROOT, node, 1, 0) + b"f\0")
        assert watched.hear() == (Notify.INVAL_INODE, struct.pack("=Qqq", ROOT, 0, 0))

    watched.serve(45, talk)


@pytest.mark.parametrize(("minor", "seconds"), [(45, 10**9), (44, 10**9), (43, int(UNWATCHED_S))])
def test_timeout_of_missing_names(watched: Watched, minor: int, seconds: int) -> None:
    """As long as all others, if the kernel can be told to believe none of them any more."""

    def talk() -> None:
        missing = wire.entry_out(watched.ask(wire.request(wire.LOOKUP, body=b"nothing\0")).body)
        assert (missing.nodeid, missing.entry_valid) == (0, seconds)
        there = wire.entry_out(watched.ask(wire.request(wire.LOOKUP, body=b"f\0")).body)
        assert there.entry_valid == 10**9

    watched.serve(minor, talk)


def test_no_notification_is_sent_while_its_lock_waits_for_a_copy_up(served: Served) -> None:
    big, directory = served.node(b"big"), served.node(b"d")
    dispatcher = served.dispatcher
    assert served.raw(wire.request(wire.RENAME, ROOT, struct.pack("=Q", directory) + b"big\0moved\0")) is None
    (job,) = dispatcher.slow
    dispatcher.slow.clear()
    told = [
        Invalidation(ROOT, b"f"),
        Invalidation(directory, b"a", 9),
        Invalidation(99, b"x", big),
        Invalidation(99, b"x"),
        Invalidation(big, b""),
    ]
    assert [dispatcher.may_send(stale) for stale in told] == [False, False, False, True, False]
    assert done(dispatcher, job) is not None
    assert all(dispatcher.may_send(stale) for stale in told)
