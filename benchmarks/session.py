"""One session: a workload on a system, from fresh branches to nothing left.

Every phase acts in a child process of its own session with a time limit: a filesystem that hangs takes along the child
and what it started, not the run. The child times itself, so starting it is not measured.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks import systems
from benchmarks.systems import Branches, Mounted
from benchmarks.workload import Act, Phase, Sample, Site, Workload
from unionfs.bench import child
from unionfs.bench.child import FailedError

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LARGE = 16 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What does not change from session to session."""

    run: Path  # where sessions have their directories
    count_messages: bool = True


def session(workload: Workload, system: str, site: Site, plan: Plan) -> list[tuple[Phase, Sample]]:
    """Run `workload` once on `system`; a sample for each named phase.

    `site` says where the materials are; its directories are filled in here.
    Raises: FailedError when the system fails or hangs.
    """
    base = plan.run / "s"
    base.mkdir()
    try:
        for name in ("upper", "work", "merged", "aside"):
            (base / name).mkdir(mode=0o755)
        return _run_phases(workload, system, site, base, plan)
    finally:
        _put_aside(base, plan.run)


def _run_phases(workload: Workload, system: str, site: Site, base: Path, plan: Plan) -> list[tuple[Phase, Sample]]:
    lowers = workload.lowers(site.materials, site.scale)
    branches = Branches(base, lowers)
    if system == systems.NATIVE:
        merged = _plain_directory(workload, branches)
        # What the making left to be written back must not be charged to the phases.
        os.sync()
        native = Mounted(merged, None, 0.0)
        return _group(workload, workload.phases, native, _site(site, merged, base), plan)
    done = []
    os.sync()
    for group in _mount_groups(workload.phases):
        with systems.mounted(system, branches) as mount:
            here = _site(site, mount.merged, base)
            done += _group(workload, group, mount, here, plan)
    return done


def nothing(site: Site) -> None:
    """Look at the root of the tree, so that the daemon has said what it can before anything is measured."""
    os.statvfs(site.merged)
    os.lstat(site.merged)


def _mount_groups(phases: Sequence[Phase]) -> list[list[Phase]]:
    groups: list[list[Phase]] = []
    for phase in phases:
        if phase.remount or not groups:
            groups.append([])
        groups[-1].append(phase)
    return groups


def _site(site: Site, merged: Path, base: Path) -> Site:
    return Site(merged, base / "aside", site.materials, site.scale)


def _group(
    workload: Workload, phases: Sequence[Phase], mount: Mounted, site: Site, plan: Plan
) -> list[tuple[Phase, Sample]]:
    done = []
    settled = not workload.run_deferred
    for phase in phases:
        if not settled:
            in_child(nothing, site, workload.timeout_s)
            settled = True
        before = _Daemon.look(mount, plan.count_messages and bool(phase.name))
        wall_s, told = in_child(phase.act, site, workload.timeout_s)
        after = _Daemon.look(mount, plan.count_messages and bool(phase.name))
        if phase.name:
            done.append((phase, after.since(before, wall_s, told, mount.mount_s)))
    return done


@dataclass(frozen=True, slots=True)
class _Daemon:
    """What is known of a daemon at one moment."""

    cpu_s: float | None
    resident: int | None
    messages: dict[str, int] | None

    @classmethod
    def look(cls, mount: Mounted, count: bool) -> _Daemon:
        if mount.daemon is None:
            return cls(None, None, None)
        messages = _messages(mount.merged) if count else None
        try:
            fields = Path(f"/proc/{mount.daemon}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            raise FailedError("its daemon died") from None
        return cls((int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE, messages)

    def since(self, before: _Daemon, wall_s: float, told: float | None, mount_s: float) -> Sample:
        cpu_s = growth = messages = None
        if self.cpu_s is not None and before.cpu_s is not None:
            cpu_s = self.cpu_s - before.cpu_s
        if self.resident is not None and before.resident is not None:
            growth = self.resident - before.resident
        if self.messages is not None and before.messages is not None:
            old = before.messages
            messages = {name: count - old.get(name, 0) for name, count in self.messages.items()}
            messages = {name: count for name, count in messages.items() if count > 0}
        return Sample(wall_s, cpu_s, growth, mount_s, told, messages)


def _messages(merged: Path) -> dict[str, int] | None:
    """How many requests our daemon got so far; None: another one's."""
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


def in_child(act: Act | Callable[[Site], None], site: Site, timeout_s: float) -> tuple[float, float | None]:
    """Let a child process act; how many seconds it took by its own clock, and what it returned.

    Raises: FailedError when it fails or does not end in time.
    """

    def timed() -> tuple[float, float | None]:
        began_ns = time.perf_counter_ns()
        told = act(site)
        return (time.perf_counter_ns() - began_ns) / 1e9, told

    wall_s, told = child.call(timed, timeout_s)
    return wall_s, told


def _put_aside(base: Path, run: Path) -> None:
    """Make room for the next session, and leave the removing to the end of the run.

    ext4 does not give out the number of an inode again within minutes of its removal, and looks at every such number
    first: after a tree was removed, creating a file takes 20 times as long. Large files are few, and go at once.
    """
    for directory, _, names in os.walk(base):
        for name in names:
            path = f"{directory}/{name}"
            with suppress(OSError):
                if os.lstat(path).st_size > _LARGE:
                    os.unlink(path)
    aside = run / "done"
    aside.mkdir(exist_ok=True)
    base.rename(aside / str(len(os.listdir(aside))))
