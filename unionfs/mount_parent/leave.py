"""Start a parent of mounts. Imports few modules in the calling process; the parent imports its own."""

from __future__ import annotations

import os
from contextlib import suppress

from unionfs.detach import detach
from unionfs.mount_parent import client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unionfs.fuse.keeper_channel import Channel

_IDLE_S = 10.0
"""For the first mount to be made: until then its parent imports nothing."""


def leave(first: int, run_command: Callable[[list[str]], int], idle_s: float = 0.0) -> None:
    """Start a parent, unless there is one. Called by the only thread of a process that has made a mount.

    `first`: pid of a process that lives as long as this mount; the parent lives some time longer. `run_command`
    runs a command line without the program's name and returns its exit code. The parent imports its modules after
    `idle_s` seconds, or for its first client, to leave the processors to the mount's first users.
    """
    linger_s = client.linger_s()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                detach(set())()
                from unionfs.mount_parent import parent

                parent.run(first, None, linger_s, idle_s, run_command)
        finally:
            os._exit(0)
    with suppress(ChildProcessError):
        os.waitpid(child, 0)


def become_parent(run_command: Callable[[list[str]], int]) -> Channel:
    """Become a parent, and return in a process that it has forked for the first mount, with the connection to it.
    Called by the only thread of a process that was forked for that, in a session of its own.

    If there is another parent by now, this one only keeps the first mount. Raises: OSError; ValueError.
    """
    from unionfs.fuse import keeper_channel

    linger_s = client.linger_s()
    ours, theirs = keeper_channel.connected()
    first = os.fork()
    if first == 0:
        ours.close()
        os.setsid()
        return theirs
    try:
        detach({ours.fileno()})()
        from unionfs.mount_parent import parent

        parent.run(first, ours, linger_s, _IDLE_S, run_command)
    finally:
        os._exit(0)
