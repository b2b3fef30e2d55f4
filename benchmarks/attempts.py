"""Measure attempts side by side: ten sessions that build at once on one base, and a chain of forks.

    python -m benchmarks.attempts [--rounds 3] [--files 2000] [--sessions 10] [--depths 1 50]

The base is a git repository of C files with a Makefile. An attempt is `git checkout BRANCH && make`, which changes
twenty files and compiles those. `sessions` compares attempts in sessions of `unionfs try`, all at once, with attempts
in as many plain copies of the repository: seconds (medians), the time for making the copies apart, and MB of disk.
`depth` runs find and an attempt in a fork at the end of a chain of forks, each of which has changed a file in a fifth
of the directories: seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from unionfs import Session

_CHANGED = 20
_ATTEMPT = ("sh", "-c", "cd {} && git checkout -q attempt && make -s -j1 >/dev/null")
_FIND = ("sh", "-c", "find {} -ls >/dev/null")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--depths", type=int, nargs="*", default=[1, 50])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unionfs-bench-", dir="/var/tmp") as directory:
        top = Path(directory)
        repository = _repository(top / "repository", arguments.files)
        if arguments.sessions:
            print(json.dumps(_sessions(top, repository, arguments.sessions, arguments.rounds)), flush=True)
        if arguments.depths:
            for told in _depths(top, repository, arguments.depths, arguments.rounds):
                print(json.dumps(told), flush=True)


def _repository(there: Path, files: int) -> Path:
    """Make a repository with a built state of the branch `base`, and the branch `attempt`."""
    for number in range(files):
        directory = there / f"d{number // 20}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number}.c").write_text(_source(number, 0))
        (directory / "note.txt").write_text("0")
    (there / "Makefile").write_text(
        "objects := $(patsubst %.c,%.o,$(wildcard d*/*.c))\nall: $(objects)\n%.o: %.c\n\tcc -c -o $@ $<\n"
    )
    (there / ".gitignore").write_text("*.o\n*.txt\n")

    def git(*words: str) -> None:
        settings = ("-c", "user.name=bench", "-c", "user.email=bench@example.org", "-c", "gc.auto=0")
        subprocess.run(["git", *settings, *words], cwd=there, check=True, stdout=subprocess.DEVNULL)

    git("init", "-q", "-b", "base")
    git("add", ".")
    git("commit", "-q", "-m", "base")
    git("checkout", "-q", "-b", "attempt")
    for number in range(0, files, max(1, files // _CHANGED)):
        (there / f"d{number // 20}" / f"f{number}.c").write_text(_source(number, 1))
    git("commit", "-q", "-a", "-m", "attempt")
    git("checkout", "-q", "base")
    subprocess.run(["make", "-s", "-j2"], cwd=there, check=True)
    os.sync()
    return there


def _source(number: int, state: int) -> str:
    text = "".join(f"/* line {line} of file {number} */\n" for line in range(500))
    return f"{text}int f{number}(void) {{ return {number + state}; }}\n"


def _sessions(top: Path, repository: Path, count: int, rounds: int) -> dict[str, object]:
    took: dict[str, list[float]] = {"sessions": [], "copying": [], "copies": []}
    disk: dict[str, float] = {}
    for number in range(rounds):
        root = top / f"root{number}"
        sessions = [Session(f"s{each}", root=root) for each in range(count)]
        took["sessions"].append(
            _at_once([lambda one=one: _checked(one.run(_at(_ATTEMPT, repository))) for one in sessions])  # type: ignore[misc]
        )
        disk["sessions"] = _disk(root)
        for one in sessions:
            one.drop()
        copies = [top / f"copy{each}" for each in range(count)]
        began = time.monotonic()
        for copy in copies:
            subprocess.run(["cp", "-a", "--reflink=auto", repository, copy], check=True)
        took["copying"].append(time.monotonic() - began)
        os.sync()
        jobs = [lambda copy=copy: subprocess.run(_at(_ATTEMPT, copy), check=True) for copy in copies]
        took["copies"].append(_at_once(jobs))
        disk["copies"] = sum(map(_disk, copies))
        for copy in copies:
            shutil.rmtree(copy)
    medians = {case: round(statistics.median(values), 2) for case, values in took.items()}
    return {"case": "sessions", "count": count, **medians, "MB": {case: round(size) for case, size in disk.items()}}


def _depths(top: Path, repository: Path, depths: list[int], rounds: int) -> list[dict[str, object]]:
    """Make a chain of forks, and run find and an attempt in forks of some of its members, interleaved."""
    root = top / "chain"
    chain = [Session("depth1", root=root)]
    chain[0].run(["true"])
    for depth in range(1, max(depths) + 1):
        script = f"cd {repository}; for d in $(ls -d d* | sed -n '{depth % 5}~5p'); do echo {depth} > $d/note.txt; done"
        _checked(chain[-1].run(["sh", "-c", script]))
        chain.append(chain[-1].fork(f"depth{depth + 1}"))
    took: dict[int, dict[str, list[float]]] = {depth: {"find": [], "build": []} for depth in depths}
    for number in range(rounds):
        for depth in depths:
            one = chain[depth - 1].fork(f"try{number}-{depth}")
            inner = "began=$(date +%s%N); {}; echo $((($(date +%s%N) - began) / 1000))"
            for case, command in (("find", _FIND), ("build", _ATTEMPT)):
                done = one.run(["sh", "-c", inner.format(_at(command, repository)[2])])
                _checked(done)
                took[depth][case].append(int(done.stdout.split()[-1]) / 1e6)
            one.drop()
    return [
        {
            "case": "depth",
            "depth": depth,
            **{case: round(statistics.median(values), 2) for case, values in took[depth].items()},
        }
        for depth in depths
    ]


def _at(command: tuple[str, ...], there: Path) -> list[str]:
    return [word.format(there) for word in command]


def _checked(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise SystemExit(done.stderr)


def _at_once(jobs: Sequence[Callable[[], object]]) -> float:
    """Run all at once. Returns the seconds that it took."""
    began = time.monotonic()
    with ThreadPoolExecutor(len(jobs)) as pool:
        for job in [pool.submit(job) for job in jobs]:
            job.result()
    return time.monotonic() - began


def _disk(there: Path) -> float:
    """The MB that a tree takes."""
    told = subprocess.run(["du", "-sk", there], check=True, capture_output=True, text=True)
    return int(told.stdout.split()[0]) / 1024


if __name__ == "__main__":
    main()
