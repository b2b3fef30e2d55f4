"""Slow requests leave the loop: other requests are served meanwhile, and the outcome is the same as in the loop."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from tests.fuse.kernel import wire
from tests.fuse.kernel.dispatched_union import Served, done
from tests.fuse.kernel.wire import ROOT
from unionfs.fuse.kernel import data

LARGE = 20 << 20
MANY = 4 << 20


def put_off(served: Served, request: bytes) -> wire.Reply:
    """The answer of a request that must not be answered at once; another one is served in between."""
    assert served.raw(request) is None
    (work,) = served.dispatcher.slow
    served.dispatcher.slow.clear()
    assert served.ask(wire.request(wire.GETATTR, ROOT, bytes(16))).error == 0
    return wire.reply(done(served.dispatcher, work))


def large(served: Served) -> int:
    (served.upper / "large").write_bytes(b"L" * LARGE)
    return served.node(b"large")


def size(served: Served, node: int) -> int:
    return wire.attr_out(served.ask(wire.request(wire.GETATTR, node, bytes(16))).body).size


def fallocate(node: int, length: int, mode: int = 0, offset: int = 0) -> bytes:
    return wire.request(wire.FALLOCATE, node, struct.pack("=QQQII", 0, offset, length, mode, 0))


def copy(source: int, target: int, length: int) -> bytes:
    return wire.request(wire.COPY_FILE_RANGE_64, source, struct.pack("=QQQQQQQ", 0, 0, target, 0, 0, length, 0))


def truncate(node: int, to: int) -> bytes:
    return wire.request(wire.SETATTR, node, struct.pack("=IIQQQqqqIIIIIIII", 8, 0, 0, to, *[0] * 12))


def test_writing_through(served: Served) -> None:
    assert put_off(served, wire.request(wire.FSYNC, served.node(b"up"), bytes(16))).error == 0
    assert put_off(served, wire.request(wire.FSYNCDIR, ROOT, bytes(16))).error == 0
    assert put_off(served, wire.request(wire.SYNCFS, ROOT, bytes(8))).error == 0


def test_what_is_in_the_lowers_only_needs_no_writing_through(served: Served) -> None:
    for opcode, name in ((wire.FSYNC, b"f"), (wire.FSYNCDIR, b"d")):
        answer = served.raw(wire.request(opcode, served.node(name), bytes(16)))
        assert wire.reply(answer).error == 0


def test_space(served: Served) -> None:
    node = served.node(b"up")
    assert put_off(served, fallocate(node, MANY)).error == 0
    assert size(served, node) == MANY
    assert put_off(served, fallocate(node, MANY, mode=0xFF)).error == errno.EOPNOTSUPP


def test_copying(served: Served) -> None:
    node, target = large(served), served.node(b"up")
    answer = put_off(served, copy(node, target, LARGE))
    assert struct.unpack("=Q", answer.body) == (LARGE,)
    assert (served.upper / "up").read_bytes() == b"L" * LARGE


def test_no_copy_lasts_for_ever(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "COPY_MAX", MANY)
    answer = put_off(served, copy(large(served), served.node(b"up"), LARGE))
    assert struct.unpack("=Q", answer.body) == (MANY,)
    assert size(served, served.node(b"up")) == MANY


def test_cutting_a_large_file(served: Served) -> None:
    node = large(served)
    assert wire.attr_out(put_off(served, truncate(node, 5)).body).size == 5
    assert (served.upper / "large").read_bytes() == b"LLLLL"


def test_cutting_little(served: Served) -> None:
    node = served.node(b"up")
    assert wire.attr_out(wire.reply(served.raw(truncate(node, 1))).body).size == 1


def test_removing_a_large_file(served: Served, request: pytest.FixtureRequest) -> None:
    """Its space is given back when a thread closes the last descriptor."""
    node = large(served)
    inode = os.stat(served.upper / "large").st_ino
    assert served.ask(wire.request(wire.UNLINK, ROOT, b"large\0")).error == 0
    assert not served.dispatcher.slow
    assert served.raw(wire.request(wire.FORGET, node, struct.pack("=Q", 1))) is None
    (work,) = served.dispatcher.slow
    served.dispatcher.slow.clear()
    assert [os.fstat(fd).st_nlink for fd in _descriptors(inode)] == [0]
    assert done(served.dispatcher, work) is None
    assert _descriptors(inode) == []


def _descriptors(inode: int) -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.fstat(int(name)).st_ino == inode and Path(f"/proc/self/fd/{name}").readlink().name.startswith("o"):
                found.append(int(name))
        except OSError:
            continue
    return found
