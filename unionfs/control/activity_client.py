"""The client of the request `activity` of the control socket (control.activity_server)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from unionfs.control import client


class Recording:
    """A connection to a daemon that records."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection  # immutable

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines that the daemon sends, until it has sent the last one or has ended. Raises: NoAnswerError."""
        with self._connection.makefile("rb") as lines, suppress(ConnectionResetError):
            for line in lines:
                yield client.parsed(line)

    def end(self) -> None:
        """Ask the daemon for the last line. May be called in any thread."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)


@contextmanager
def record(connection: int, owner: int | None, interval: float) -> Iterator[Recording]:
    """Have the daemon of a FUSE connection, which `owner` mounted, record. Raises: NoAnswerError."""
    with client.conversation(connection, "activity", owner, {"interval": interval}) as daemon:
        yield Recording(daemon)
