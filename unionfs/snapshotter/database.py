"""The table of snapshots in SQLite: names, parents, kinds, labels. Transactions are durable when they return.

Knows rows, not directories. Used by the threads of one process; each sees the commits of the others.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from unionfs.snapshotter.values import (
    AlreadyExistsError,
    FailedPreconditionError,
    Info,
    InvalidArgumentError,
    Kind,
    NotFoundError,
    SnapshotError,
    Usage,
)

_VERSION: Final = 1

_SCHEMA: Final = f"""
BEGIN;
CREATE TABLE snapshot (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    parent INTEGER REFERENCES snapshot ON DELETE RESTRICT,
    kind INTEGER NOT NULL,
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL,
    size INTEGER NOT NULL DEFAULT 0,
    inodes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX children ON snapshot (parent);
CREATE TABLE label (
    snapshot INTEGER NOT NULL REFERENCES snapshot ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (snapshot, key)
) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
COMMIT;
"""
# AUTOINCREMENT: a committed number is never used again, so no directory can get the wrong row.

_ROWS: Final = """
SELECT s.id, s.name, coalesce(p.name, ''), s.kind, s.created_ns, s.updated_ns, s.size, s.inodes
FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent
"""

_ANCESTORS: Final = """
WITH RECURSIVE above (id, depth) AS (
    SELECT parent, 1 FROM snapshot WHERE id = ? AND parent IS NOT NULL
    UNION ALL
    SELECT s.parent, depth + 1 FROM snapshot s JOIN above ON s.id = above.id WHERE s.parent IS NOT NULL
) SELECT id FROM above ORDER BY depth
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One snapshot: its row, labels included. Immutable."""

    id: int
    info: Info
    usage: Usage


class Database:
    """The snapshots of one root directory."""

    def __init__(self, path: str) -> None:
        """Open or create the database. Raises: sqlite3.Error; SnapshotError if it has another version."""
        self._lock = threading.RLock()  # held while the connection is used
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._run("PRAGMA journal_mode = WAL")
            self._run("PRAGMA synchronous = FULL")  # on the disk before the call is answered
            self._run("PRAGMA foreign_keys = ON")
            (version,) = self._run("PRAGMA user_version").fetchone()
            if version == 0:
                self._connection.executescript(_SCHEMA)
            elif version != _VERSION:
                raise SnapshotError(f"{path} has version {version}, but this unionfs reads version {_VERSION}")
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the connection. No method may be called afterwards."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in one exclusive transaction: all of its changes are committed, or none. May not be nested."""
        with self._lock:
            self._run("BEGIN IMMEDIATE")
            try:
                yield
                self._run("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                    self._run("ROLLBACK")
                raise

    def get(self, name: str) -> Row:
        """Return the snapshot `name`. Raises: NotFoundError."""
        with self._lock:
            found = self._run(f"{_ROWS} WHERE s.name = ?", name).fetchone()
            if found is None:
                raise NotFoundError(f"snapshot {name} does not exist")
            return self._row(found)

    def all(self) -> list[Row]:
        """Return all snapshots, oldest first."""
        with self._lock:
            return [self._row(found) for found in self._run(f"{_ROWS} ORDER BY s.id").fetchall()]

    def numbers(self) -> set[int]:
        """Return the numbers of all snapshots."""
        with self._lock:
            return {number for (number,) in self._run("SELECT id FROM snapshot")}

    def ancestors(self, number: int) -> list[int]:
        """Return the numbers of a snapshot's ancestors, its parent first."""
        with self._lock:
            return [above for (above,) in self._run(_ANCESTORS, number)]

    def add(self, name: str, parent: str, kind: Kind, labels: Mapping[str, str], now_ns: int) -> int:
        """Insert a new snapshot and return its number.

        Raises: AlreadyExistsError, NotFoundError for the parent, InvalidArgumentError if the parent is not committed.
        """
        parent_number = None
        if parent:
            found = self.get(parent)
            if found.info.kind is not Kind.COMMITTED:
                raise InvalidArgumentError(f"parent {parent} is {found.info.kind.word}, not committed")
            parent_number = found.id
        self._refuse_taken(name)
        columns = "INSERT INTO snapshot (name, parent, kind, created_ns, updated_ns) VALUES (?, ?, ?, ?, ?)"
        number = self._run(columns, name, parent_number, int(kind), now_ns, now_ns).lastrowid
        assert number is not None
        self._set_labels(number, labels)
        return number

    def commit(self, key: str, name: str, labels: Mapping[str, str], usage: Usage, now_ns: int) -> None:
        """Turn the active snapshot `key` into the committed snapshot `name`, with these labels and no others.

        Raises: AlreadyExistsError, NotFoundError, FailedPreconditionError if it is not active.
        """
        self._refuse_taken(name)
        found = self.get(key)
        if found.info.kind is not Kind.ACTIVE:
            raise FailedPreconditionError(f"snapshot {key} is {found.info.kind.word}, not active")
        self._run(
            "UPDATE snapshot SET name = ?, kind = ?, created_ns = ?, updated_ns = ?, size = ?, inodes = ? WHERE id = ?",
            *(name, int(Kind.COMMITTED), now_ns, now_ns, usage.size, usage.inodes, found.id),
        )
        self._set_labels(found.id, labels)

    def remove(self, name: str) -> int:
        """Delete a snapshot and return its number.

        Raises: NotFoundError, FailedPreconditionError if it is the parent of another snapshot.
        """
        found = self.get(name)
        child = self._run("SELECT name FROM snapshot WHERE parent = ? LIMIT 1", found.id).fetchone()
        if child is not None:
            raise FailedPreconditionError(f"snapshot {name} has children, such as {child[0]}: remove them first")
        self._run("DELETE FROM snapshot WHERE id = ?", found.id)
        return found.id

    def relabel(self, number: int, labels: Mapping[str, str], now_ns: int) -> None:
        """Replace the labels of a snapshot."""
        self._run("UPDATE snapshot SET updated_ns = ? WHERE id = ?", now_ns, number)
        self._set_labels(number, labels)

    def _refuse_taken(self, name: str) -> None:
        if self._run("SELECT 1 FROM snapshot WHERE name = ?", name).fetchone() is not None:
            raise AlreadyExistsError(f"snapshot {name} exists already")

    def _set_labels(self, number: int, labels: Mapping[str, str]) -> None:
        """Replace the labels. An empty value means no label, as in containerd's own database."""
        self._run("DELETE FROM label WHERE snapshot = ?", number)
        for key, value in labels.items():
            if value:
                self._run("INSERT INTO label VALUES (?, ?, ?)", number, key, value)

    def _row(self, found: tuple[int, str, str, int, int, int, int, int]) -> Row:
        number, name, parent, kind, created_ns, updated_ns, size, inodes = found
        labels = dict(self._run("SELECT key, value FROM label WHERE snapshot = ?", number).fetchall())
        return Row(number, Info(name, parent, Kind(kind), created_ns, updated_ns, labels), Usage(size, inodes))

    def _run(self, statement: str, *values: object) -> sqlite3.Cursor:
        return self._connection.execute(statement, values)
