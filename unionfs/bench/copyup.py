"""The run: every series on every system, in interleaved rounds, within a time budget.

    for each filesystem
        for each round
            for each series, for each of its groups
                for each system, in an order that is turned around every round
                    one session: fresh branches, fresh mount, the points of the group, everything unmounted

So what disturbs the machine for a while disturbs all systems alike. The first round covers everything; later ones are
dropped when the time is used up. What fails, hangs, is missing or has no room is named and left out.

The work is done by a child in a mount namespace of its own (without root: in a user namespace, too), so whatever
becomes of it, its mounts vanish with it. Its children die with it, and it dies with its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NoReturn

from unionfs.bench import cases, child, filesystems, first_write, run_directory, systems, trees
from unionfs.bench.cases import Extent, Group, Point, Series
from unionfs.bench.child import FailedError
from unionfs.bench.filesystems import Ground
from unionfs.bench.first_write import Site
from unionfs.bench.systems import SessionDirectories
from unionfs.syscalls import files, mountinfo, mounts, namespaces

_BIG_ROUNDS: Final = 3  # for files from cases.BIG on
_HUGE_ROUNDS: Final = 2  # from 1 GB on, and for very many files: the spread is two values wide then
_MANY: Final = 10_000
_STEEPEST: Final = 16  # how much longer a larger group is expected to take at most
_MAIN_SHARE: Final = 0.55  # of the time, for the first filesystem, which has most series
_REMOVED_AT_ONCE: Final = 1 << 20
_START_S: Final = 30.0  # for a daemon to mount, and to leave
_SPARE: Final = 256 << 20  # room beyond what is known to be needed: journals, metadata
_SMALL_FILE: Final = 6000  # what a small file takes, its inode included

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Choice:
    """What to run."""

    extent: Extent
    series: Sequence[Series]
    systems: Sequence[str]
    timeout_s: float
    directory: str | None = None


@dataclass(slots=True)
class Result:
    """What a run found. Filled in by `run` only."""

    samples: list[dict[str, Any]] = field(default_factory=list)  # series, system, point (its index), round, ns, ...
    left_out: list[dict[str, str]] = field(default_factory=list)  # series ("" means all), system, why
    order: list[dict[str, Any]] = field(default_factory=list)  # sessions as they were run
    filesystems: dict[str, str] = field(default_factory=dict)  # name -> what it was: "ext4 (loop file)"
    seconds: float = 0.0


def run(choice: Choice, say: Say) -> Result:
    """Measure. Raises: FailedError when nothing can be measured at all; OSError for the directory of the run."""
    result = Result()
    began = time.monotonic()
    done = False
    with run_directory.run_directory(run_directory.base(choice.directory)) as directory:
        for kind, told in _told_by_worker(choice, directory):
            if kind == "say":
                say(told)
            elif kind == "ground":
                result.filesystems.update(told)
            elif kind == "failed":
                raise FailedError(told)
            elif kind == "done":
                done = True
            else:
                getattr(result, kind).append(told)
    if not done:
        raise FailedError("the worker process died")
    result.seconds = time.monotonic() - began
    return result


def _told_by_worker(choice: Choice, directory: Path) -> Iterator[tuple[str, Any]]:
    """What the worker tells, line by line, until it ends."""
    read_fd, write_fd = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(read_fd)
        _work_and_exit(choice, directory, write_fd)
    os.close(write_fd)
    try:
        with open(read_fd, encoding="utf-8") as lines:
            for line in lines:
                kind, told = json.loads(line)
                yield kind, told
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def _work_and_exit(choice: Choice, directory: Path, write_fd: int) -> NoReturn:
    def tell(kind: str, told: Any) -> None:
        os.write(write_fd, json.dumps([kind, told]).encode() + b"\n")

    status = 1
    try:
        os.setsid()  # Ctrl-C is our parent's to act on
        child.die_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _enter_namespaces(directory)
        _Run(choice, directory, tell).all()
        tell("done", None)
        status = 0
    except (FailedError, OSError) as why:
        tell("failed", str(why))
    finally:
        os._exit(status)


def _enter_namespaces(directory: Path) -> None:
    """A mount namespace of our own, with a user namespace where that takes one. Where it cannot be had, mounts are
    made in everybody's, and swept by the next run if this one is killed.

    Other people's unions do not stay mounted here: our copy of their mounts would keep their daemons alive."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        if uid == 0:
            namespaces.unshare(namespaces.CLONE_NEWNS)
        else:
            namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
            child.die_with_parent()  # forgotten with the new credentials
        mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
    except OSError:
        return
    needed = [Path(path).resolve() for path in (directory, sys.prefix, __file__)]
    for there in mountinfo.mounts():
        if there.fstype == "fuse.unionfs" and not any(path.is_relative_to(there.mountpoint) for path in needed):
            with contextlib.suppress(OSError):  # a user namespace may not take away what it was given
                mounts.umount2(there.mountpoint, mounts.MNT_DETACH)


class _Run:
    """The worker's state: what is still in the race, and how long things took."""

    def __init__(self, choice: Choice, directory: Path, tell: Callable[[str, Any], None]) -> None:
        self.choice = choice  # immutable
        self.directory = directory  # immutable
        self.tell = tell  # immutable
        self.began = time.monotonic()  # immutable
        self.deadline = self.began + choice.extent.minutes * 60  # immutable
        self.out: set[tuple[str, str]] = set()  # (series, system) left out
        self.took: dict[tuple[str, int], float] = {}  # (series, group) -> seconds of its last round
        self.serial = 0  # of sessions

    @property
    def _start_s(self) -> float:
        return min(self.choice.timeout_s, _START_S)

    @property
    def _too_late(self) -> str:
        return f"the time of {self.choice.extent.minutes:g} minutes is used up"

    def all(self) -> None:
        """Everything."""
        contestants = []
        for system in self.choice.systems:
            why = systems.why_missing(system)
            if why is None:
                contestants.append(system)
            else:
                self.leave_out("", system, why)
        by_ground = self._by_ground()
        if not contestants or not by_ground:
            raise FailedError("nothing can be measured here: " + ("no filesystem" if contestants else "no system"))
        for number, (name, series) in enumerate(by_ground.items()):
            rest = (1 - _MAIN_SHARE) / max(1, len(by_ground) - 1)
            share = 1.0 if number == len(by_ground) - 1 else _MAIN_SHARE + rest * number
            try:
                self.on_ground(name, series, contestants, self.began + (self.deadline - self.began) * share)
            except (FailedError, OSError) as why:
                for one in series:
                    self.leave_out(one.name, "all", why.strerror or str(why) if isinstance(why, OSError) else str(why))

    def leave_out(self, series: str, system: str, why: str) -> None:
        """Name what is not measured, once."""
        if (series, system) not in self.out:
            self.out.add((series, system))
            self.tell("left_out", {"series": series, "system": system, "why": why})

    def _by_ground(self) -> dict[str, list[Series]]:
        """The series of each filesystem that can be had, the main one first."""
        missing = {name: filesystems.why_missing(name) for name in self.choice.extent.filesystems}
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

    def on_ground(self, name: str, wanted: Sequence[Series], contestants: Sequence[str], until: float) -> None:
        """All rounds of all series on one filesystem. Raises: FailedError when it cannot be made."""
        if time.monotonic() > self.deadline:
            raise FailedError(self._too_late)
        self.tell("say", f"{name}: making the lowers")
        room = filesystems.room(name, self.directory)
        all_series = [self._shortened(series, name, wanted, contestants, room) for series in wanted]
        size = self._need(all_series, contestants) * 5 // 4
        with filesystems.ready(name, self.directory, size) as ground:
            what = ground.fstype if name in (filesystems.HERE, filesystems.TMPFS) else f"{name} in a loop file"
            self.tell("ground", {name: what})
            may_reflink = ground.may_reflink
            for series in all_series:
                trees.make(series, ground.lowers, ground.make_lower)
            _write_out(ground.root)
            for number in range(self.choice.extent.rounds):
                for series in all_series:
                    if series.rounds and number >= series.rounds:
                        continue
                    end = until if number else self.deadline
                    if time.monotonic() < end:
                        usable = self._usable(series, ground, contestants, may_reflink)
                        self._round(series, number, ground, usable, end)
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

    def _usable(self, series: Series, ground: Ground, contestants: Sequence[str], may_reflink: bool) -> list[str]:
        found = []
        for system in contestants:
            why = systems.why_not_on(system, ground, may_reflink=may_reflink)
            if why is not None:
                self.leave_out(series.name, system, why)
            elif series.layered and system in systems.COPYING:
                self.leave_out(series.name, system, "a copy has no layers")
            elif (series.name, system) not in self.out:
                found.append(system)
        return found

    # -- one round -----------------------------------------------------------------------------------------------------

    def _round(self, series: Series, number: int, ground: Ground, usable: Sequence[str], end: float) -> None:
        base = 0
        for index, group in enumerate(series.groups):
            if number < _rounds_of(group) and self._has_time(series, index, group, end):
                began = time.monotonic()
                for system in usable[:: -1 if number % 2 else 1]:
                    if (series.name, system) not in self.out:
                        self.tell("say", f"{series.name}: round {number + 1}: {system}")
                        self._session(series, group, base, number, ground, system)
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

    def _session(self, series: Series, group: Group, base: int, number: int, ground: Ground, system: str) -> None:
        began = time.monotonic()
        self.serial += 1
        place = SessionDirectories(ground.root / f"s{self.serial}")
        try:
            found = self._measure(series, group, number, ground, system, place)
        except FailedError as why:
            self.leave_out(series.name, system, str(why))
            found = []
        finally:
            _put_aside(place.base, ground.root)
        for offset, sample in enumerate(found):
            if "failed" in sample:
                point = group.points[offset]
                where = point.label or f"{series.axis} {point.x:g}"
                self.leave_out(f"{series.name}: {where}", system, sample["failed"])
            else:
                head = {"series": series.name, "system": system, "point": base + offset, "round": number}
                self.tell("samples", {**head, **sample})
        took = round(time.monotonic() - began, 3)
        self.tell("order", {"series": series.name, "round": number, "system": system, "s": took})

    def _measure(
        self, series: Series, group: Group, number: int, ground: Ground, system: str, place: SessionDirectories
    ) -> list[dict[str, Any]]:
        """The samples of one session, or what each point failed with. Raises: FailedError."""
        shares = any(point.trigger == cases.SHARED for point in group.points)
        with contextlib.ExitStack() as stack:
            here = stack.enter_context(systems.shown(system, ground, group.lowers, place.make(), self._start_s))
            second = None
            if shares:
                other = SessionDirectories(place.base / "2").make()
                second = stack.enter_context(systems.shown(system, ground, group.lowers, other, self._start_s))
            lower = ground.lowers / group.lowers[-1]
            site = Site(
                lower if (lower / group.points[0].path).exists() else ground.lowers / group.lowers[0],
                here.merged,
                here.upper,
                here.fetch,
                second.merged if second is not None else None,
            )
            _write_out(ground.root)

            def all_points() -> list[dict[str, Any]]:
                for one in (here, second):
                    if one is not None and one.enter is not None:
                        one.enter()
                if site.fetch is None:
                    first_write.settle(site.merged / trees.SETTLE)
                return [
                    _act(_site_of(site, ground, group, point), point, series.cache, number) for point in group.points
                ]

            told: list[dict[str, Any]] = child.call(all_points, self.choice.timeout_s)
            return told


def _site_of(site: Site, ground: Ground, group: Group, point: Point) -> Site:
    """With the lower that has the point's file."""
    for lower in group.lowers:
        if (ground.lowers / lower / point.path).exists():
            return replace(site, lower=ground.lowers / lower)
    return site


def _act(site: Site, point: Point, cache: str, number: int) -> dict[str, Any]:
    try:
        return first_write.act(site, point, cache, count=number == 0)
    except OSError as why:
        return {"failed": why.strerror or str(why)}


def _is_big(group: Group) -> bool:
    return group.points[0].size >= cases.BIG


def _rounds_of(group: Group) -> int:
    """How many rounds a group has at most: what takes long has fewer."""
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
    """What was made before must not be charged to what comes next."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.syncfs(fd)
    finally:
        os.close(fd)


def _put_aside(base: Path, root: Path) -> None:
    """Make room for the next session; small files stay until the filesystem goes.

    ext4 does not give out the number of an inode again within minutes of its removal, and looks at every such number
    first: after a tree was removed, creating a file takes 20 times as long. Large files are few, and go at once.
    """
    for directory, _, names in os.walk(base):
        for name in names:
            path = f"{directory}/{name}"
            with contextlib.suppress(OSError):
                if os.lstat(path).st_size >= _REMOVED_AT_ONCE:
                    os.unlink(path)
    aside = root / "done"
    aside.mkdir(exist_ok=True)
    with contextlib.suppress(OSError):
        base.rename(aside / base.name)
        return
    shutil.rmtree(base, ignore_errors=True)
