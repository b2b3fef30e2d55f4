"""Programs at work on a union while its daemons are killed again and again: to be started by hand.

    python -m tests.mounted.outlive [--kills N] [--between MS-MS] [--directory DIR] [-- OPTIONS OF unionfs mount]

It mounts a union in DIR, has these at work on it until N daemons were killed (1000), and says what came of each:

    sqlite      transactions with a write-ahead log and with a rollback journal, each checked after it
    files       random reads, writes, maps, truncations and copies, compared with a plain file after each (random_io)
    pages       a store of pages as databases have: pages in place, a log that is synced, a rename at each checkpoint
    calls       thousands of random system calls on a tree, and the same in a plain directory: each result is compared
    postgres    a PostgreSQL server, restarted after 400 transactions of two pgbench clients, whose sums are checked;
                only if `initdb` and `pgbench` are found, and for root as the user `postgres`

It fails if any program saw an error or anything that it had not written, if a lower was changed, or a process is left.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pwd
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


def _run(*argv: str) -> str:
    """Run a program of PostgreSQL. Returns what it printed; AssertionError with what it said if it failed."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=limit(_END_S), check=False)
    assert done.returncode == 0, f"{argv[0]}: {done.stdout}{done.stderr}"
    return done.stdout


def _postgres(_plain: Path) -> int:
    """Returns the number of transactions."""
    done, place = 0, os.getcwd()
    database = ("-h", place, "-U", "test", "postgres")
    _run("initdb", "--pgdata=data", "--username=test", "--auth=trust", "--no-sync")
    server = ("pg_ctl", "--pgdata=data", "--log=server.log", "--wait")
    while not _is_over():
        _run(*server, "start", "-o", f"-k {place} -c listen_addresses= -c shared_buffers=8MB")
        if not done:
            _run("pgbench", "--initialize", "--quiet", *database)
        _run("pgbench", "--client=2", "--transactions=200", "--no-vacuum", *database)
        done += 400
        sums = "select (select sum(delta) from pgbench_history), (select count(*) from pgbench_history), "
        sums += "(select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches)"
        delta, count, *balances = _run("psql", "-At", "-c", sums, *database).strip().split("|")
        assert int(count) == done
        assert balances == [delta, delta]
        _run(*server, "stop", "--mode=immediate" if done % 800 else "--mode=fast")  # the next start has to recover
    return done


_POSTGRES: Final = "postgres"
_WORK: Final[dict[str, Callable[[Path], int]]] = {
    "sqlite": _sqlite,
    "files": _files,
    "pages": _pages,
    "calls": _calls,
    _POSTGRES: _postgres,
}


def _is_possible(name: str) -> bool:
    if name != _POSTGRES:
        return True
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(_POSTGRES)  # the server refuses to run as root
        except KeyError:
            return False
    return all(shutil.which(program, path=_path()) for program in ("initdb", "pg_ctl", "pgbench", "psql"))


def _path() -> str:
    """Where programs are found: Debian has those of PostgreSQL in a directory for each version."""
    versions = sorted(map(os.fspath, Path("/usr/lib/postgresql").glob("*/bin")))
    return os.pathsep.join([*versions[-1:], os.environ["PATH"]])


def _work(name: str, place: str, plain: str) -> None:
    os.umask(0o022)
    os.chdir(place)
    print(_WORK[name](Path(plain)))


def _start(name: str, base: Path) -> subprocess.Popen[str]:
    place, plain = base / "merged" / name, base / "plain" / name
    for directory in (place, plain):
        directory.mkdir()
    user = _POSTGRES if name == _POSTGRES and os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(place, user)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.mounted.outlive", "--work", name, place, plain],
        env={**os.environ, "OVER": os.fspath(base / "over"), "PATH": _path()},
        user=user,
        group=user,
        extra_groups=None if user is None else [],
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
    base.chmod(0o755)
    working = {name: _start(name, base) for name in _WORK if _is_possible(name)}
    killer = chaos.Killer(chaos.mount(f"{base}/"), between, seed=int(time.time())).start()
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
