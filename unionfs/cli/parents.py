"""Start a parent for further mounts (unionfs.mount_parent) after a command that mounts has found none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from unionfs.mount_parent import client
from unionfs.printable import printable_line

_IDLE_S = 1.0
"""Delay of the parent's imports, so that they do not slow down the start of a container's command."""


def leave(first: int, idle_s: float = 0.0) -> None:
    """Start a parent if this command's mount found none. `first`: pid of a process that lives as long as the mount."""
    run_command = runner()
    if run_command is not None and client.refusal is not None and client.refusal.is_absent:
        from unionfs.mount_parent import leave as leaving

        leaving.leave(first, run_command, idle_s)


def runner() -> Callable[[list[str]], int] | None:
    """Return what runs command lines in a parent that this process may start; None: it may not."""
    try:
        client.linger_s()
    except ValueError:
        told = f"{client.LINGER}={os.environ[client.LINGER]}: not a number of seconds; no parent is left behind"
        print(printable_line(f"unionfs: warning: {told}"), file=sys.stderr)
    if not client.may_leave_parent or None in (sys.stdin, sys.stdout, sys.stderr):
        return None  # without these streams processes that a parent forks could not print
    from unionfs.cli import entry

    return entry.run


def leave_beside_container(ready: Callable[[], None] = lambda: None) -> None:
    """Call `ready`, and start a parent beside the container that this process has started."""
    ready()
    leave(os.getpid(), _IDLE_S)
