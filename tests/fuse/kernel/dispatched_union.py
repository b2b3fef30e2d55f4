"""A real union with a dispatcher, to which a test gives requests as the kernel would."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.core.trees import tree
from tests.fuse.kernel import wire
from tests.fuse.kernel.wire import ROOT
from unionfs.core.options import Options
from unionfs.core.union import Union
from unionfs.fuse.kernel.data import ThreadTask, Work
from unionfs.fuse.kernel.dispatch import CopyUpJob, Dispatcher
from unionfs.fuse.kernel.session import Session, Tuning
from unionfs.fuse.options import ServeOptions

BIG = 3 << 20
"""More than the core copies up without a thread."""


def done(dispatcher: Dispatcher, work: Work | ThreadTask | CopyUpJob | bytes) -> bytes | None:
    """Do what was put off, as the loop and its threads would: the reply, if that is one."""
    answers: list[bytes]
    if isinstance(work, CopyUpJob):
        work.copy()
        answers = dispatcher.finish(work, None)
    elif isinstance(work, ThreadTask):
        outcome, error = 0, None
        try:
            outcome = work.work()
        except OSError as exc:
            error = exc
        answers = [bytes(dispatcher.finish_task(work, outcome, error) or b"")]
    elif isinstance(work, bytes):
        answers = [work if struct.unpack_from("=IiQ", work)[2] else b""]  # not a notification
    else:
        answers = [bytes(work())]
    (answer,) = answers or [b""]
    return answer or None


class Served:
    """A union over two lowers and an upper, and a dispatcher to which requests are given."""

    def __init__(self, base: Path) -> None:
        self.lower = tree(base / "lower", "f=hello d/a=1 d/b=22 l->target suid=x:4755")
        (self.lower / "big").write_bytes(b"B" * BIG)
        self.upper = tree(base / "upper", "up=here")
        (base / "work").mkdir()
        self.work = base / "work"
        options = Options(
            lowers=(str(tree(base / "top", "d/c=333")), str(self.lower)),
            upper=str(self.upper),
            work=str(self.work),
            durability="normal",
        )
        self.union = Union(options)
        self.session = Session(ServeOptions(), Tuning())
        self.dispatcher = Dispatcher(self.union, self.session)
        assert self.ask(wire.init()).error == 0

    def raw(self, request: bytes) -> bytes | None:
        """The answer of the dispatcher, with an older request's bytes lying behind this one."""
        answer = self.dispatcher.handle(memoryview(request + b"left over\0" * 20), len(request))
        return None if answer is None else bytes(answer)

    def ask(self, request: bytes) -> wire.Reply:
        """The reply; what was put off is done first, as threads would do it."""
        answer = self.raw(request)
        while answer is None:
            answer = done(self.dispatcher, self.dispatcher.slow.pop(0))
        return wire.reply(answer)

    def node(self, name: bytes, parent: int = ROOT) -> int:
        """Look a name up; it must be there."""
        found = wire.entry_out(self.ask(wire.request(wire.LOOKUP, parent, name + b"\0")).body)
        assert found.nodeid
        return found.nodeid

    def content(self, nodeid: int) -> bytes:
        return self.ask(wire.read(nodeid, 0, 4096)).body
