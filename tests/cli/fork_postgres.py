"""A PostgreSQL server is frozen, forked and merged into while clients use it; not a part of the suite.

    python -m tests.cli.fork_postgres [--rounds 3]

As root, for an ordinary user made for the run, with Debian's packages postgresql and postgresql-contrib. pgbench runs
in a session of `unionfs try` all the time. Each round freezes the session and forks it twice. The server is started in
the forks, where it recovers as after a crash, and is checked: the sums over all accounts, and each index against its
table (pg_amcheck). A file of one fork is merged into the session that serves. At the end a fork of the stopped server
makes a table and is merged as a whole, and the sums of the session must be those of all transactions that pgbench made.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.support.timing import limit
from tests.support.users import User, new_ordinary_user

_BIN: Final = max(map(os.fspath, Path("/usr/lib/postgresql").glob("*/bin")), default="")
_AS_USER: Final = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "sh", "-ec")
"""The server refuses to run as root, whom a session shows its user as."""
_CLIENTS_S: Final = 60
_SUMS: Final = (
    "select (select count(*) from pgbench_history), (select sum(delta) from pgbench_history), "
    "(select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches), "
    "(select sum(tbalance) from pgbench_tellers)"
)


class _Run:
    def __init__(self, user: User) -> None:
        self.user = user
        self.place = Path(tempfile.mkdtemp(prefix="postgres-", dir=user.home))
        user.own(self.place)
        self.environment = {"UNIONFS_ROOT": str(user.home / "store"), "PATH": f"{_BIN}:{os.environ['PATH']}"}

    def unionfs(self, *words: str, check: bool = True) -> str:
        done = self.user.run([*self.user.unionfs_cmd, *words], env=self.environment, timeout_s=300, check=check)
        return done.stdout

    def inside(self, session: str, script: str) -> str:
        """Run a script in the place of the database, in a session."""
        return self.unionfs("try", "-q", "--name", session, "--", *_AS_USER, f"cd {self.place}; {script}")

    def popen(self, session: str, script: str) -> subprocess.Popen[str]:
        words = ["try", "-q", "--name", session, "--", *_AS_USER, f"cd {self.place}; {script}"]
        return self.user.popen([*self.user.unionfs_cmd, *words], env=self.environment)

    def server(self, script: str) -> str:
        """A script between the start and the end of a server."""
        start = f"pg_ctl -D data -l log -w -o '-k {self.place} -c listen_addresses= -c shared_buffers=16MB'"
        return f"{start} start >/dev/null; {script}; pg_ctl -D data -w -m fast stop >/dev/null"

    def sql(self, text: str) -> str:
        return f"psql -h {self.place} -U test -At -c '{text}' postgres"

    def checked(self, session: str) -> int:
        """Check the database of a session that does not run. Returns the number of its transactions."""
        amcheck = f"pg_amcheck -h {self.place} -U test --heapallindexed --install-missing postgres"
        told = self.inside(session, self.server(f"{self.sql(_SUMS)}; {amcheck}"))
        return self.count_of(told)

    @staticmethod
    def count_of(told: str) -> int:
        count, *sums = told.splitlines()[0].split("|")
        assert len(set(sums)) == 1, told
        return int(count)


def _rounds(run: _Run, rounds: int) -> None:
    open_up = f"chown 1000:1000 {run.place}; chmod 711 {run.user.home}"
    run.unionfs("try", "-q", "--name", "db", "--", "sh", "-ec", open_up)
    run.inside("db", "initdb -D data -U test -A trust --no-sync >/dev/null")
    end = run.place / "end"
    clients = run.server(
        f"pgbench -h {run.place} -U test -i -q -s 5 postgres 2>/dev/null; touch ready; "
        f"pgbench -h {run.place} -U test -c 2 -T {_CLIENTS_S} -n postgres >clients 2>&1; "
        f"cat clients; {run.sql(_SUMS)}; while [ ! -e {end} ]; do sleep 0.2; done"
    )
    serving = run.popen("db", clients)
    while json.loads(run.unionfs("status", "--json", "db"))["status"] != "running":
        assert serving.poll() is None, serving.communicate()
        time.sleep(0.5)
    run.inside("db", "while [ ! -e ready ]; do sleep 0.2; done")
    print("pgbench runs", flush=True)
    for number in range(rounds):
        run.unionfs("freeze", "db")
        counts = []
        for name in ("one", "two"):
            began = time.monotonic()
            run.unionfs("fork", "db", f"{name}{number}")
            took = time.monotonic() - began
            counts.append(run.checked(f"{name}{number}"))
            print(f"round {number}: fork in {took:.2f} s, {counts[-1]} transactions, indexes right", flush=True)
        assert counts == sorted(counts)
        run.inside(f"one{number}", f"echo {number} > result{number}")
        run.unionfs("merge", f"one{number}", str(run.place / f"result{number}"))
        assert run.inside("db", f"cat result{number}") == f"{number}\n"
        run.unionfs("drop", f"one{number}", f"two{number}")
    run.inside("db", f"touch {end}")
    told, problems = serving.communicate(timeout=limit(_CLIENTS_S + 60))
    assert serving.returncode == 0, told + problems
    made = re.search(r"number of transactions actually processed: (\d+)", told)
    failed = re.search(r"number of failed transactions: (\d+)", told)
    assert made is not None, told
    assert failed is not None, told
    assert failed[1] == "0", told
    assert run.count_of(told.splitlines()[-1]) == int(made[1])
    assert run.checked("db") == int(made[1])
    print(f"the session: {made[1]} transactions, none failed", flush=True)
    run.unionfs("fork", "db", "last")
    run.inside("last", run.server(run.sql("create table made_in_the_fork as select 7 as n")))
    run.unionfs("merge", "last")
    assert run.inside("db", run.server(run.sql("select n from made_in_the_fork"))) == "7\n"
    assert run.checked("db") == int(made[1])
    print("a fork of the stopped server was merged as a whole", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unionfs-postgres-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)  # the user's home is in it
        with new_ordinary_user(Path(directory)) as user:
            run = _Run(user)
            try:
                _rounds(run, arguments.rounds)
            finally:
                left = run.unionfs("ps", "-a", "-q").split()
                if left:
                    run.unionfs("rm", "-f", *left)


if __name__ == "__main__":
    main()
