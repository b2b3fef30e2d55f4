"""Do hundreds of containers of one image succeed at once, and thousands one after another, and which remains do they
leave?

An ordinary user runs `unionfs run --rm IMAGE true`; the image is a minimal Debian in a store of its own. Prints the
containers that failed, with their output, and all remains: processes, mounts, control groups, directories of the store.
Needs root, to make the user.
"""

from __future__ import annotations

import argparse
import collections
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.bench_podman import BASE
from benchmarks.materials import default_run_base
from tests.support import rootfs
from tests.support.users import User, left_after, new_ordinary_user, processes_of
from unionfs.bench import facts
from unionfs.bench.run_directory import run_directory

_TIMEOUT_S: Final = 600.0
_WAIT: Final = 'read _; exec "$@" </dev/null'
_LINGER: Final = {"UNIONFS_LINGER": "5"}


def run_at_once(user: User, words: Sequence[str], count: int, env: Mapping[str, str]) -> tuple[float, list[str]]:
    """Start `count` commands at the same moment; return the seconds that they took, and the output of each that failed.

    Each is executed by a shell that waits until all shells have been started."""
    waiting, go = os.pipe()
    started = [
        subprocess.Popen(
            [*user.prefix, "sh", "-c", _WAIT, "sh", *words], env={**user.env, **env}, cwd=user.home, stdin=waiting,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )
        for _ in range(count)
    ]  # fmt: skip
    os.close(waiting)
    began = time.perf_counter()
    os.close(go)
    told = [(one.communicate(timeout=_TIMEOUT_S)[0], one.returncode) for one in started]
    return time.perf_counter() - began, [
        f"exit code {status}: {text.strip()}" for text, status in told if status or text
    ]


def left(user: User, store: Path, groups: Sequence[str]) -> list[str]:
    """The remains of containers, after the parent of mounts has ended: one line for each."""
    found = [f"process {pid}: {words}" for pid, words in left_after(lambda: processes_of(user.name), 30).items()]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount: {line}" for line in mounts if str(store) in line]
    found += [f"control group: {path}" for path in _groups() if path not in groups]
    return found + [f"directory: {path}" for path in (store / "containers").iterdir() if path.name != ".lock"]


def _groups() -> list[str]:
    return [str(path) for path in Path("/sys/fs/cgroup").rglob("*") if path.is_dir()]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table as Markdown, and the failures. The exit code is 1 if there were any, or something is left."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--at-once", metavar="N", type=int, default=200)
    parser.add_argument("--in-turn", metavar="N", type=int, default=2000)
    parser.add_argument("--rounds", metavar="N", type=int, default=1, help="of those at once")
    arguments = parser.parse_args(argv)
    with ExitStack() as stack:
        directory = stack.enter_context(run_directory(default_run_base()))
        directory.chmod(0o755)
        user = stack.enter_context(new_ordinary_user(directory))
        program, store = str(Path(sys.executable).with_name("unionfs")), directory / "store"
        store.mkdir()
        user.own(store)
        tar = rootfs.debian_tar()
        user.run([program, "import", "--root", store, "-q", "--compression", "none", tar, BASE], timeout_s=_TIMEOUT_S)
        words = [program, "run", "--rm", "--root", str(store), BASE, "true"]
        groups = _groups()
        where = facts.machine()
        print(f"{where['cpu']}, {where['cpus']} CPUs, Linux {where['kernel']}\n")
        print("| containers | succeeded | all ended after | left |\n|---|---:|---:|---:|")
        bad: list[str] = []

        def row(name: str, count: int, body: Callable[[], tuple[float, list[str]]]) -> None:
            took, failed = body()
            remains = left(user, store, groups)
            bad.extend([*failed, *remains])
            cells = f"{count - len(failed)} of {count} | {took:.1f} s | {len(remains)}"
            print(f"| {name} | {cells} |", flush=True)

        def one_after_another() -> tuple[float, list[str]]:
            told = [run_at_once(user, words, 1, _LINGER) for _ in range(arguments.in_turn)]
            return sum(took for took, _ in told), [text for _, failed in told for text in failed]

        many: int = arguments.at_once
        for _ in range(arguments.rounds if many else 0):
            row(f"{many} at once", many, lambda: run_at_once(user, words, many, _LINGER))
        if arguments.in_turn:
            row(f"{arguments.in_turn} one after another", arguments.in_turn, one_after_another)
        for text, count in collections.Counter(bad).most_common():
            print(f"\n{count} times: {text}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
