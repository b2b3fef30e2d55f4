"""Leave a parent for further mounts behind, after a command that mounts has found none (unionfs.mount_parent)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from unionfs.mount_parent import client
from unionfs.printable import printable_line

_IDLE_S = 1.0
"""A command in a container, which has just begun, is not to share the processors with the parent's imports."""


def leave(first: int, idle_s: float = 0.0) -> None:
    """Leave one behind if there was none for this command's mount. `first`, a process, lives as long as the mount."""
    try:
        client.linger_s()
    except ValueError:
        told = f"{client.LINGER}={os.environ[client.LINGER]}: not a number of seconds; no parent is left behind"
        print(printable_line(f"unionfs: warning: {told}"), file=sys.stderr)
    if client.refusal is not None and client.refusal.is_absent:
        from unionfs.cli import entry
        from unionfs.mount_parent import leave as leaving

        leaving.leave(first, entry.run, idle_s)


def leave_beside_container(ready: Callable[[], None] = lambda: None) -> None:
    """Call `ready`, and leave one behind beside the container that this process runs, which has been started."""
    ready()
    leave(os.getpid(), _IDLE_S)
