"""Run every series on every system, in interleaved rounds (`rounds`), within a time budget.

    for each filesystem
        for each round
            for each series, for each of its groups
                for each system, in an order that is turned around every round
                    one session: fresh branches, fresh mount, the points of the group, everything unmounted

So a temporary disturbance of the machine affects all systems alike. The first round covers everything; later ones are
dropped when the time is used up. Measurements that fail, hang or lack space are left out and listed.

A child does the work in a mount namespace of its own (without root: in a user namespace, too), so its mounts vanish
with it, however it ends. Its children die with it, and it dies with its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NoReturn

from unionfs.bench import cases, child, filesystems, first_write, rounds, run_directory, systems, trees
from unionfs.bench.cases import Group, Point, RunSize, Series
from unionfs.bench.child import FailedError
from unionfs.bench.filesystems import BranchFilesystem
from unionfs.bench.first_write import Target
from unionfs.bench.systems import Branches
from unionfs.syscalls import files

_BIG_ROUNDS: Final = 3  # for files from cases.BIG on
_HUGE_ROUNDS: Final = 2  # from 1 GB on, and for very many files: the spread is two values wide then
_MANY: Final = 10_000
_STEEPEST: Final = 16  # how much longer a larger group is expected to take at most
_MAIN_SHARE: Final = 0.55  # of the time, for the first filesystem, which has most series
_START_S: Final = 30.0  # for a daemon to mount, and to leave
_SPARE: Final = 256 << 20  # reserve for journals and metadata
_SMALL_FILE: Final = 6000  # bytes of a small file on disk, its inode included

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Choice:
    """The series, systems and sizes of a run."""

    run_size: RunSize
    series: Sequence[Series]
    systems: Sequence[str]
    timeout_s: float
    directory: str | None = None


@dataclass(slots=True)
class Result:
    """The samples of a run, filled in by `run` only."""

    samples: list[dict[str, Any]] = field(default_factory=list)  # series, system, point (its index), round, ns, ...
    left_out: list[dict[str, str]] = field(default_factory=list)  # series ("" means all), system, why
    order: list[dict[str, Any]] = field(default_factory=list)  # sessions as they were run
    filesystems: dict[str, str] = field(default_factory=dict)  # name -> description: "ext4 (loop file)"
    seconds: float = 0.0


def run(choice: Choice, progress: Progress) -> Result:
    """Measure. Raises: FailedError when nothing can be measured at all; OSError for the directory of the run."""
    result = Result()
    began = time.monotonic()
    done = False
    with run_directory.run_directory(run_directory.base(choice.directory)) as directory:
        for kind, value in _messages_of_worker(choice, directory):
            if kind == "progress":
                progress(value)
            elif kind == "ground":
                result.filesystems.update(value)
            elif kind == "failed":
                raise FailedError(value)
            elif kind == "done":
                done = True
            else:
                getattr(result, kind).append(value)
    if not done:
        raise FailedError("the worker process died")
    result.seconds = time.monotonic() - began
    return result


def _messages_of_worker(choice: Choice, directory: Path) -> Iterator[tuple[str, Any]]:
    """Fork the worker; yield its messages, (kind, value), until it ends."""
    read_fd, write_fd = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(read_fd)
        _work_and_exit(choice, directory, write_fd)
    os.close(write_fd)
    try:
        with open(read_fd, encoding="utf-8") as lines:
            for line in lines:
                kind, value = json.loads(line)
                yield kind, value
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def _work_and_exit(choice: Choice, directory: Path, write_fd: int) -> NoReturn:
    def send(kind: str, value: Any) -> None:
        os.write(write_fd, json.dumps([kind, value]).encode() + b"\n")

    status = 1
    try:
        os.setsid()  # Ctrl-C ends the parent, and with it this process
        child.die_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        child.enter_namespaces(directory, in_user_namespace=os.geteuid() != 0)
        _Run(choice, directory, send).all()
        send("done", None)
        status = 0
    except (FailedError, OSError) as why:
        send("failed", str(why))
    finally:
        os._exit(status)


class _Run:
    """The state of the worker: which systems were left out, and how long groups took."""

    def __init__(self, choice: Choice, directory: Path, send: Callable[[str, Any], None]) -> None:
        self.choice = choice  # immutable
        self.directory = directory  # immutable
        self.send = send  # immutable
        self.began = time.monotonic()  # immutable
        self.deadline = self.began + choice.run_size.minutes * 60  # immutable
        self.out: set[tuple[str, str]] = set()  # (series, system) left out
        self.took: dict[tuple[str, int], float] = {}  # (series, group) -> seconds of its last round
        self.serial = 0  # of sessions

    @property
    def _start_s(self) -> float:
        return min(self.choice.timeout_s, _START_S)

    @property
    def _too_late(self) -> str:
        return f"the time of {self.choice.run_size.minutes:g} minutes is used up"

    def all(self) -> None:
        """Run all series on all filesystems. Raises: FailedError when nothing can be measured."""
        contestants = []
        for system in self.choice.systems:
            why = systems.why_missing(system)
            if why is None:
                contestants.append(system)
            else:
                self.leave_out("", system, why)
        by_filesystem = self._by_filesystem()
        if not contestants or not by_filesystem:
            raise FailedError("nothing can be measured here: " + ("no filesystem" if contestants else "no system"))
        for number, (name, series) in enumerate(by_filesystem.items()):
            rest = (1 - _MAIN_SHARE) / max(1, len(by_filesystem) - 1)
            share = 1.0 if number == len(by_filesystem) - 1 else _MAIN_SHARE + rest * number
            try:
                self.on_filesystem(name, series, contestants, self.began + (self.deadline - self.began) * share)
            except (FailedError, OSError) as why:
                for one in series:
                    self.leave_out(one.name, "all", why.strerror or str(why) if isinstance(why, OSError) else str(why))

    def leave_out(self, series: str, system: str, why: str) -> None:
        """Report once that something is not measured."""
        if (series, system) not in self.out:
            self.out.add((series, system))
            self.send("left_out", {"series": series, "system": system, "why": why})

    def _by_filesystem(self) -> dict[str, list[Series]]:
        """The series of each filesystem that can be used here, the main one first."""
        missing = {name: filesystems.why_missing(name) for name in self.choice.run_size.filesystems}
        usable = [name for name, why in missing.items() if why is None] or [filesystems.HERE]
        found: dict[str, list[Series]] = {}
        for series in self.choice.series:
            name = usable[0] if series.ground == cases.MAIN else series.ground
            if series.cache == cases.COLD and name == filesystems.TMPFS:
                self.leave_out(series.name, "all", "tmpfs is the page cache: it cannot be cold")
            elif (why := missing.get(name)) is not None:
                self.leave_out(series.name, "all", why)
            else:
                found.setdefault(name, []).append(series)
        return {name: found[name] for name in sorted(found, key=lambda name: name != usable[0])}

    # -- one filesystem ------------------------------------------------------------------------------------------------

    def on_filesystem(self, name: str, wanted: Sequence[Series], contestants: Sequence[str], until: float) -> None:
        """Run all rounds of all series on one filesystem. Raises: FailedError when it cannot be made."""
        if time.monotonic() > self.deadline:
            raise FailedError(self._too_late)
        self.send("progress", f"{name}: making the lowers")
        room = filesystems.room(name, self.directory)
        all_series = [self._shortened(series, name, wanted, contestants, room) for series in wanted]
        size = self._need(all_series, contestants) * 5 // 4
        with filesystems.ready(name, self.directory, size) as filesystem:
            what = filesystem.fstype if name in (filesystems.HERE, filesystems.TMPFS) else f"{name} in a loop file"
            if name == filesystems.THIN:
                what = f"{filesystem.fstype} on a device of a thin pool in a loop file"
            self.send("ground", {name: what})
            may_reflink = filesystem.may_reflink
            for series in all_series:
                trees.make(series, filesystem.lowers, filesystem.make_lower)
            _write_out(filesystem.root)
            for number in range(self.choice.run_size.rounds):
                for series in all_series:
                    if series.rounds and number >= series.rounds:
                        continue
                    end = until if number else self.deadline
                    if time.monotonic() < end:
                        usable = self._usable(series, filesystem, contestants, may_reflink)
                        self._round(series, number, filesystem, usable, end)
                    elif number == 0:
                        self.leave_out(series.name, "all", self._too_late)

    def _need(self, all_series: Sequence[Series], contestants: Sequence[str]) -> int:
        largest = max((point.size for series in all_series for point in series.points), default=0)
        small = sum(point.files for series in all_series for point in series.points if point.files > 1)
        kept = small * _SMALL_FILE * len(contestants) * 3
        return trees.space(all_series) + largest * 5 // 4 + kept + _SPARE

    def _shortened(
        self, series: Series, name: str, wanted: Sequence[Series], contestants: Sequence[str], room: int
    ) -> Series:
        """The series without the largest files, as far as there is no room for them."""
        sizes = sorted({point.size for one in wanted for point in one.points}, reverse=True)
        limit = sizes[0] if sizes else 0
        for limit in sizes:
            need = self._need([_up_to(one, limit) for one in wanted], contestants)
            if need <= room:
                break
        shortened = _up_to(series, limit)
        lost = sorted({point.size for point in series.points} - {point.size for point in shortened.points})
        if lost:
            need = self._need(wanted, contestants)
            why = f"{', '.join(map(cases.words, lost))}: {cases.words(need)} are needed on {name}, "
            self.leave_out(series.name, "all", why + f"there is room for {cases.words(room)}")
        return shortened

    def _usable(
        self, series: Series, filesystem: BranchFilesystem, contestants: Sequence[str], may_reflink: bool
    ) -> list[str]:
        found = []
        for system in contestants:
            why = systems.why_not_on(system, filesystem, may_reflink=may_reflink)
            if why is not None:
                self.leave_out(series.name, system, why)
            elif series.layered and system in systems.COPYING:
                self.leave_out(series.name, system, "a copy has no layers")
            elif (series.name, system) not in self.out:
                found.append(system)
        return found

    # -- one round -----------------------------------------------------------------------------------------------------

    def _round(
        self, series: Series, number: int, filesystem: BranchFilesystem, usable: Sequence[str], end: float
    ) -> None:
        base = 0
        for index, group in enumerate(series.groups):
            if number < _rounds_of(group) and self._has_time(series, index, group, end):
                began = time.monotonic()
                for system in rounds.order(usable, number):
                    if (series.name, system) not in self.out:
                        self.send("progress", f"{series.name}: round {number + 1}: {system}")
                        self._session(series, group, base, number, filesystem, system)
                self.took[series.name, index] = time.monotonic() - began
            base += len(group.points)

    def _has_time(self, series: Series, index: int, group: Group, end: float) -> bool:
        """Whether the group will be done in time, judged by its last round or by the smaller group before it."""
        now = time.monotonic()
        last = self.took.get((series.name, index))
        if last is not None:
            return now + last < end
        before = self.took.get((series.name, index - 1))
        if before is not None and (_is_big(group) or group.points[0].files > 1):
            ratio = group.points[0].size / max(1, series.groups[index - 1].points[-1].size)
            if now + before * min(ratio, _STEEPEST) > end:
                what = group.points[0].label or f"{group.points[0].x:g}"
                what = cases.words(group.points[0].x) if series.unit == "B" else what
                self.leave_out(series.name, f"all at {what}", self._too_late)
                return False
        return now < end

    def _session(
        self, series: Series, group: Group, base: int, number: int, filesystem: BranchFilesystem, system: str
    ) -> None:
        began = time.monotonic()
        self.serial += 1
        branches = Branches(filesystem.root / f"s{self.serial}", [filesystem.lowers / lower for lower in group.lowers])
        try:
            found = self._measure(series, group, number, filesystem, system, branches)
        except FailedError as why:
            self.leave_out(series.name, system, str(why))
            found = []
        finally:
            run_directory.put_aside(branches.base, filesystem.root)
        for offset, sample in enumerate(found):
            if "failed" in sample:
                point = group.points[offset]
                where = point.label or f"{series.axis} {point.x:g}"
                self.leave_out(f"{series.name}: {where}", system, sample["failed"])
            else:
                head = {"series": series.name, "system": system, "point": base + offset, "round": number}
                self.send("samples", {**head, **sample})
        took = round(time.monotonic() - began, 3)
        self.send("order", {"series": series.name, "round": number, "system": system, "s": took})

    def _measure(
        self, series: Series, group: Group, number: int, filesystem: BranchFilesystem, system: str, branches: Branches
    ) -> list[dict[str, Any]]:
        """The samples of one session, or the failure of each point. Raises: FailedError."""
        shares = any(point.trigger == cases.SHARED for point in group.points)
        with contextlib.ExitStack() as stack:
            here = stack.enter_context(systems.mounted(system, branches.make(), self._start_s))
            second = None
            if shares:
                other = Branches(branches.base / "2", branches.lowers).make()
                second = stack.enter_context(systems.mounted(system, other, self._start_s))
            lower = filesystem.lowers / group.lowers[-1]
            target = Target(
                lower if (lower / group.points[0].path).exists() else filesystem.lowers / group.lowers[0],
                here.merged,
                here.upper,
                here.fetch,
                second.merged if second is not None else None,
            )
            _write_out(filesystem.root)

            # The filesystem does not know which blocks two devices share.
            count = number == 0 and system != systems.THIN_SNAPSHOT

            def all_points() -> list[dict[str, Any]]:
                for one in (here, second):
                    if one is not None and one.enter is not None:
                        one.enter()
                if target.fetch is None:
                    first_write.make_first_change(target.merged / trees.FIRST_CHANGED)
                return [
                    _act(_target_of(target, filesystem, group, point), point, series.cache, count=count)
                    for point in group.points
                ]

            value: list[dict[str, Any]] = child.call(all_points, self.choice.timeout_s)
            return value


def _target_of(target: Target, filesystem: BranchFilesystem, group: Group, point: Point) -> Target:
    """The target with the lower that has the point's file."""
    for lower in group.lowers:
        if (filesystem.lowers / lower / point.path).exists():
            return replace(target, lower=filesystem.lowers / lower)
    return target


def _act(target: Target, point: Point, cache: str, *, count: bool) -> dict[str, Any]:
    try:
        return first_write.act(target, point, cache, count=count)
    except OSError as why:
        return {"failed": why.strerror or str(why)}


def _is_big(group: Group) -> bool:
    return group.points[0].size >= cases.BIG


def _rounds_of(group: Group) -> int:
    """The maximum number of rounds of a group: long measurements have fewer."""
    largest = max(point.size for point in group.points)
    if largest >= cases.GB or any(point.files >= _MANY for point in group.points):
        return _HUGE_ROUNDS
    return _BIG_ROUNDS if largest >= cases.BIG else sys.maxsize


def _up_to(series: Series, limit: int) -> Series:
    """The series without files larger than `limit`; holes take no room."""
    groups = []
    for group in series.groups:
        points = [point for point in group.points if point.size <= limit or group.lowers[0] == "sparse"]
        if points:
            groups.append(replace(group, points=points))
    return replace(series, groups=groups)


def _write_out(root: Path) -> None:
    """Write dirty pages back, so that this does not slow down the next measurement."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.syncfs(fd)
    finally:
        os.close(fd)
