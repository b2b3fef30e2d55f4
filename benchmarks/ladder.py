"""Measure a workload on each rung of a ladder, so that a number explains itself: a plain directory, then the union.

The rungs: `native` (the merged tree as a plain directory), each transport of ours, and `fuse-overlayfs` if installed.
All branches are on a tmpfs, so that what is measured is the union and not a disk. `cold` is the first pass after a
fresh mount, `warm` the second pass over the same mount, with the kernel's caches left as the mount's defaults have it.

The workloads run in this process, the daemon is another one. A pass is timed as a whole and divided by the number of
operations it reports; the median over the repetitions counts, with the fastest and the slowest beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import machine, mountinfo, mounts, users

RUNGS = ("native", *mounts.TRANSPORTS, "fuse-overlayfs")
_TMPFS = Path("/dev/shm")
_US_PER_NS = 1e-3


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement. `size` scales both functions; at size 1 they take no time and are run by the tests."""

    name: str  # what is measured, with its unit: "stat of a name, 8 lowers"
    prepare: Callable[[Sequence[Path], int], None]  # fills the lowers, top first
    run: Callable[[Path, int], int]  # one pass over the merged tree -> number of operations
    lowers: int = 1
    size: int = 1000  # what `python -m benchmarks.bench_NAME` uses unless told otherwise
    warm: bool = True  # whether a second pass over the same mount asks the same; not when the first changed the tree


@dataclass(frozen=True, slots=True)
class Pass:
    """One timed pass."""

    cache: str  # cold or warm
    us_per_operation: float


def main(cases: Sequence[Case]) -> int:
    """Run every case on every rung and print a JSON line for each."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--rung", action="append", choices=RUNGS, help="only these (default: all that are here)")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--size", type=int, help="scale of the workload (default: each case's own)")
    arguments = parser.parse_args()
    machine.open_fuse_device()
    where = _where()
    for case in cases:
        for rung in arguments.rung or available_rungs():
            size = arguments.size or case.size
            passes = [one for _ in range(arguments.repeat) for one in measure(case, rung, size)]
            for cache in ("cold", "warm"):
                times = [one.us_per_operation for one in passes if one.cache == cache]
                if times:
                    line = {"case": case.name, "rung": rung, "cache": cache, "size": size, **_spread(times), **where}
                    print(json.dumps(line), flush=True)
    return 0


def available_rungs() -> list[str]:
    """The rungs that can be had here."""
    ours = [name for name in mounts.TRANSPORTS if mounts.has_transport(name)]
    return ["native", *ours, *(["fuse-overlayfs"] if shutil.which("fuse-overlayfs") else [])]


def measure(case: Case, rung: str, size: int) -> list[Pass]:
    """Build the branches, mount them as `rung` says, and time a cold and, if it makes sense, a warm pass."""
    caches = ("cold", "warm") if case.warm else ("cold",)
    with (
        tempfile.TemporaryDirectory(prefix="unionfs-bench-", dir=_TMPFS if _TMPFS.is_dir() else None) as base,
        _merged(case, rung, size, Path(base)) as merged,
    ):
        return [Pass(cache, _timed(case, merged, size)) for cache in caches]


def _timed(case: Case, merged: Path, size: int) -> float:
    began_ns = time.perf_counter_ns()
    operations = case.run(merged, size)
    return (time.perf_counter_ns() - began_ns) * _US_PER_NS / operations


@contextmanager
def _merged(case: Case, rung: str, size: int, base: Path) -> Iterator[Path]:
    lowers = [base / f"lower{number}" for number in range(case.lowers)]
    upper, work, merged = base / "upper", base / "work", base / "merged"
    for directory in (*lowers, upper, work, merged):
        directory.mkdir()
    case.prepare(lowers, size)
    if rung == "native":
        for lower in reversed(lowers):
            shutil.copytree(lower, merged, symlinks=True, dirs_exist_ok=True)
        yield merged
    elif rung == "fuse-overlayfs":
        options = f"lowerdir={':'.join(map(str, lowers))},upperdir={upper},workdir={work}"
        subprocess.run(["fuse-overlayfs", "-o", options, merged], check=True, timeout=60)
        try:
            yield merged
        finally:
            mountinfo.detach(merged)
    else:
        user = users.current_user(base)
        with mounts.mounted(lowers, merged, user=user, transport=rung, upper=upper, work=work):
            yield merged


def _spread(times: Sequence[float]) -> dict[str, float]:
    return {
        "median_us": round(statistics.median(times), 2),
        "fastest_us": round(min(times), 2),
        "slowest_us": round(max(times), 2),
    }


def _where() -> dict[str, str | int]:
    """What must stand beside a number for it to mean something."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=users.CHECKOUT, capture_output=True, text=True, check=False
    ).stdout.strip()
    cpus = os.cpu_count() or 0
    return {"cpus": cpus, "machine": platform.machine(), "kernel": platform.release(), "commit": commit}
