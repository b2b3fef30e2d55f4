"""Partial files are completed while no requests come, and only then."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.core.stack import Stack
from tests.support.timing import limit
from unionfs.fuse.calls import Calls
from unionfs.fuse.kernel.dispatch import CopyUpJob
from unionfs.fuse.kernel.idle_fill import IdleFill
from unionfs.fuse.kernel.session import Session, Tuning
from unionfs.fuse.options import ServeOptions

SIZE = 3 << 20


class Requests(list[int]):
    """The counts of a session that gets a request each time they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0
        self.enough = threading.Event()

    def __iter__(self) -> Iterator[int]:
        self.read += 1
        if self.read == 5:
            self.enough.set()
        return iter((self.read,))


class Loop:
    """Stands for the engine's loop, on this thread."""

    def __init__(self, stack: Stack, session: Session) -> None:
        self.session = session
        self.copied = 0
        self.woken = threading.Event()
        self.calls = Calls(self.woken.set, lambda: lambda _: None, lambda: True, lambda: True)
        self.idle_fill = IdleFill(stack.union, session, self.calls, self.run, idle_s=0.01)

    def run(self, job: CopyUpJob) -> None:
        job.copy()
        self.copied += 1
        assert self.session.release(job.waiting) == {}
        job.commit()

    def end(self) -> None:
        self.calls.end()
        self.idle_fill.end()


def _stack(base: Path) -> Stack:
    stack = Stack(base, "big", metacopy=True, partial_from=1 << 20)
    (stack.lowers[0] / "big").write_bytes(b"l" * SIZE)
    stack.watch()
    return stack


def test_a_file_is_completed(tmp_path: Path) -> None:
    stack = _stack(tmp_path)
    loop = Loop(stack, Session(ServeOptions(), Tuning()))
    handle = stack.u.open("big")
    stack.u.write("big", 70_000, b"own")
    assert stack.upper is not None
    copied = stack.upper / "big"
    while any("overlay" in name for name in os.listxattr(copied)):
        assert loop.woken.wait(limit(30))
        loop.woken.clear()
        loop.calls.work()
    loop.end()
    assert loop.copied == 1
    assert copied.read_bytes() == b"l" * 70_000 + b"own" + b"l" * (SIZE - 70_003)
    stack.u.close(handle)
    stack.finish()


def test_requests_delay_the_idle_fill(tmp_path: Path) -> None:
    stack = _stack(tmp_path)
    session = Session(ServeOptions(), Tuning())
    session.counts = requests = Requests()
    loop = Loop(stack, session)
    stack.u.write("big", 0, b"own")
    assert requests.enough.wait(limit(30))
    loop.end()
    assert (loop.copied, loop.calls.is_busy) == (0, False)
    stack.finish()
