"""The end of a daemon as its keeper sees it, also if a thread of the daemon cannot end.

A thread that notifies the kernel waits in write(2) while programs hold locks until the daemon answers them. If the
daemon is killed then, that thread cannot end. So the process cannot end either, the keeper cannot wait for it, and no
daemon answers. The daemon's helper (fuse.death_helper) tells the keeper that the main thread has ended. If all
remaining threads are in such a write, as the record of nodes says, the next daemon may begin: its answers let them end.
The keeper waits for all other threads: they must not write to a file after the next daemon has begun.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from unionfs.core.node_record import NodeRecord

_EXIT_CODE: Final = 49  # in /proc/PID/stat, counted from behind the name (proc_pid_stat(5): field 52)


def status_of(pid: int, record: NodeRecord) -> tuple[int | None, bool]:
    """Return the wait status of a daemon that has died, else None; and whether its main thread has ended."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended:
        return status, True
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
        if fields[0] != b"Z":
            return None, False
        threads = {int(name) for name in os.listdir(f"/proc/{pid}/task")} - {pid}
    except OSError:
        return None, False
    if not threads or not threads <= record.notifying():
        return None, True
    return int(fields[_EXIT_CODE]) or None, True  # after exit(0) the mount ends, and with it the write
