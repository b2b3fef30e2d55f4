"""Start a parent of mounts. Imports few modules in the calling process; the parent imports its own."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from unionfs.detach import detach
from unionfs.mount_parent import client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def leave(first: int, run_command: Callable[[list[str]], int], idle_s: float = 0.0) -> None:
    """Start a parent, unless there is one. Called by the only thread of a process that has made a mount.

    `first`: pid of a process that lives as long as this mount; the parent lives some time longer. `run_command`
    runs a command line without the program's name and returns its exit code. The parent imports its modules after
    `idle_s` seconds, or for its first client, to leave the processors to the mount's first users.
    """
    linger_s = client.linger_s()
    if None in (sys.stdin, sys.stdout, sys.stderr):
        return  # without them forked processes could not print
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                detach(set())()
                from unionfs.mount_parent import parent

                parent.run(first, linger_s, idle_s, run_command)
        finally:
            os._exit(0)
    with suppress(ChildProcessError):
        os.waitpid(child, 0)
