"""Properties of a process that its children inherit: namespaces, limits, priorities, processors, umask.

A process that was forked in advance (by a parent of mounts, by a keeper) takes them over from the process that it works
for: from a running one, or from plain values that describe one that may have ended.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Sequence
from typing import Any, Final

from unionfs.mount_parent.client import NAMESPACES
from unionfs.syscalls.namespaces import (
    CLONE_NEWCGROUP,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    io_priority,
    set_io_priority,
    setns,
)

_KINDS: Final = {"user": CLONE_NEWUSER, "cgroup": CLONE_NEWCGROUP, "mnt": CLONE_NEWNS}
_LIMITS: Final = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})

Properties = dict[str, Any]
"""The properties of a process as plain values that marshal can write."""


class UnableError(Exception):
    """A property cannot be taken over. `str()` names it, and says why."""


def read(pid: int) -> Properties:
    """Return the properties of a process but its namespaces; 0: of this one. Raises: OSError, ValueError."""
    return {
        "scheduler": (os.sched_getscheduler(pid), os.sched_getparam(pid).sched_priority),
        "nice": os.getpriority(os.PRIO_PROCESS, pid),
        "io": io_priority(pid),
        "processors": sorted(os.sched_getaffinity(pid)),
        "oom_score_adj": _content(f"/proc/{pid or 'self'}/oom_score_adj"),
        "limits": {limit: resource.prlimit(pid, limit) for limit in _LIMITS},
        "umask": _umask_of(pid),
    }


def take(wanted: Properties) -> None:
    """Take over the properties that `read` has returned. Raises: UnableError."""
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("its priority", lambda: _take_priority(wanted)),
        ("its processors", lambda: _take_processors(wanted["processors"])),
        ("its oom_score_adj", lambda: _take_oom_score(wanted["oom_score_adj"])),
        ("its limits", lambda: _take_limits(wanted["limits"])),
    )
    for what, step in steps:
        try:
            step()
        except (OSError, ValueError) as error:
            raise UnableError(f"{what} cannot be taken over: {error}") from error
    os.umask(wanted["umask"])


def open_namespaces() -> list[int]:
    """Return descriptors of the namespaces of this process, in the order of `client.NAMESPACES`. Raises: OSError."""
    return [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in NAMESPACES]


def enter(namespaces: Sequence[int]) -> None:
    """Enter namespaces, in the order of `client.NAMESPACES`, unless this process is in them; a user namespace as its
    root.

    Raises: OSError; EPERM for a namespace that this process may not enter.
    """
    for kind, namespace in zip(NAMESPACES, namespaces, strict=True):
        if os.fstat(namespace).st_ino == os.stat(f"/proc/self/ns/{kind}").st_ino:
            continue
        setns(namespace, _KINDS[kind])
        if kind == "user":
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            if _content("/proc/self/setgroups").strip() == b"allow":
                os.setgroups([])


def _take_priority(wanted: Properties) -> None:
    policy, priority = wanted["scheduler"]
    if (policy, priority) != (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority):
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    if wanted["nice"] != os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, wanted["nice"])
    if wanted["io"] != io_priority(0):
        set_io_priority(wanted["io"])


def _take_processors(wanted: list[int]) -> None:
    if set(wanted) != os.sched_getaffinity(0):
        os.sched_setaffinity(0, wanted)


def _take_oom_score(wanted: bytes) -> None:
    with open("/proc/self/oom_score_adj", "r+b", 0) as ours:
        if wanted != ours.read():
            ours.seek(0)
            ours.write(wanted)


def _take_limits(wanted: dict[int, tuple[int, int]]) -> None:
    for limit, values in wanted.items():
        if tuple(values) != resource.getrlimit(limit):
            resource.setrlimit(limit, values)


def _umask_of(pid: int) -> int:
    for line in _content(f"/proc/{pid or 'self'}/status").splitlines():
        if line.startswith(b"Umask:"):
            return int(line.split()[1], 8)
    raise ValueError("/proc/PID/status has no Umask")


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
