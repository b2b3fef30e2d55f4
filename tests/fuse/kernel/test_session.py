"""Negotiation, and who waits for a copy-up: without a union and without a device."""

from __future__ import annotations

import struct

import pytest

from tests.fuse.kernel import wire
from unionfs.fuse.kernel import session as session_room
from unionfs.fuse.kernel.abi import Init, Op
from unionfs.fuse.kernel.session import Session, Tuning, UnsupportedError
from unionfs.fuse.options import ServeOptions


def fresh(options: ServeOptions | None = None, tuning: Tuning | None = None) -> Session:
    return Session(options or ServeOptions(), tuning or Tuning())


def negotiate(session: Session, request: bytes) -> tuple[int, int, Init, int, int]:
    """(major, minor, flags, max_write, max_pages) of the answer."""
    body = wire.reply(session.init(2, memoryview(request), len(request))).body
    assert len(body) == 64
    major, minor, _ahead, flags, _bg, _cong, max_write, gran, max_pages, _, flags2 = struct.unpack_from(
        "=IIIIHHIIHHI", body
    )
    assert gran == 1
    return major, minor, Init(flags | flags2 << 32), max_write, max_pages


def test_newest_kernel() -> None:
    session = fresh()
    major, minor, flags, max_write, max_pages = negotiate(session, wire.init(45))
    assert (major, minor, max_write, max_pages) == (7, 45, 1 << 20, 256)
    assert session.negotiated
    for wanted in (
        Init.ASYNC_READ, Init.BIG_WRITES, Init.DONT_MASK, Init.DO_READDIRPLUS, Init.NO_OPEN_SUPPORT,
        Init.NO_OPENDIR_SUPPORT, Init.PARALLEL_DIROPS, Init.POSIX_ACL, Init.CACHE_SYMLINKS, Init.MAX_PAGES,
        Init.EXPLICIT_INVAL_DATA, Init.HANDLE_KILLPRIV_V2, Init.INIT_EXT, Init.HAS_RESEND,
    ):  # fmt: skip
        assert wanted in flags
    for refused in (
        Init.ATOMIC_O_TRUNC, Init.WRITEBACK_CACHE, Init.AUTO_INVAL_DATA, Init.SECURITY_CTX, Init.POSIX_LOCKS,
        Init.FLOCK_LOCKS, Init.HAS_INODE_DAX, Init.PASSTHROUGH, Init.OVER_IO_URING, Init.READDIRPLUS_AUTO,
    ):  # fmt: skip
        assert refused not in flags


def test_kernel_newer_than_the_header() -> None:
    assert negotiate(fresh(), wire.init(99))[:2] == (7, 45)


def test_oldest_kernel() -> None:
    """7.31 has neither flags2 nor the newer flags, and none is asked of it."""
    offered = (1 << 28) - 1
    session = fresh()
    _, minor, flags, _, _ = negotiate(session, wire.init(31, offered))
    assert minor == 31
    assert flags & ~Init(offered) == 0
    assert Init.INIT_EXT not in flags
    assert Init.SETXATTR_EXT not in flags


def test_only_offered_features_are_requested() -> None:
    offered = Init.NO_OPEN_SUPPORT | Init.NO_OPENDIR_SUPPORT | Init.ASYNC_READ
    assert negotiate(fresh(), wire.init(45, int(offered), 0))[2] == offered


@pytest.mark.parametrize("request_", [wire.init(30), wire.init(23), wire.init(40, major=6)])
def test_kernels_too_old(request_: bytes) -> None:
    session = fresh()
    with pytest.raises(UnsupportedError, match="--transport pyfuse3"):
        session.init(2, memoryview(request_), len(request_))
    assert not session.negotiated


def test_kernel_that_cannot_open_by_itself() -> None:
    request = wire.init(45, (1 << 32) - 1 & ~(1 << 17))
    with pytest.raises(UnsupportedError, match="without OPEN requests"):
        fresh().init(2, memoryview(request), len(request))


def test_kernel_of_a_newer_major_version_asks_again() -> None:
    session = fresh()
    assert negotiate(session, wire.init(1, major=8))[0] == 7
    assert not session.negotiated
    assert negotiate(session, wire.init(45))[:2] == (7, 45)


@pytest.mark.parametrize(
    ("options", "tuning", "flag", "asked"),
    [
        (ServeOptions(writeback=True), Tuning(), Init.WRITEBACK_CACHE, True),
        (ServeOptions(), Tuning(), Init.ASYNC_DIO, False),
        (ServeOptions(read_only=True), Tuning(), Init.ASYNC_DIO, True),
        (ServeOptions(acls=False), Tuning(), Init.POSIX_ACL, False),
        (ServeOptions(), Tuning(readdirplus="never"), Init.DO_READDIRPLUS, False),
        (ServeOptions(), Tuning(readdirplus="auto"), Init.DO_READDIRPLUS | Init.READDIRPLUS_AUTO, True),
    ],
)
def test_options(options: ServeOptions, tuning: Tuning, flag: Init, *, asked: bool) -> None:
    flags = negotiate(fresh(options, tuning), wire.init(45))[2]
    assert (flags & flag == flag) is asked
    assert bool(flags & flag) is asked


def test_messages_are_named() -> None:
    session = fresh()
    session.counts[Op.LOOKUP] = 3
    session.counts[Op.COPY_FILE_RANGE_64] = 1
    assert session.messages == {"LOOKUP": 3, "COPY_FILE_RANGE_64": 1}


def test_every_opcode_can_be_counted() -> None:
    assert max(op for op in Op if op is not Op.CUSE_INIT) < len(fresh().counts)
    assert session_room.REQUEST_ROOM >= session_room.MAX_WRITE + 80


class Cancelled:
    """Counts how often it is called."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def test_the_last_waiting_request_ends_the_copying() -> None:
    session, cancel = fresh(), Cancelled()
    waiting = session.hold(42, cancel)
    waiting.requests.update({10: b"first", 12: b"second"})
    assert session.interrupt(10) is True  # somebody else still wants it: only this caller goes
    assert cancel.times == 0
    assert session.interrupt(10) is False
    assert session.interrupt(12) is False  # answered when the copying has ended
    assert cancel.times == 1
    assert waiting.given_up == 12
    assert session.release(waiting) == {12: b"second"}
    assert session.waiting == {}


def test_interrupts_that_come_too_late() -> None:
    session, cancel = fresh(), Cancelled()
    session.hold(42, cancel).requests[10] = b"request"
    assert session.interrupt(99) is False
    assert cancel.times == 0
