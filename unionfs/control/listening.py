"""The control socket of a daemon (see control.server). It listens before the mount is announced.

An abstract Unix socket (unix(7)) named after the FUSE connection: it vanishes with the daemon and needs no directory.
Any process may bind such a name, so both sides check the other's user (syscalls.peers). A client
that connects before the daemon accepts waits in the socket's queue.

Uses `_socket`, the C module beneath `socket`: imports delay the mount, and importing `socket` takes as long as the
mount itself.
"""

from __future__ import annotations

import _socket
from contextlib import suppress
from typing import Final

BACKLOG: Final = 64
"""Clients that may wait in the queue."""


def address(connection: int) -> str:
    """Return the socket's abstract name."""
    return f"\0unionfs/{connection}"


def open_listening(connection: int) -> int:
    """Open the socket, bound and listening; unbound if another daemon still has the name. Returns the descriptor."""
    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    with suppress(OSError):
        server.bind(address(connection))
        server.listen(BACKLOG)
    return server.detach()


def stop(fd: int) -> None:
    """Refuse further clients in all processes that have the socket. Called when the mount has ended."""
    server = _socket.socket(fileno=fd)
    with suppress(OSError):  # it is unbound
        server.shutdown(_socket.SHUT_RDWR)
    server.detach()
