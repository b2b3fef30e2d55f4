"""Run one session: a workload on a system, from fresh branches to nothing mounted.

Every phase runs in a child process with a time limit: a filesystem that hangs ends the child and its descendants, not
the run. The child times itself, so its start is not measured.
"""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.workload import Act, Context, Phase, Sample, Workload
from unionfs.bench import child, run_directory, systems
from unionfs.bench.child import FailedError
from unionfs.bench.systems import Branches, Mounted

_PAGE = os.sysconf("SC_PAGE_SIZE")
_START_S = 30.0  # for a daemon to mount, and to end


def session(workload: Workload, system: str, context: Context, run: Path) -> list[tuple[Phase, Sample]]:
    """Run `workload` once on `system`, in the directory `run`; return a sample for each named phase.

    `context` has the materials; its directories are filled in here.
    Raises: FailedError when the system fails or hangs.
    """
    branches = Branches(run / "s", workload.lowers(context.materials, context.scale))
    try:
        branches.make()
        aside = branches.base / "aside"
        aside.mkdir()
        plain = _plain_directory(workload, branches) if system == systems.NATIVE else None
        os.sync()  # so that earlier writes do not slow down the phases
        with systems.mounted(system, branches, _START_S, foreground=not workload.is_mount_timed) as mount:
            here = replace(context, merged=plain or mount.merged, aside=aside)
            if not workload.is_mount_timed:
                in_child(look_at_root, here, workload.timeout_s)
            return [
                (phase, sample)
                for phase in workload.phases
                if (sample := _run_phase(workload, phase, mount, here)) is not None
            ]
    finally:
        run_directory.put_aside(branches.base, run)


def look_at_root(context: Context) -> None:
    """Ask for the root of the tree, so that the daemon has done its deferred work before anything is measured."""
    os.statvfs(context.merged)
    os.lstat(context.merged)


def _run_phase(workload: Workload, phase: Phase, mount: Mounted, context: Context) -> Sample | None:
    """The sample of a phase; None of one without a name."""
    before = _DaemonState.read(mount, bool(phase.name))
    timed = in_child(phase.act, context, workload.timeout_s)
    after = _DaemonState.read(mount, bool(phase.name))
    return after.since(before, timed, mount.mount_s) if phase.name else None


@dataclass(frozen=True, slots=True)
class Timed:
    """The measurements of a child process."""

    wall_s: float
    processor_s: float  # of the child and of all processes that it waited for, user and system
    reported: float | None  # the result of the act


@dataclass(frozen=True, slots=True)
class _DaemonState:
    """The counters of a daemon at one moment; all None: there is no daemon."""

    cpu_s: float | None
    resident: int | None  # bytes
    messages: dict[str, int] | None

    @classmethod
    def read(cls, mount: Mounted, count: bool) -> _DaemonState:
        """Raises: FailedError when the daemon has died."""
        if mount.daemon is None:
            return cls(None, None, None)
        messages = _messages(mount.merged) if count else None
        try:
            fields = Path(f"/proc/{mount.daemon}/stat").read_text().rpartition(")")[2].split()
            cpu_s = time.clock_gettime(_processor_clock(mount.daemon))
        except OSError:
            raise FailedError("its daemon died") from None
        return cls(cpu_s, int(fields[21]) * _PAGE, messages)

    def since(self, before: _DaemonState, timed: Timed, mount_s: float) -> Sample:
        """Return the sample for the time between `before` and now."""
        cpu_s = growth = messages = None
        if self.cpu_s is not None and before.cpu_s is not None:
            cpu_s = self.cpu_s - before.cpu_s
        if self.resident is not None and before.resident is not None:
            growth = self.resident - before.resident
        if self.messages is not None and before.messages is not None:
            old = before.messages
            messages = {name: count - old.get(name, 0) for name, count in self.messages.items()}
            messages = {name: count for name, count in messages.items() if count > 0}
        return Sample(timed.wall_s, timed.processor_s, cpu_s, growth, mount_s, timed.reported, messages)


def _processor_clock(pid: int) -> int:
    """The number of the clock that counts the processor time of a process, as clock_getcpuclockid(3) makes it."""
    return ~pid << 3 | 2


def _messages(merged: Path) -> dict[str, int] | None:
    """The number of requests that our daemon has received, by kind; None: the mount is another system's."""
    from unionfs.control import client
    from unionfs.fuse import mounting

    union = mounting.union_at(os.fspath(merged))
    if union is None:
        return None
    try:
        answer = next(client.ask(union.minor, "stats", union.user_id), None)
    except (client.NoAnswerError, OSError):
        return None
    return None if answer is None else dict(answer["messages"])


def _plain_directory(workload: Workload, branches: Branches) -> Path:
    if workload.copied is None:
        return branches.lowers[0]
    for path in workload.copied:
        for lower in branches.lowers:
            if (lower / path).exists():
                copy = branches.merged / path
                copy.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-a", "--", lower / path, copy], check=True, timeout=600)
    return branches.merged


def in_child(act: Act | Callable[[Context], None], context: Context, timeout_s: float) -> Timed:
    """Run `act` in a child process.

    Raises: FailedError when it fails or does not end in time.
    """

    def timed() -> tuple[float, float, float | None]:
        before_s, began_ns = _own_processor_s(), time.perf_counter_ns()
        reported = act(context)
        wall_s = (time.perf_counter_ns() - began_ns) / 1e9
        return wall_s, _own_processor_s() - before_s, reported

    wall_s, processor_s, reported = child.call(timed, timeout_s)
    return Timed(wall_s, processor_s, reported)


def _own_processor_s() -> float:
    """The processor time of this process and of the children that it has waited for, user and system."""
    found = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)
