"""Messages between a command of the runtime and the processes that it forks: JSON objects in packets.

The processes send: `user` (they wait for ids), `daemon` (the pid of a union's daemon), `group` (they wait to be moved
into control groups), `pid` (of the container's process), `mounted` (they wait for hooks), `ready`, `warning`, `error`.
The command sends: `go`, with the pid of the container's process.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any, Final

from unionfs.oci.errors import OciError
from unionfs.oci.report import Report

_LARGEST: Final = 64 << 10  # a packet; longer messages are cut
_TEXT_MAX: Final = 8000


class Channel:
    """One end. It survives fork(2) and is closed by exec(2)."""

    def __init__(self, end: socket.socket) -> None:
        self._end: Final = end

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, kind: str, **values: Any) -> None:
        """Send a message. It is lost if the other end is closed."""
        cut = {name: value[:_TEXT_MAX] if isinstance(value, str) else value for name, value in values.items()}
        try:
            self._end.send(json.dumps({"kind": kind, **cut}).encode())
        except (BrokenPipeError, ConnectionResetError):
            return

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when all other ends are closed."""
        try:
            data = self._end.recv(_LARGEST)
        except ConnectionResetError:
            return None
        if not data:
            return None
        message: dict[str, Any] = json.loads(data)
        return message

    def messages(self, report: Report) -> Iterator[dict[str, Any]]:
        """Yield the messages of the processes until all other ends are closed. Warnings go to `report`. Raises:
        OciError for an `error`."""
        while (message := self.receive()) is not None:
            if message["kind"] == "error":
                raise OciError(message["message"])
            if message["kind"] == "warning":
                report.warning(message["message"])
            else:
                yield message

    def wait_for_go(self) -> dict[str, Any]:
        """Wait for `go`. Raises: OciError if the command has ended."""
        message = self.receive()
        if message is None:
            raise OciError("the command that creates the container has ended")
        return message

    def close(self) -> None:
        self._end.close()


def make() -> tuple[Channel, Channel]:
    """The two ends of a new channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), Channel(theirs)
