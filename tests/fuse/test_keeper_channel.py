"""The connection of a keeper with its daemon: no message and no descriptor is lost when one of them ends."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from unionfs.fuse import keeper_channel
from unionfs.fuse.keeper_channel import GIVEN, KEEP, OVER, Channel


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """The keeper's end, and the daemon's."""
    both = keeper_channel.connected()
    yield both
    for end in both:
        end.close()


def _give(daemon: Channel) -> int:
    """Send a description with one descriptor, of a pipe. Returns the end of the pipe that is read."""
    read_fd, write_fd = os.pipe()
    daemon.give([write_fd])
    daemon.keep({"number": 1})
    os.close(write_fd)
    return read_fd


def _taken(keeper: Channel) -> dict[str, object]:
    given = keeper.take()
    assert given is not None
    assert (given[0], len(given[1])) == (GIVEN, 1)
    os.close(given[1][0])
    kept = keeper.take()
    assert kept is not None
    assert kept[0] == KEEP
    return keeper_channel.read_state(*kept[1])


@pytest.mark.parametrize("is_read_ahead", [False, True])
def test_a_daemon_that_dies_with_unread_messages_has_sent_its_own(
    ends: tuple[Channel, Channel], *, is_read_ahead: bool
) -> None:
    """unix(7) reports ECONNRESET before these messages."""
    keeper, daemon = ends
    keeper.listens()
    os.close(_give(daemon))
    daemon.close()
    if is_read_ahead:
        assert [keeper.read_ahead() for _ in range(2)] == [None, None]
    assert _taken(keeper)["number"] == 1
    assert [keeper.take() for _ in range(2)] == [(b"", []), (b"", [])]


def test_a_mount_that_ends_early_waits_for_no_import(ends: tuple[Channel, Channel]) -> None:
    keeper, daemon = ends
    reader = _give(daemon)
    assert keeper.read_ahead() is None
    daemon.send(OVER)
    assert keeper.read_ahead() == OVER
    assert os.read(reader, 1) == b""  # the descriptor at the other end of the pipe is closed
    assert daemon.receive(60) == b""
    os.close(reader)


def test_a_mount_that_fails_leaves_no_message(ends: tuple[Channel, Channel]) -> None:
    keeper, daemon = ends
    assert keeper.read_ahead() is None
    daemon.close()
    assert keeper.read_ahead() == b""


def test_a_message_that_came_too_late_is_no_answer(ends: tuple[Channel, Channel]) -> None:
    keeper, daemon = ends
    keeper.listens()
    keeper.leave()
    assert daemon.wait_for_verdict() == ""
    keeper.listens()
    daemon.wait_until_listening()
    keeper.refuse("it is new")
    assert daemon.wait_for_verdict() == "it is new"
