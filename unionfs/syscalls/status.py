"""Read the groups of a process from /proc/PID/status (proc_pid_status(5))."""

from __future__ import annotations

from typing import Final

_FILESYSTEM_GID: Final = 4  # "Gid:", then the real, effective, saved and filesystem group


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
