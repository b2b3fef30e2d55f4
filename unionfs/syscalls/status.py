"""Read the groups and the capabilities of a process from /proc/PID (proc_pid_status(5), namespaces(7))."""

from __future__ import annotations

import os
from typing import Final

_FILESYSTEM_GID: Final = 4  # "Gid:", then the real, effective, saved and filesystem group
_CAP_FSETID: Final = 4  # capabilities(7)
_FIRST_USER_NAMESPACE: Final = "user:[4026531837]"  # PROC_USER_INIT_INO, <linux/proc_ns.h>


def keeps_set_id_bits(pid: int) -> bool:
    """Whether the kernel leaves set-id bits on a file that the process changes: it has CAP_FSETID in the machine's
    first user namespace. False if the process has ended, cannot be read, or if `pid` is 0, which is no process."""
    try:
        if os.readlink(f"/proc/{pid}/ns/user") != _FIRST_USER_NAMESPACE:
            return False
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"CapEff:"):
                    return bool(int(line.split()[1], 16) >> _CAP_FSETID & 1)
    except OSError:
        pass
    return False


def groups_of(pid: int) -> frozenset[int]:
    """Return the filesystem and supplementary groups of a process, in ids of our user namespace.

    Empty if the process has ended, or if `pid` is 0, which is no process.
    """
    found: set[int] = set()
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Gid:"):
                    found.add(int(line.split()[_FILESYSTEM_GID]))
                elif line.startswith(b"Groups:"):
                    found.update(map(int, line.split()[1:]))
                    break
    except (FileNotFoundError, ProcessLookupError):
        pass
    return frozenset(found)
