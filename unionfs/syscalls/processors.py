"""Tell whether this process may keep a processor busy, and whether other threads wait for the processor that it runs
on.

A process may be confined to some of a machine's processors (sched_setaffinity(2)) and to a share of their time (the
quotas of cgroups: cpu.max in the kernel's admin-guide/cgroup-v2, cpu.cfs_quota_us in scheduler/sched-bwc).
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from os.path import dirname, join


def is_unlimited(membership: str = "/proc/self/cgroup", mounted: str = "/sys/fs/cgroup") -> bool:
    """Whether this process may use several processors and no cgroup limits their time.

    Never raises: a quota that cannot be read is ignored.

    `membership`: as cgroups(7) describes /proc/PID/cgroup; `mounted`: the directory of the hierarchies.
    """
    if len(os.sched_getaffinity(0)) < 2:
        return False
    with suppress(OSError, ValueError):
        lines = _read(membership).rstrip("\n").split("\n")
        for line in lines:  # not splitlines: names may contain other line separators
            _number, controllers, path = line.split(":", 2)
            if any(_has_quotas(mounted, controllers, path)):
                return False
    return True


def preemptions() -> int:
    """Return how often another thread was given the processor of the calling thread while that could have run
    (ru_nivcsw of getrusage(2)): its time slice was over, or it called sched_yield(2) while another one waited. Takes 1
    microsecond.
    """
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def _has_quotas(mounted: str, controllers: str, path: str) -> Iterator[bool]:
    """Yield for a cgroup and each of its ancestors whether it has a quota."""
    if not controllers:
        places = [mounted, join(mounted, "unified")]
    elif "cpu" in controllers.split(","):
        places = [join(mounted, controllers), join(mounted, "cpu")]
    else:
        return
    for place in places:
        group = path
        while True:
            with suppress(OSError, ValueError):
                yield _has_quota(join(place, group.lstrip("/")), of_version_2=not controllers)
            if group == dirname(group):
                break
            group = dirname(group)


def _has_quota(group: str, *, of_version_2: bool) -> bool:
    """Raises: OSError if the group does not exist."""
    if of_version_2:
        most = _read(join(group, "cpu.max")).split()[0]  # "max 100000", "50000 100000"
    else:
        most = _read(join(group, "cpu.cfs_quota_us"))  # "-1": none
    return int(most) > 0


def _read(path: str) -> str:
    with open(path, errors="surrogateescape", newline="") as file:
        return file.read()
