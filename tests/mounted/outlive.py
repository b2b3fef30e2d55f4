"""Programs at work on a union while its daemons are killed again and again: to be started by hand.

    python -m tests.mounted.outlive [--kills N] [--between MS-MS] [--directory DIR] [-- OPTIONS OF unionfs mount]

It mounts a union in DIR, has these at work on it until N daemons were killed (1000), and says what came of each:

    sqlite      transactions with a write-ahead log and with a rollback journal, each checked after it
    files       random reads, writes, maps, truncations and copies, compared with a plain file after each (random_io)
    pages       a store of pages as databases have: pages in place, a log that is synced, a rename at each checkpoint
    calls       thousands of random system calls on a tree, and the same in a plain directory: each result is compared

It fails if any program saw an error or anything that it had not written, if a lower was changed, or a process is left.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.fuse.kernel import random_io
from tests.mounted import operations, trees
from tests.support import chaos, users
from tests.support.timing import limit

_PAGE: Final = 4096
_PAGES: Final = 64
_CALLS: Final = 1500
_STEPS: Final = 300
_END_S: Final = 300.0


def _is_over() -> bool:
    return os.path.exists(os.environ["OVER"])


def _sqlite(_plain: Path) -> int:
    """Returns the number of transactions."""
    done = 0
    while not _is_over():
        for mode in ("wal", "delete"):
            database = sqlite3.connect(f"{mode}.db", isolation_level=None, timeout=limit(60))
            database.execute(f"pragma journal_mode={mode}")
            database.execute("create table if not exists t (n integer primary key, text text)")
            (before,) = database.execute("select count(*) from t").fetchone()
            for number in range(before, before + 50):
                database.execute("insert into t values (?, ?)", (number, "x" * (number % 50) * 100))
            assert database.execute("pragma integrity_check").fetchone() == ("ok",)
            assert database.execute("select count(*), max(n) from t").fetchone() == (before + 50, before + 49)
            if before > 2000:
                database.execute("drop table t")
                database.execute("vacuum")
            database.close()
            done += 50
    return done


def _files(plain: Path) -> int:
    """Returns the number of steps."""
    done = 0
    while not _is_over():
        for path in ("io", "io.other"):
            Path(path).write_bytes(b"")
            (plain / path).write_bytes(b"")
        random_io.main("io", os.fspath(plain / "io"), done, _STEPS)
        done += _STEPS
        for path in ("io", "io.other"):
            os.unlink(path)
    return done


def _pages(_plain: Path) -> int:
    """Returns the number of changes that were synced."""
    dice = random.Random(1)
    digests = [hashlib.sha256(bytes(_PAGE)).digest()] * _PAGES
    done = 0
    with open("pages", "w+b") as pages:
        pages.truncate(_PAGES * _PAGE)
        while not _is_over():
            with open("log.new", "wb") as log:
                for _ in range(20):
                    number, content = dice.randrange(_PAGES), dice.randbytes(_PAGE)
                    digests[number] = hashlib.sha256(content).digest()
                    log.write(number.to_bytes(4) + digests[number])
                    log.flush()
                    os.fdatasync(log.fileno())
                    os.pwrite(pages.fileno(), content, number * _PAGE)
                    done += 1
            os.fsync(pages.fileno())
            os.rename("log.new", "log")
            assert os.stat("log").st_size == 20 * 36
            with open("pages", "rb") as again:
                assert [hashlib.sha256(again.read(_PAGE)).digest() for _ in range(_PAGES)] == digests, "a page is lost"
    return done


def _calls(plain: Path) -> int:
    """Returns the number of system calls."""
    done = 0
    while not _is_over():
        places = (Path("calls").absolute(), plain / "calls")
        for place in places:
            place.mkdir()
            trees.make(trees.parse(operations.random_tree(done)), place)
        calls = operations.generate(done, _CALLS, with_fallocate=True)
        told = []
        for place in places:
            os.chdir(place)
            told.append(operations.run(calls))
            os.chdir(places[0].parent)
        for call, got, want in zip(calls, *told, strict=True):
            assert got == want, f"{call}: {got}, and in a plain directory {want}"
        done += _CALLS
        for place in places:
            shutil.rmtree(place)
    return done


_WORK: Final[dict[str, Callable[[Path], int]]] = {
    "sqlite": _sqlite,
    "files": _files,
    "pages": _pages,
    "calls": _calls,
}


def _work(name: str, place: str, plain: str) -> None:
    os.umask(0o022)
    os.chdir(place)
    print(_WORK[name](Path(plain)))


def _start(name: str, base: Path) -> subprocess.Popen[str]:
    place, plain = base / "merged" / name, base / "plain" / name
    for directory in (place, plain):
        directory.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "tests.mounted.outlive", "--work", name, place, plain],
        env={**os.environ, "OVER": os.fspath(base / "over")},
        cwd=users.CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _unionfs(*arguments: str) -> str:
    argv = [sys.executable, "-m", "unionfs", *arguments]
    return subprocess.run(argv, cwd=users.CHECKOUT, check=True, capture_output=True, text=True).stdout


def run(base: Path, kills: int, between: str, options: list[str]) -> bool:
    """Mount, let them work, kill, and print what came of it. Returns whether all is as it should be."""
    for name in ("lower", "upper", "work", "merged", "plain"):
        (base / name).mkdir()
    trees.make(trees.parse("a=1 b/c=22 b/d/e=333 l->a"), base / "lower")
    before = trees.snapshot(base / "lower")
    branches = [f"--{name}={base / name}" for name in ("lower", "upper", "work")]
    _unionfs("mount", *branches, f"--log={base / 'log'}", *options, os.fspath(base / "merged"))
    working = {name: _start(name, base) for name in _WORK}
    killer = chaos.Killer(chaos.keeper(f"{base}/"), between, seed=int(time.time())).start()
    began, is_right = time.monotonic(), True
    try:
        while killer.kills < kills and all(one.poll() is None for one in working.values()):
            time.sleep(0.2)
    finally:
        (base / "over").touch()
    for name, one in working.items():
        done, said = one.communicate(timeout=limit(_END_S))
        is_right = is_right and one.returncode == 0
        print(f"{name:8} {done.strip() or said}")
    print(f"kills    {killer.stop()} in {time.monotonic() - began:.0f} s")
    print(*(line for line in _unionfs("stats", os.fspath(base / "merged")).splitlines() if line.startswith("keeper")))
    _unionfs("umount", os.fspath(base / "merged"))
    errors = [line for line in (base / "log").read_text().splitlines() if "ERROR" in line or "Traceback" in line]
    changed = trees.differences(before, trees.snapshot(base / "lower"))
    for line in (*errors, *changed):
        print(line)
    return is_right and not errors and not changed


def main() -> int:
    """Run the program. Returns its exit code."""
    if sys.argv[1:2] == ["--work"]:
        _work(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.mounted.outlive", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--between", default="50-500", metavar="MS-MS", help="from one kill to the next: 50-500")
    parser.add_argument("--directory", help="where to mount (default: a new one below /var/tmp)")
    parser.add_argument("options", nargs="*", help="options of unionfs mount")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory or "/var/tmp", prefix="outlive-") as base:
        is_right = run(Path(base), arguments.kills, arguments.between, arguments.options)
    print("all is right" if is_right else "something is wrong")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
