"""Programs at work on a union while its daemons are killed again and again: to be started by hand.

    python -m tests.mounted.outlive [--kills N] [--between MS-MS] [--directory DIR] [--upgrades S] [--branches S]
                                    [-- OPTIONS OF unionfs mount]

It mounts a union in DIR, has these at work on it until N daemons were killed (1000), and says what came of each:

    sqlite      transactions with a write-ahead log and with a rollback journal, each checked after it
    files       random reads, writes, maps, truncations and copies, compared with a plain file after each (random_io)
    pages       a store of pages as databases have: pages in place, a log that is synced, a rename at each checkpoint
    calls       thousands of random system calls on a tree, and the same in a plain directory: each result is compared
    build       a C program of 12 files, built by make and run, again and again
    postgres    a PostgreSQL server, restarted after 400 transactions of two pgbench clients, whose sums are checked;
                only if `initdb` and `pgbench` are found, and for root as the user `postgres`

With --upgrades the mount continues every S seconds in another of two installed versions; no daemon is killed meanwhile.
With --branches a lower is added or removed, or the upper frozen, every S seconds.

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
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.fuse.kernel import random_io
from tests.mounted import operations, trees
from tests.support import chaos, users
from tests.support.timing import limit
from unionfs import compiled

_PAGE: Final = 4096
_PAGES: Final = 64
_CALLS: Final = 1500
_STEPS: Final = 300
_END_S: Final = 300.0
_REFUSED: Final = "freeze refused while a program uses a removed file that has other names"


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
        results = []
        for place in places:
            os.chdir(place)
            results.append(operations.run(calls))
            os.chdir(places[0].parent)
        for call, got, want in zip(calls, *results, strict=True):
            assert got == want, f"{call}: {got}, and in a plain directory {want}"
        done += _CALLS
        for place in places:
            shutil.rmtree(place)
    return done


def _build(_plain: Path) -> int:
    """Returns the number of builds."""
    done = 0
    while not _is_over():
        os.mkdir("program")
        names = [f"f{number}" for number in range(12)]
        for number, name in enumerate(names):
            Path("program", f"{name}.h").write_text(f"int {name}(int);\n")
            body = f'#include <stdio.h>\n#include "{name}.h"\nint {name}(int n) {{ return n * {number} + {done}; }}\n'
            Path("program", f"{name}.c").write_text(body)
        calls = "".join(f'printf("%d ", {name}(3)); ' for name in names)
        headers = "".join(f'#include "{name}.h"\n' for name in names)
        Path("program", "main.c").write_text(f"#include <stdio.h>\n{headers}int main(void) {{ {calls}return 0; }}\n")
        objects = " ".join(f"{name}.o" for name in ("main", *names))
        Path("program", "Makefile").write_text(f"program: {objects}\n\t$(CC) -o $@ $^\n")
        _run("make", "-j2", "-C", "program")
        assert _run("program/program").split() == [str(3 * number + done) for number in range(12)]
        shutil.rmtree("program")
        done += 1
    return done


def _run(*argv: str) -> str:
    """Run a program. Returns what it printed; AssertionError with what it said if it failed."""
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
    "build": _build,
    _POSTGRES: _postgres,
}


def _is_possible(name: str) -> bool:
    if name == "build":
        return shutil.which("make") is not None and shutil.which("cc") is not None
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


class _Program:
    """The program that mounts: this checkout, or an installation that takes turns with another version of it."""

    def __init__(self, base: Path, *, is_installed: bool) -> None:
        self._place = base / "installed" if is_installed else users.CHECKOUT
        self._other = base / "other"
        for version, place in (("1.0", self._place), ("2.0", self._other)) if is_installed else ():
            shutil.copytree(users.CHECKOUT / "unionfs", place / "unionfs")
            (place / f"unionfs-{version}.dist-info").mkdir()
            if not compiled.why_not_usable():
                shutil.copytree(users.CHECKOUT / compiled.COMPILED_DIR, place, dirs_exist_ok=True)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command."""
        argv = [sys.executable, "-m", "unionfs", *arguments]
        return subprocess.run(argv, cwd=self._place, check=check, capture_output=True, text=True)

    def exchange(self) -> None:
        """Install the other version."""
        aside = self._place.with_name("aside")
        self._place.rename(aside)
        self._other.rename(self._place)
        aside.rename(self._other)


class _Changes:
    """Changes of the mount, one every some seconds, in a thread."""

    def __init__(
        self, program: _Program, base: Path, killer: chaos.Killer, upgrades_s: float, branches_s: float
    ) -> None:
        self._program = program
        self._killer = killer
        self._base = base
        self._merged = os.fspath(base / "merged")
        self._every = {self._upgrade: upgrades_s, self._change: branches_s}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.counts: Counter[str] = Counter()
        self._turn = 0
        self._is_added = False

    def start(self) -> None:
        """Start."""
        self._thread.start()

    def stop(self) -> None:
        """Stop."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        due = {what: time.monotonic() + every for what, every in self._every.items() if every}
        while not self._over.wait(0.05):
            for what, when in due.items():
                if time.monotonic() > when:
                    what()
                    due[what] = time.monotonic() + self._every[what]

    def _upgrade(self) -> None:
        self._program.exchange()
        self._killer.is_paused = (
            True  # a daemon that is killed while the other version is loaded is replaced by its own
        )
        time.sleep(1)
        done = self._program.run("upgrade", self._merged, check=False)
        self._killer.is_paused = False
        self.counts["upgrades" if done.returncode == 0 else f"not upgraded: {done.stdout}{done.stderr}"] += 1

    def _change(self) -> None:
        self._turn += 1
        words = ["freeze", self._merged]
        if self._turn % 21:
            words = ["branch", "rm" if self._is_added else "add", self._merged, os.fspath(self._base / "more")]
            self._is_added = not self._is_added
        done = self._program.run(*words, check=False)
        what = words[0] if done.returncode == 0 else f"{words[:2]}: {done.stderr}"
        if "is removed, in use, and has other names: try again" in done.stderr:
            what = _REFUSED
        self.counts[what] += 1


def run(base: Path, arguments: argparse.Namespace) -> bool:
    """Mount, let them work, kill, and print what came of it. Returns whether all is as it should be."""
    kills, between, options = arguments.kills, arguments.between, arguments.options
    program = _Program(base, is_installed=bool(arguments.upgrades))
    for name in ("lower", "more", "upper", "work", "merged", "plain"):
        (base / name).mkdir()
    trees.make(trees.parse("a=more b/new=1 files/new=2"), base / "more")
    trees.make(trees.parse("a=1 b/c=22 b/d/e=333 l->a"), base / "lower")
    before = trees.snapshot(base / "lower")
    branches = [f"--{name}={base / name}" for name in ("lower", "upper", "work")]
    program.run("mount", *branches, f"--log={base / 'log'}", *options, os.fspath(base / "merged"))
    base.chmod(0o755)
    working = {name: _start(name, base) for name in _WORK if _is_possible(name)}
    killer = chaos.Killer(chaos.mount(f"{base}/"), between, seed=int(time.time())).start()
    changes = _Changes(program, base, killer, arguments.upgrades, arguments.branches)
    changes.start()
    began, is_right = time.monotonic(), True
    try:
        while killer.kills < kills and all(one.poll() is None for one in working.values()):
            time.sleep(0.2)
    finally:
        (base / "over").touch()
        changes.stop()
    for name, one in working.items():
        done, said = one.communicate(timeout=limit(_END_S))
        is_right = is_right and one.returncode == 0
        print(f"{name:8} {done.strip() or said}")
    print(f"kills    {killer.stop()} in {time.monotonic() - began:.0f} s")
    lines = program.run("stats", os.fspath(base / "merged")).stdout.splitlines()
    print(*(line for line in lines if line.startswith("keeper")))
    for what, count in changes.counts.items():
        print(f"{count:8} {what}")
        is_right = is_right and what in ("upgrades", "branch", "freeze", _REFUSED)
    program.run("umount", os.fspath(base / "merged"))
    lines = (base / "log").read_text().splitlines()
    errors = [line for at in range(len(lines)) if " ERROR " in lines[at] for line in lines[at : at + 20]]
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
    parser.add_argument("--upgrades", type=float, default=0, metavar="S", help="another version every S seconds")
    parser.add_argument("--branches", type=float, default=0, metavar="S", help="other branches every S seconds")
    parser.add_argument("options", nargs="*", help="options of unionfs mount")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory or "/var/tmp", prefix="outlive-") as base:
        is_right = run(Path(base), arguments)
    print("all is right" if is_right else "something is wrong")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
