"""Start a parent for further mounts (unionfs.mount_parent) after a command that mounts has found none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial

from unionfs.mount_parent import client
from unionfs.printable import printable_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.fuse.keeper_channel import Channel

_IDLE_S = 1.0
"""Delay of the parent's imports, so that they do not slow down the start of a container's command."""


def leave(first: int, idle_s: float = 0.0) -> None:
    """Start a parent if this command's mount found none. `first`: pid of a process that lives as long as the mount."""
    if _may_leave() and client.refusal is not None and client.refusal.is_absent:
        from unionfs.cli import entry
        from unionfs.mount_parent import leave as leaving

        leaving.leave(first, entry.run, idle_s)


def for_first_mount() -> Callable[[], Channel] | None:
    """Return what makes a process the parent of the mount that it is to serve (mount_parent.leave); None: this process
    may not start one."""
    if not _may_leave():
        return None
    from unionfs.cli import entry
    from unionfs.mount_parent import leave as leaving

    return partial(leaving.become_parent, entry.run)


def _may_leave() -> bool:
    try:
        client.linger_s()
    except ValueError:
        told = f"{client.LINGER}={os.environ[client.LINGER]}: not a number of seconds; no parent is left behind"
        print(printable_line(f"unionfs: warning: {told}"), file=sys.stderr)
    # Without these streams processes that a parent forks could not print.
    return client.may_leave_parent and None not in (sys.stdin, sys.stdout, sys.stderr)


def leave_beside_container(ready: Callable[[], None] = lambda: None) -> None:
    """Call `ready`, and start a parent beside the container that this process has started."""
    ready()
    leave(os.getpid(), _IDLE_S)
