"""The connection of a keeper with its daemon: messages, descriptors, and values in memory.

All versions share the words, the marshalled values and FORMAT (fuse.upgrade). A parent of mounts (mount_parent) is the
keeper of several mounts: it gets all messages of a daemon by this connection.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import marshal
import os
import select
import sys
from collections.abc import Sequence
from typing import Any, Final

FORMAT: Final = 1
"""Version of the values that a successor gets."""

GIVEN: Final = b"given"
"""From a daemon to a parent of mounts that is to keep its mount: descriptors, for the next KEEP."""
KEEP: Final = b"keep"
"""Likewise: the mount's description, values in memory. It replaces the one before."""
ENDING: Final = b"ending"
"""Likewise, from the daemon's helper: its main thread has ended."""
ASKS: Final = b"asks"
"""Likewise: the daemon asks for an upgrade."""
OVER: Final = b"over"
"""Likewise: the mount has ended. The parent closes the mount's descriptors, and then the connection."""
RUNS: Final = b"runs"
"""To a parent of mounts from a process that it has forked: that one runs a container, and is kept by nobody."""
SIGNAL: Final = b"signal "
"""Likewise: the number of a signal for the daemon that continues."""

_LISTENS: Final = b"listens"
"""From a parent of mounts to the daemon that it has forked first: clients find the parent now."""

ABLE: Final = b"able"
UNABLE: Final = b"unable "  # and why
LEAVE: Final = b"leave"
GO: Final = b"go "  # and when the daemon before has ended, by time.monotonic
SERVES: Final = b"serves"
_KEPT: Final = b"kept"

_VERDICT_S: Final = 120.0
"""Seconds that a daemon waits for its keeper's verdict: more than the keeper itself waits for a successor."""
_START_S: Final = 30.0
"""Seconds that a daemon waits for a keeper to load the other version that it executes."""
_LISTENS_S: Final = 1.0
_MESSAGE_MAX: Final = 4096
_FD_BYTES: Final = 4  # sizeof(int)
_FDS_MOST: Final = 200
"""Descriptors of one message; the kernel allows 253 (SCM_MAX_FD)."""
_MARSHAL_VERSION: Final = 4  # all versions of Python that we run on read it


class Channel:
    """One end of the connection of a keeper with its daemon."""

    def __init__(self, end: _socket.socket) -> None:
        self._end = end  # changed by `move`
        self._ahead: list[tuple[bytes, list[int]]] = []  # messages that `read_ahead` has received, for `take`

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._end.fileno()

    def close(self) -> None:
        """Close the descriptor."""
        self._end.close()

    def send(self, message: bytes) -> bool:
        """Send a message. Returns False if the other process has gone."""
        try:
            self._end.send(message[:_MESSAGE_MAX])
        except OSError:
            return False
        return True

    def receive(self, seconds: float, other_pidfd: int = -1) -> bytes | None:
        """Wait for a message. Returns b"" if the other process has gone; None after `seconds`, or when the process
        `other_pidfd` has ended."""
        message = self._receive(seconds, other_pidfd)
        if message == _LISTENS:  # it came after `wait_until_listening` had returned
            return self._receive(seconds, other_pidfd)
        return message

    def _receive(self, seconds: float, other_pidfd: int = -1) -> bytes | None:
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        if other_pidfd >= 0:
            poll.register(other_pidfd, select.POLLIN)
        if self._end.fileno() not in dict(poll.poll(seconds * 1000)):
            return None
        try:
            return self._end.recv(_MESSAGE_MAX)
        except OSError:
            return b""

    def move(self, lowest: int) -> None:
        """Have the descriptor be at least `lowest`. Raises: OSError."""
        moved = fcntl.fcntl(self._end, fcntl.F_DUPFD_CLOEXEC, lowest)
        self._end.close()
        self._end = _socket.socket(fileno=moved)

    # -- descriptors

    def give(self, descriptors: Sequence[int]) -> None:
        """Send descriptors, which stay ours. Raises: OSError."""
        for at in range(0, len(descriptors), _FDS_MOST):
            self._send_with(GIVEN, descriptors[at : at + _FDS_MOST])

    def keep(self, values: dict[str, Any]) -> None:
        """Send a mount's description, whose descriptors have been given. Raises: OSError."""
        state = state_of(values)
        try:
            self._send_with(KEEP, [state])
        finally:
            os.close(state)

    def _send_with(self, message: bytes, descriptors: Sequence[int]) -> None:
        rights = b"".join(fd.to_bytes(_FD_BYTES, sys.byteorder) for fd in descriptors)
        self._end.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])

    def take(self) -> tuple[bytes, list[int]] | None:
        """Return the next message, and the descriptors that came with it; b"" if the other process has gone. None:
        there is no message now. Raises: OSError; EMFILE where there was no room for all descriptors."""
        return self._ahead.pop(0) if self._ahead else self._take()

    def _take(self) -> tuple[bytes, list[int]] | None:
        room = _socket.CMSG_SPACE(_FDS_MOST * _FD_BYTES)
        try:
            message, ancillary, flags, _ = self._end.recvmsg(
                _MESSAGE_MAX, room, _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except ConnectionResetError:
            # The other process has ended with unread messages: recvmsg(2) says so once, before its own messages.
            return self._take()
        except ConnectionError:
            return b"", []
        fds = [
            int.from_bytes(sent[at : at + _FD_BYTES], sys.byteorder)
            for _, kind, sent in ancillary
            if kind == _socket.SCM_RIGHTS
            for at in range(0, len(sent) - _FD_BYTES + 1, _FD_BYTES)
        ]
        if flags & _socket.MSG_CTRUNC:
            for fd in fds:
                os.close(fd)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return message, fds

    def pass_on(self, number: int) -> None:
        """Pass a signal to the daemon that continues."""
        self.send(SIGNAL + str(number).encode())

    def take_description(self) -> tuple[dict[str, Any], list[int]] | None:
        """Return values and descriptors that `keep` and `give` have sent; None if there are none now. Raises: OSError,
        ValueError."""
        fds: list[int] = []
        while (taken := self.take()) is not None and taken[0]:
            fds += taken[1]
            if taken[0] == KEEP:
                return read_state(fds.pop()), fds
        return None

    # -- of a parent of mounts that keeps them

    def listens(self) -> None:
        """Say that clients find this parent now."""
        self.send(_LISTENS)

    def read_ahead(self) -> bytes | None:
        """Receive the messages that have come, for `take`. Returns OVER if the mount has ended, or cannot be kept: then
        its descriptors and the connection are closed. b"": the other process has gone, and has left no message."""
        while True:
            try:
                taken = self._take()
            except OSError:  # no descriptor is left
                taken = OVER, []
            if taken is None:
                return None
            message, fds = taken
            if message == OVER:
                for fd in (*fds, *(fd for _, before in self._ahead for fd in before)):
                    os.close(fd)
                self.close()
                return OVER
            if not message:
                return None if self._ahead else b""
            self._ahead.append(taken)

    def leave(self) -> None:
        """Tell the daemon to leave the mount to another daemon, as it requested."""
        self.send(LEAVE)

    # -- of a daemon

    def wait_for_verdict(self) -> str:
        """Wait until the keeper has tried an upgrade. Returns why it is impossible; "" if this daemon is to leave."""
        said = self.receive(_VERDICT_S)
        if said == LEAVE:
            return ""
        return os.fsdecode(said.removeprefix(UNABLE)) if said else "the keeper does not answer"

    def wait_until_listening(self) -> None:
        """Wait until clients find the parent of mounts that has forked this process, or it has ended."""
        self._receive(_LISTENS_S)

    def wait_until_kept(self) -> bool:
        """Wait until the keeper has become one of this version, or has said that it cannot. Returns False if it has
        ended, or does not say anything."""
        return self.receive(_START_S) == _KEPT

    # -- of a keeper that was executed

    def kept(self) -> None:
        """Tell the daemon that this process is the keeper."""
        self.send(_KEPT)

    # -- of a successor

    def refuse(self, why: str) -> None:
        """Tell the keeper that this process cannot continue."""
        self.send(UNABLE + os.fsencode(why))

    def offer(self) -> float | None:
        """Tell the keeper that this process can continue, and wait for its decision. Returns when the daemon before has
        ended, by time.monotonic; None if this process must not continue."""
        self.send(ABLE)
        said = self._end.recv(_MESSAGE_MAX)
        return float(said.removeprefix(GO)) if said.startswith(GO) else None

    def serves(self) -> None:
        """Tell the keeper that this process serves."""
        self.send(SERVES)


def connected() -> tuple[Channel, Channel]:
    """Return both ends of a new connection. The descriptors are closed by execve(2)."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    return Channel(ours), Channel(theirs)


def channel_of(fd: int) -> Channel:
    """Return the end of a connection that was inherited. Raises: OSError."""
    end = _socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    return Channel(end)


def state_of(values: dict[str, Any]) -> int:
    """Return a descriptor of memory with the values."""
    fd = os.memfd_create("unionfs-state", os.MFD_CLOEXEC)
    data = marshal.dumps({"format": FORMAT, **values}, _MARSHAL_VERSION)
    os.ftruncate(fd, len(data))
    os.pwrite(fd, data, 0)
    return fd


def read_state(fd: int) -> dict[str, Any]:
    """Return the values in a descriptor's memory, and close it. Raises: ValueError, OSError."""
    try:
        data = os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
    try:
        values = marshal.loads(data)
    except (ValueError, EOFError, TypeError):
        values = None
    if not isinstance(values, dict) or "format" not in values:
        raise ValueError("these are no values of a mount")
    if values["format"] != FORMAT:
        raise ValueError(f"the values of the mount have format {values['format']}; this version reads {FORMAT}")
    return values
