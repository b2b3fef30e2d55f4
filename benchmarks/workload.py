"""Describe a workload: a question, and the phases that answer it. Values only; nothing runs here.

A workload runs on one system at a time, in a session: branches are made, mounted afresh, its phases run one after the
other, everything is removed. Each phase that has a name is a row of the table. All rows are such that less is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.materials import Materials


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of a run: 1 as published; the tests run everything tiny, --quick takes a tenth."""

    factor: float = 1.0

    def of(self, number: int, least: int = 1) -> int:
        """Return `number` at this scale, but at least `least`."""
        return max(least, round(number * self.factor))


@dataclass(frozen=True, slots=True)
class Context:
    """The directories and materials that a phase works with."""

    merged: Path  # the mounted union, or the plain directory
    aside: Path  # an empty directory on the same filesystem, outside of the measured tree
    materials: Materials
    scale: Scale


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one phase."""

    wall_s: float
    client_s: float = 0.0  # processor time of the programs that did the work, user and system
    daemon_s: float | None = None  # processor time of the FUSE daemon, user and system; None: there is no daemon
    daemon_growth: int | None = None  # how many bytes of memory the daemon gained
    mount_s: float = 0.0  # of the mount command
    reported: float | None = None  # the figure that the phase measured itself and returned
    messages: Mapping[str, int] | None = None  # requests the daemon got, by the kernel's name; None: not counted

    @property
    def processor_s(self) -> float:
        """The processor time of the programs and of the daemon, user and system."""
        return self.client_s + (self.daemon_s or 0.0)


Act = Callable[[Context], float | None]


def wall(sample: Sample, scale: Scale) -> float:
    """Return the seconds from the start of the phase to its end."""
    return sample.wall_s


def reported(sample: Sample, scale: Scale) -> float | None:
    """Return the figure that the phase measured itself."""
    return sample.reported


@dataclass(frozen=True, slots=True)
class Phase:
    """One timed act. Without a name it is run but neither timed nor shown: it prepares the next one."""

    name: str
    act: Act
    unit: str = "s"
    value: Callable[[Sample, Scale], float | None] = wall
    warm: bool = False  # whether the kernel may have everything in its cache


@dataclass(frozen=True, slots=True)
class Workload:
    """A question, and the lowers and phases that answer it."""

    name: str  # its name for --only
    question: str
    phases: Sequence[Phase]
    lowers: Callable[[Materials, Scale], Sequence[Path]]  # top first, never changed
    # The plain directory of `native`: with None the lower itself, since nothing is changed; else a directory with
    # copies of these paths of the lowers, or an empty one when there are none.
    copied: Sequence[str] | None = None
    timeout_s: float = 120.0  # for one phase
    is_mount_timed: bool = False  # whether the mount command's own time counts: it leaves its daemon in the background,
    # and nothing is asked of the mount before the first phase
    without: Mapping[str, str] = field(default_factory=dict)  # system -> why the question makes no sense there


def debian(materials: Materials, scale: Scale) -> Sequence[Path]:
    """Return the usual lower, a Debian root filesystem."""
    return [materials.debian()]
