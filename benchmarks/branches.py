"""Measure how long requests wait while a branch of a mounted union is added and removed.

    python -m benchmarks.branches [--files 10000] [--directories 100 1] [--rounds 10]

A program asks for a new name every millisecond, which the daemon must answer, while a branch that has the name of each
directory comes and goes; all files were asked for before, so that kernel and daemon know them. Prints one JSON line per
number of directories: the milliseconds that a change took (median), and the longest and 99th percentile of the
waits during the changes, and without them (`idle`). `slice` is the processor time of the longest piece of work between
two requests, in a union without a mount: other work on the machine changes it less.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from unionfs import compiled

compiled.use_compiled()

from unionfs.control import branch_client  # noqa: E402  all that may import a compiled module comes after `use_compiled`
from unionfs.core import branches  # noqa: E402
from unionfs.core.attrs import ROOT  # noqa: E402
from unionfs.core.options import Options  # noqa: E402
from unionfs.core.union import Union  # noqa: E402

_EVERY_S = 0.001


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--directories", type=int, nargs="+", default=[100, 1])
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    for directories in arguments.directories:
        with tempfile.TemporaryDirectory(prefix="unionfs-bench-") as top:
            told = _measure(Path(top), arguments.files, directories, arguments.rounds)
        print(json.dumps({"files": arguments.files, "directories": directories, **told}), flush=True)


def _measure(top: Path, files: int, directories: int, rounds: int) -> dict[str, float]:
    for name in ("lower", "upper", "work", "added", "merged"):
        (top / name).mkdir()
    for number in range(directories):
        (top / "lower" / f"d{number}").mkdir()
        (top / "added" / f"d{number}").mkdir()
        (top / "added" / f"d{number}" / "new").touch()
    for number in range(files):
        (top / "lower" / f"d{number % directories}" / f"f{number}").touch()
    longest = _longest_slice(top, rounds)
    merged = str(top / "merged")
    command = [os.path.join(os.path.dirname(sys.executable), "unionfs"), "mount", "--lower", str(top / "lower")]
    subprocess.run([*command, "--upper", str(top / "upper"), "--work", str(top / "work"), merged], check=True)
    try:
        for directory, _, names in os.walk(merged):
            for name in names:
                os.lstat(os.path.join(directory, name))
        idle = _waits(merged, lambda: time.sleep(1))
        took: list[float] = []

        def change() -> None:
            for _ in range(rounds):
                for verb in (branch_client.add, branch_client.remove):
                    began = time.monotonic()
                    verb(branch_client.at(merged), str(top / "added"))
                    took.append((time.monotonic() - began) * 1000)

        waits = _waits(merged, change)
    finally:
        subprocess.run(["umount", "-l", merged], check=True)
    return {
        "change": round(statistics.median(took), 1),
        "longest": round(waits[-1], 1),
        "p99": round(waits[len(waits) * 99 // 100], 2),
        "idle_longest": round(idle[-1], 1),
        "idle_p99": round(idle[len(idle) * 99 // 100], 2),
        "slice": round(longest, 1),
    }


def _longest_slice(top: Path, rounds: int) -> float:
    """The milliseconds of processor time of the longest slice of the changes, all files known."""
    union = Union(Options(lowers=(str(top / "lower"),), upper=str(top / "upper"), work=str(top / "work")))
    for directory in union.readdir(ROOT, 2):
        nodeid = union.lookup(ROOT, directory.name).nodeid
        for line in union.readdir(nodeid, 2):
            union.lookup(nodeid, line.name)
    gc.freeze()  # as a daemon does (daemon.mounted_union)
    gc.set_threshold(50_000, 20, 100)
    longest = 0.0
    fd = os.open(top / "added", os.O_PATH | os.O_DIRECTORY)
    for _ in range(rounds):
        without = branches.lowers(union)
        added = branches.open_lower(union, fd, str(top / "added"))
        for stack in ([added, *without], without):
            change, is_more = branches.Restack(union, stack, lambda _: None), True
            while is_more:
                began = time.thread_time()
                is_more = change.work()
                longest = max(longest, (time.thread_time() - began) * 1000)
    os.close(fd)
    union.close()
    return longest


def _waits(merged: str, body: Callable[[], object]) -> list[float]:
    """The milliseconds that requests waited while `body` ran, sorted."""
    stop_read, stop_write = os.pipe()
    result_read, result_write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.close(stop_write)
            os.set_blocking(stop_read, False)
            waits = []
            for number in range(1_000_000):
                began = time.monotonic()
                os.path.lexists(f"{merged}/no{os.getpid()}.{number}")
                waits.append((time.monotonic() - began) * 1000)
                time.sleep(_EVERY_S)
                try:
                    if os.read(stop_read, 1) == b"":
                        break
                except BlockingIOError:
                    continue
            with open(result_write, "w", encoding="ascii") as file:
                json.dump(sorted(waits), file)
        finally:
            os._exit(0)
    os.close(stop_read)
    os.close(result_write)
    body()
    os.close(stop_write)
    with open(result_read, encoding="ascii") as file:
        waits = json.load(file)
    os.waitpid(child, 0)
    return list(waits)


if __name__ == "__main__":
    main()
