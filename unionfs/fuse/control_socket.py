"""The socket at which a daemon is asked (fuse.reporting). It listens before the mount is announced.

An abstract Unix socket (unix(7)) named after the FUSE connection: nothing of it is left when the daemon is gone, and it
needs no directory. Any process may bind such a name, so both sides look at the other's user (syscalls.peers). A client
that connects before the daemon accepts waits in the socket's queue.

Made of the C module beneath `socket`, because a mount waits for what is imported before it is made, and importing
`socket` costs as much as the mount itself.
"""

from __future__ import annotations

import _socket
from contextlib import suppress
from typing import Final

BACKLOG: Final = 64
"""Clients that may wait in the queue."""


def address(connection: int) -> str:
    """The socket's name."""
    return f"\0unionfs/{connection}"


def open_listening(connection: int) -> int:
    """A descriptor of the socket, bound and listening; without a name when another daemon still has it."""
    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    with suppress(OSError):
        server.bind(address(connection))
        server.listen(BACKLOG)
    return server.detach()
