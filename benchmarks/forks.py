"""Measure freeze, fork, merge and drop of containers, by the number of files that the container has changed.

    python -m benchmarks.forks [--files 1 10000 100000] [--rounds 5]

As root, so that no user namespace is made; containers that do not run, in a temporary store. Prints one JSON line per
number of files, with the median milliseconds in this process: `freeze` of the changes, `fork` of a frozen container,
`merge_shared` (a fork's branches become the parent's), `merge_again` (as well, and a further branch gets the mode of
the directory, which the parent has changed), `merge_theirs` (as well, and the fork's file replaces one of the parent;
the fork is kept), `merge_moved` (the parent keeps one file that conflicts, so all others go to a new branch),
`merge_copied` (as well, and the fork is kept; the copies are synced), `drop`, and to compare with `cp` of the changed
files (cp -a --reflink=auto), and `cp_synced` (with `sync -f`). `..._processor` is the processor time, which other work
on the machine changes less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from unionfs.containers import forks, freeze, merge, record
from unionfs.containers.config import ContainerConfig, RootFilesystem
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.launcher.spec import Process

_PER_DIRECTORY = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[1, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", help="where the store is made (default: the temporary directory)")
    arguments = parser.parse_args()
    for files in arguments.files:
        took: dict[str, list[float]] = {}
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory(prefix="unionfs-bench-", dir=arguments.directory) as directory:
                _round(Path(directory), files, took)
        medians = {case: round(statistics.median(values), 1) for case, values in took.items()}
        print(json.dumps({"files": files, **medians}), flush=True)


def _round(top: Path, files: int, took: dict[str, list[float]]) -> None:
    def timed(case: str, body: Callable[[], object]) -> None:
        began, processor = time.monotonic(), _processor_s()
        body()
        took.setdefault(case, []).append((time.monotonic() - began) * 1000)
        took.setdefault(f"{case}_processor", []).append((_processor_s() - processor) * 1000)

    store, base = ContainerStore(str(top / "root")), top / "base"
    (base / "d").mkdir(parents=True)
    config = ContainerConfig(Process(("true",)), RootFilesystem((str(base),)))
    main_ = store.add(record.new(store.root, config, "main"))
    _fill(main_, "frozen", files)
    timed("freeze", lambda: freeze.freeze(main_))
    for name in ("shared", "again", "theirs", "moved", "copied"):
        timed("fork", lambda name=name: forks.fork(store.find("main"), name))  # type: ignore[misc]
        _fill(store.find(name), name, files)
    for name in ("theirs", "moved", "copied"):
        _write_conflict(store.find(name))
    os.sync()
    for case, then in (("cp", ":"), ("cp_synced", 'sync -f "$2"')):
        argv = ["sh", "-c", f'cp -a --reflink=auto "$1" "$2"; {then}', "sh", store.find("shared").upper, top / case]
        timed(case, lambda argv=argv: subprocess.run(argv, check=True))  # type: ignore[misc]
        os.sync()
    timed("merge_shared", lambda: merge.merge(store.find("shared"), store.find("main")))
    os.mkdir(os.path.join(store.find("main").upper, "d"), 0o700)
    timed("merge_again", lambda: merge.merge(store.find("again"), store.find("main")))
    os.mkdir(os.path.join(store.find("main").upper, "d"), 0o700)
    _write_conflict(store.find("main"))
    theirs, ours = merge.THEIRS, merge.OURS
    timed("merge_theirs", lambda: merge.merge(store.find("theirs"), store.find("main"), choice=theirs, keep=True))
    timed("merge_moved", lambda: merge.merge(store.find("moved"), store.find("main"), choice=ours))
    timed("merge_copied", lambda: merge.merge(store.find("copied"), store.find("main"), choice=ours, keep=True))
    forks.fork(store.find("main"), "dropped")
    _fill(store.find("dropped"), "dropped", files)
    timed("drop", lambda: forks.drop(store.find("dropped")))
    while any(name.startswith(".removing") for name in os.listdir(store.containers)):
        time.sleep(0.05)


def _processor_s() -> float:
    """The processor time of this process and its children, in the kernel, too."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _write_conflict(container: Container) -> None:
    Path(container.upper, "d", "conflict").write_text(container.name)


def _fill(container: Container, name: str, files: int) -> None:
    """Write small files into the upper of a container that does not run."""
    for first in range(0, files, _PER_DIRECTORY):
        directory = Path(container.upper, "d", f"{name}{first}")
        directory.mkdir(parents=True)
        for number in range(first, min(first + _PER_DIRECTORY, files)):
            (directory / f"f{number}").write_bytes(b"%d" % number)


if __name__ == "__main__":
    main()
