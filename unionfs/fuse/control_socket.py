"""The socket at which a daemon can be asked (fuse.reporting): it hangs out before anybody is told of the mount.

An abstract Unix socket (unix(7)) named after the FUSE connection: nothing lies about when the daemon is gone, and
nobody needs a directory for it. Whoever rings before the daemon has come to answering waits in the socket's queue.

Made of the C module beneath `socket`, because a mount waits for what is imported before it is made, and that costs as
much as the mount itself.
"""

from __future__ import annotations

import _socket
from contextlib import suppress
from typing import Final

BACKLOG: Final = 64
"""Who may wait in the queue."""


def address(connection: int) -> str:
    """The socket's name."""
    return f"\0unionfs/{connection}"


def hang_out(connection: int) -> int:
    """A descriptor of the socket, bound and listening; without a name when another daemon still has it."""
    bell = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    with suppress(OSError):
        bell.bind(address(connection))
        bell.listen(BACKLOG)
    return bell.detach()
