"""Requests that no kernel sends: cut short, lying, or bytes at random. Each is refused, and the next one is served."""

from __future__ import annotations

import errno
import stat
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fuse.kernel import wire
from tests.fuse.kernel.dispatched_union import Served, done
from tests.fuse.kernel.wire import ROOT
from unionfs.fuse.kernel.abi import Op
from unionfs.fuse.kernel.dispatch import TABLE

ExpectLog = Callable[[str], AbstractContextManager[list[str]]]


def body_for(opcode: int, node: int) -> bytes:
    """A body that is well-formed for the opcode, more or less."""
    named = {
        wire.SYMLINK: b"new\0target\0",
        wire.MKNOD: struct.pack("=IIII", 0o100600, 0, 0, 0) + b"new\0",
        wire.MKDIR: struct.pack("=II", 0o700, 0) + b"new\0",
        wire.RENAME: struct.pack("=Q", ROOT) + b"f\0g\0",
        wire.RENAME2: struct.pack("=QII", ROOT, 0, 0) + b"f\0g\0",
        wire.LINK: struct.pack("=Q", node) + b"new\0",
        wire.WRITE: struct.pack("=QQIIQII", 0, 0, 3, 0, 0, 0, 0) + b"abc",
        wire.SETXATTR: struct.pack("=IIII", 1, 0, 0, 0) + b"user.k\0v",
        wire.GETXATTR: struct.pack("=II", 10, 0) + b"user.k\0",
        wire.REMOVEXATTR: b"user.k\0",
        wire.BATCH_FORGET: struct.pack("=IIQQ", 1, 0, 1 << 50, 1),
        wire.TMPFILE: struct.pack("=IIII", 2, 0o100600, 0, 0) + b"#1\0",
    }
    return named.get(opcode, b"f\0" if opcode in (wire.LOOKUP, wire.UNLINK, wire.RMDIR) else bytes(88))


SERVED_OPS = sorted(op for op, row in TABLE.items() if row.serve is not None and op not in (Op.INIT, Op.DESTROY))
SILENT = (wire.FORGET, wire.BATCH_FORGET, wire.INTERRUPT, wire.NOTIFY_REPLY)


@pytest.mark.parametrize("opcode", SERVED_OPS, ids=lambda op: Op(op).name)
def test_truncated_at_every_byte(served: Served, opcode: int, expect_log: ExpectLog) -> None:
    """EIO and a line in the log, if the request is too short to make sense; never more than was sent."""
    node = served.node(b"f")
    whole = wire.request(opcode, node, body_for(opcode, node))
    short = 40 + TABLE[opcode].fixed
    if short > 40:
        with expect_log(f"malformed {Op(opcode).name} request"):
            for length in range(40, short):
                answer = served.raw(struct.pack("=I", length) + whole[4:length])
                assert opcode in SILENT if answer is None else wire.reply(answer).error == errno.EIO
    for claimed in (0, 39, len(whole) - 1, len(whole) + 1, 2**32 - 1):
        with expect_log(f"malformed {Op(opcode).name} request"):
            answer = served.raw(struct.pack("=I", claimed) + whole[4:])
            assert opcode in SILENT if answer is None else wire.reply(answer).error == errno.EIO


def test_a_write_that_lies_about_its_size(served: Served, expect_log: ExpectLog) -> None:
    node = served.node(b"f")
    for size in (0, 2, 4, 2**32 - 1):
        body = struct.pack("=QQIIQII", 0, 0, size, 0, 0, 0, 0) + b"abc"
        with expect_log("malformed WRITE"):
            assert served.ask(wire.request(wire.WRITE, node, body)).error == errno.EIO
    assert served.content(node) == b"hello"


def test_less_than_a_header(served: Served, expect_log: ExpectLog) -> None:
    with expect_log("no header"):
        assert served.raw(b"\x10\0\0\0") is None


def test_a_bug_is_eio_and_a_traceback(served: Served, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise KeyError("a bug")

    monkeypatch.setattr(served.union, "find_xattr", broken)
    with expect_log("bug while serving a request"):
        body = struct.pack("=II", 0, 0) + b"user.k\0"
        assert served.ask(wire.request(wire.GETXATTR, ROOT, body)).error == errno.EIO


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """One union for all the bytes at random: what one request breaks, the next one would notice."""
    return Served(tmp_path_factory.mktemp("hostile"))


@settings(max_examples=1500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(opcode=wire.RENAME, nodeid=1, body=struct.pack("=Q", 1) + b"..\0../../x\0", extensions=0)
@example(opcode=wire.LOOKUP, nodeid=1, body=b"../lower\0", extensions=0)
@example(opcode=wire.READ, nodeid=1, body=b"\xff" * 40, extensions=0)
@example(opcode=wire.LOOKUP, nodeid=1, body=b"f\0", extensions=9)
@given(
    opcode=st.one_of(st.sampled_from(SERVED_OPS), st.integers(0, 70)).filter(
        lambda op: op not in (wire.INIT, wire.DESTROY, wire.SYNCFS, wire.TMPFILE)
    ),
    nodeid=st.one_of(st.integers(0, 12), st.integers(0, 2**64 - 1)),
    body=st.one_of(
        st.binary(max_size=120),
        st.builds(bytes.__add__, st.binary(max_size=56), st.sampled_from([b"f\0", b"d\0new\0", b"\0"])),
        st.lists(st.integers(0, 3), max_size=12).map(lambda words: struct.pack(f"={len(words)}Q", *words)),
    ),
    extensions=st.sampled_from([0, 0, 0, 1, 65535]),
)
def test_bytes_at_random(
    hostile: Served, caplog: pytest.LogCaptureFixture, opcode: int, nodeid: int, body: bytes, extensions: int
) -> None:
    """Whatever comes is answered or refused, nothing leaves the branches, no bug is met, and the next one is served."""
    request = bytearray(wire.request(opcode, nodeid, body, unique=99))
    struct.pack_into("=H", request, 36, extensions)
    with caplog.at_level("CRITICAL", logger="unionfs.fuse.kernel.dispatch"):
        answer = hostile.raw(bytes(request))
        while hostile.dispatcher.slow:
            work = hostile.dispatcher.slow.pop()
            late = done(hostile.dispatcher, work)
            if late is not None and not isinstance(work, bytes):
                assert wire.reply(late).unique == 99
    if answer is not None:
        assert wire.reply(answer).unique in (99, *struct.unpack_from("=Q", body + bytes(8)))
    root = hostile.ask(wire.request(wire.GETATTR, ROOT, bytes(16)))
    assert stat.S_ISDIR(wire.attr_out(root.body).mode)
    outside = {"lower", "top", "upper", "work"}
    assert {entry.name for entry in hostile.upper.parent.iterdir()} == outside
