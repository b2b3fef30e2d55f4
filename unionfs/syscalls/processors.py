"""Tell whether this process may keep a processor busy, and whether others want the one that it runs on.

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


def is_unlimited(membership: Path = Path("/proc/self/cgroup"), mounted: Path = _CGROUPS) -> bool:
    """Whether this process may use several processors and no cgroup limits their time.

    Never raises: a quota that cannot be read is ignored.

    `membership`: as cgroups(7) describes /proc/PID/cgroup; `mounted`: the directory of the hierarchies.
    """
    if len(os.sched_getaffinity(0)) < 2:
        return False
    with suppress(OSError, ValueError):
        lines = membership.read_text(errors="surrogateescape").rstrip("\n").split("\n")
        for line in lines:  # not splitlines: names may contain other line separators
            _number, controllers, path = line.split(":", 2)
            if any(_has_quotas(mounted, controllers, Path(path))):
                return False
    return True


def preemptions() -> int:
    """Return how often another thread was given the processor of the calling thread while that could have run
    (ru_nivcsw of getrusage(2)): its time was over, or it offered the processor and there was one. Takes 1 microsecond.
    """
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def _has_quotas(mounted: Path, controllers: str, path: Path) -> Iterator[bool]:
    """Yield for a cgroup and each of its ancestors whether it has a quota."""
    if not controllers:
        places = [mounted, mounted / "unified"]
    elif "cpu" in controllers.split(","):
        places = [mounted / controllers, mounted / "cpu"]
    else:
        return
    for place in places:
        for group in (path, *path.parents):
            with suppress(OSError, ValueError):
                yield _has_quota(place / group.relative_to("/"), of_version_2=not controllers)


def _has_quota(group: Path, *, of_version_2: bool) -> bool:
    """Raises: OSError if the group does not exist."""
    if of_version_2:
        most = (group / "cpu.max").read_text().split()[0]  # "max 100000", "50000 100000"
    else:
        most = (group / "cpu.cfs_quota_us").read_text()  # "-1": none
    return int(most) > 0
