"""A database serves in a container that is frozen, forked and merged into meanwhile."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.cli.conftest import Box
from tests.support.marks import as_ordinary_user
from tests.support.timing import limit
from tests.support.users import User

_OPEN = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1] + "/data.db", isolation_level=None, timeout=30)
"""
_SERVE = (
    _OPEN
    + """
import os
database.execute("pragma journal_mode=wal")
database.execute("create table transfers (n integer primary key, text text)")
database.execute("create table accounts (name text primary key, balance integer)")
database.execute("insert into accounts values ('one', 0), ('other', 0)")
n = 0
while not os.path.exists(sys.argv[1] + "/end"):
    n += 1
    database.execute("begin immediate")
    database.execute("insert into transfers values (?, ?)", (n, "x" * (n % 50) * 100))
    database.execute("update accounts set balance = balance - ? where name = 'one'", (n,))
    database.execute("update accounts set balance = balance + ? where name = 'other'", (n,))
    database.execute("commit")
    print(n, flush=True)
"""
)
"""Makes transactions, and prints the number of each when it is committed."""
_CHECK = (
    _OPEN
    + """
assert database.execute("pragma integrity_check").fetchone() == ("ok",)
count, last = database.execute("select count(*), max(n) from transfers").fetchone()
assert count == last, (count, last)
balances = dict(database.execute("select name, balance from accounts"))
total = last * (last + 1) // 2
assert balances == {"one": -total, "other": total}, (last, balances)
print(last)
"""
)
"""Checks that the database has transactions 1 to N, all of each, and prints N."""


@as_ordinary_user
def test_a_database_serves_meanwhile(box: Box, user: User) -> None:
    place = Path(tempfile.mkdtemp(prefix="database-", dir=user.home))
    user.own(place)
    argv: list[str | Path] = [*user.unionfs_cmd, "try", "-q", "--name", "db", "--", sys.executable, "-c", _SERVE, place]
    environment = {"UNIONFS_ROOT": str(user.home / "images")}
    server = user.popen(argv, env=environment)
    lines = iter(server.stdout or ())

    def committed(more: int) -> int:
        """The number of the last transaction, after some more."""
        return [int(next(lines)) for _ in range(more)][-1]

    def checked(session: str) -> int:
        return int(box("try", "-q", "--name", session, "--", sys.executable, "-c", _CHECK, place).stdout)

    last = {}
    committed(20)
    box("freeze", "db")
    for name in ("one", "two"):
        last[name] = committed(20)
        box("fork", "db", name)
    committed(20)
    one, two = checked("one"), checked("two")  # opened as after a crash: the journal is replayed
    assert last["one"] <= one <= two
    assert last["two"] <= two
    box("try", "-q", "--name", "one", "--", "sh", "-c", f"echo result > {place}/result")
    refused = box("merge", "--json", "one", check=False)
    # The journal always; the database itself only if the server has brought its journal back meanwhile.
    assert {Path(each["path"]).name for each in json.loads(refused.stdout)["conflicts"]} >= {"data.db-wal"}
    box("merge", "one", place / "result")
    committed(20)
    box("drop", "two")
    box("freeze", "db")
    end = committed(20)
    assert box("try", "-q", "--name", "db", "--", "cat", place / "result").stdout == "result\n"
    box("try", "-q", "--name", "db", "--", "touch", place / "end")
    rest, _ = server.communicate(timeout=limit(60))
    assert server.returncode == 0
    assert checked("db") == int(rest.split()[-1]) > max(end, two)
    assert list(place.iterdir()) == []
