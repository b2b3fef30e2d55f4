"""Count the processors that this process may use, and tell whether one of them is idle.

A process may be confined to some of a machine's processors (sched_setaffinity(2)) and to a share of their time (the
quotas of cgroups: cpu.max in the kernel's admin-guide/cgroup-v2, cpu.cfs_quota_us in scheduler/sched-bwc).
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_ROOM: Final = 64  # bytes; a line of loadavg has some 30
_MIN_NOFILE: Final = 128
"""With a lower RLIMIT_NOFILE than this no descriptor is kept open."""


def usable(membership: Path = Path("/proc/self/cgroup"), mounted: Path = _CGROUPS) -> float:
    """Return how many processors this process can use at once; 0.5 is half the time of one.

    Never raises: a quota that cannot be read is ignored.

    `membership`: as cgroups(7) describes /proc/PID/cgroup; `mounted`: the directory of the hierarchies.
    """
    limits = [float(len(os.sched_getaffinity(0)))]
    with suppress(OSError, ValueError):
        lines = membership.read_text(errors="surrogateescape").rstrip("\n").split("\n")
        for line in lines:  # not splitlines: names may contain other line separators
            _number, controllers, path = line.split(":", 2)
            limits += _quotas(mounted, controllers, Path(path))
    return min(limits)


def _quotas(mounted: Path, controllers: str, path: Path) -> Iterator[float]:
    """Yield the quotas of a cgroup and of its ancestors, in processors."""
    if not controllers:
        places = [mounted, mounted / "unified"]
    elif "cpu" in controllers.split(","):
        places = [mounted / controllers, mounted / "cpu"]
    else:
        return
    for place in places:
        for group in (path, *path.parents):
            with suppress(OSError, ValueError):
                yield _quota(place / group.relative_to("/"), of_version_2=not controllers)


def _quota(group: Path, *, of_version_2: bool) -> float:
    """Return the quota of one cgroup. Raises: ValueError if it has none, OSError if the group does not exist."""
    if of_version_2:
        most, period = (group / "cpu.max").read_text().split()  # "max 100000", "50000 100000"
    else:
        most = (group / "cpu.cfs_quota_us").read_text()  # "-1": none
        period = (group / "cpu.cfs_period_us").read_text()
    if int(most) <= 0 or int(period) <= 0:
        raise ValueError(most)
    return int(most) / int(period)


class SpareProcessor:
    """Tells whether one more processor can be kept busy without taking it from another thread."""

    def __init__(self, loadavg: str = "/proc/loadavg") -> None:
        self._several = usable() >= 2  # immutable
        self._most = len(os.sched_getaffinity(0))  # immutable
        self._fd = -1
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= _MIN_NOFILE:
            with suppress(OSError):
                self._fd = os.open(loadavg, os.O_RDONLY | os.O_CLOEXEC)

    def is_available(self) -> bool:
        """Whether the calling thread, which has a processor, can keep it without another thread waiting for one. True
        where that cannot be known and there is more than one processor. Takes 2 microseconds."""
        return self._several and self._running() <= self._most

    def _running(self) -> int:
        """Return how many threads run or wait for a processor, on the whole machine (field 4 of proc_loadavg(5)); 0:
        unknown."""
        try:
            return int(os.pread(self._fd, _ROOM, 0).split()[3].partition(b"/")[0])
        except (OSError, ValueError, IndexError):
            return 0

    def close(self) -> None:
        """Close the descriptor; `is_available` may not be called after."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
