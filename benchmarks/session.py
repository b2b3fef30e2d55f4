"""Run one session: a workload on a system, from fresh branches to nothing mounted.

Every phase runs in a child process with a time limit: a filesystem that hangs takes along the child and what it
started, not the run. The child times itself, so starting it is not measured.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.workload import Act, Context, Phase, Sample, Workload
from unionfs.bench import child, run_directory, systems
from unionfs.bench.child import FailedError
from unionfs.bench.systems import Branches, Mounted

_TICKS = os.sysconf("SC_CLK_TCK")
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
        os.sync()  # so that what was written before is not charged to the phases
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
    wall_s, reported = in_child(phase.act, context, workload.timeout_s)
    after = _DaemonState.read(mount, bool(phase.name))
    return after.since(before, wall_s, reported, mount.mount_s) if phase.name else None


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
        except OSError:
            raise FailedError("its daemon died") from None
        return cls((int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE, messages)

    def since(self, before: _DaemonState, wall_s: float, reported: float | None, mount_s: float) -> Sample:
        """Return the sample of what happened between `before` and now."""
        cpu_s = growth = messages = None
        if self.cpu_s is not None and before.cpu_s is not None:
            cpu_s = self.cpu_s - before.cpu_s
        if self.resident is not None and before.resident is not None:
            growth = self.resident - before.resident
        if self.messages is not None and before.messages is not None:
            old = before.messages
            messages = {name: count - old.get(name, 0) for name, count in self.messages.items()}
            messages = {name: count for name, count in messages.items() if count > 0}
        return Sample(wall_s, cpu_s, growth, mount_s, reported, messages)


def _messages(merged: Path) -> dict[str, int] | None:
    """How many requests our daemon has received, by kind; None: the mount is of another system."""
    from unionfs.fuse import mounting, reporting

    union = mounting.union_at(os.fspath(merged))
    if union is None:
        return None
    try:
        answer = next(reporting.ask(union.minor, "stats", union.user_id), None)
    except (reporting.NoAnswerError, OSError):
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


def in_child(act: Act | Callable[[Context], None], context: Context, timeout_s: float) -> tuple[float, float | None]:
    """Run `act` in a child process; return the seconds it took by its own clock, and its result.

    Raises: FailedError when it fails or does not end in time.
    """

    def timed() -> tuple[float, float | None]:
        began_ns = time.perf_counter_ns()
        reported = act(context)
        return (time.perf_counter_ns() - began_ns) / 1e9, reported

    wall_s, reported = child.call(timed, timeout_s)
    return wall_s, reported
