"""What the kernel says of a process in /proc/PID/status (proc_pid_status(5))."""

from __future__ import annotations

from typing import Final

_FILESYSTEM_GID: Final = 4  # "Gid:", then the real, effective, saved and filesystem group


def groups_of(pid: int) -> frozenset[int]:
    """The groups that a process is in as far as files are concerned, in ids of our user namespace; none if the process
    has gone or `pid` is 0, which names no process."""
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
