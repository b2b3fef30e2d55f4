"""The store of snapshots: rows of the database and their directories, one method for each call of containerd.

    ROOT/snapshots.db        the database
    ROOT/snapshots/N/fs      the files of snapshot N: the upper of an active one, a lower once it is committed
    ROOT/snapshots/N/work    the work directory of the mount program
    ROOT/lock                locked by the process that uses the root

A directory is made in the transaction that adds its row, and removed after the one that deletes the row.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from unionfs.changes.objects import fd_xattrs
from unionfs.core.complete import complete_upper
from unionfs.core.options import Options
from unionfs.snapshotter import filters
from unionfs.snapshotter.database import Database, Row
from unionfs.snapshotter.mounts import UNUSABLE_IN_PATHS, files_of, mounts_of, work_of
from unionfs.snapshotter.usage import disk_usage
from unionfs.snapshotter.values import (
    FailedPreconditionError,
    Info,
    InvalidArgumentError,
    Kind,
    Mount,
    SnapshotError,
    Usage,
)
from unionfs.trees.remove import remove_path

log = logging.getLogger(__name__)

_PRIVATE: Final = 0o700  # other users must not be able to execute set-id files of images
_LABELS: Final = "labels"


class SnapshotStore:
    """The snapshots below one root directory. Any number of threads may call it."""

    def __init__(self, root: str, mount_program: str) -> None:
        """Open or make a root, and remove directories without a row.

        Raises: SnapshotError if another process uses the root or its path is unusable; OSError, sqlite3.Error.
        """
        self.root = os.path.realpath(root)  # immutable
        self._mount_program = mount_program  # immutable
        unusable = set(UNUSABLE_IN_PATHS).intersection(self.root)
        if unusable:
            raise SnapshotError(f"the path {self.root} contains {min(unusable)!r}, which mount options cannot have")
        self._directory = os.path.join(self.root, "snapshots")  # immutable
        os.makedirs(self._directory, _PRIVATE, exist_ok=True)
        self._lock_fd = _lock(os.path.join(self.root, "lock"))
        path = os.path.join(self.root, "snapshots.db")
        try:
            if not os.path.exists(path) and os.listdir(self._directory):
                # Without the database all directories would be removed as garbage.
                raise SnapshotError(f"{path} is missing: restore it, or remove {self._directory} to start empty")
            self._database = Database(path)
        except BaseException:
            os.close(self._lock_fd)
            raise
        self.cleanup()

    def close(self) -> None:
        """Close the database and unlock the root. No method may be called afterwards."""
        self._database.close()
        os.close(self._lock_fd)

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """Make an active snapshot on top of the committed `parent`, or empty without one. Return its mounts.

        Raises: AlreadyExistsError, NotFoundError, InvalidArgumentError, OSError.
        """
        return self._add(key, parent, Kind.ACTIVE, labels)

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """Make a read-only snapshot. Otherwise as `prepare`."""
        return self._add(key, parent, Kind.VIEW, labels)

    def mounts(self, key: str) -> list[Mount]:
        """Return the mounts of a snapshot that is active or a view.

        Raises: NotFoundError, FailedPreconditionError.
        """
        row = self._database.get(key)
        if row.info.kind is Kind.COMMITTED:
            raise FailedPreconditionError(f"snapshot {key} is committed: only active ones and views are mounted")
        return self._mounts(row)

    def commit(self, name: str, key: str, labels: Mapping[str, str]) -> None:
        """Turn the active snapshot `key` into the committed one `name`.

        Raises: AlreadyExistsError, NotFoundError, FailedPreconditionError, InvalidArgumentError.
        """
        _check_name(name)
        found = self._database.get(key)
        self._complete(found)
        usage = self._usage(found)
        with self._database.transaction():
            self._database.commit(key, name, labels, usage, time.time_ns())

    def remove(self, key: str) -> None:
        """Remove a snapshot that has no children.

        Raises: NotFoundError, FailedPreconditionError.
        """
        with self._database.transaction():
            number = self._database.remove(key)
        self._remove_directory(number)

    def stat(self, key: str) -> Info:
        """Return a snapshot's Info. Raises: NotFoundError."""
        return self._database.get(key).info

    def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str]) -> Info:
        """Change labels: those that `paths` name (`labels.KEY`), or all of them (`labels`, or no paths).

        Raises: NotFoundError, InvalidArgumentError for paths to anything else.
        """
        with self._database.transaction():
            row = self._database.get(name)
            changed = dict(row.info.labels)
            for path in paths or (_LABELS,):
                head, _, key = path.partition(".")
                if head != _LABELS or (not key and path != _LABELS):
                    raise InvalidArgumentError(f"{path!r} of snapshot {name} cannot be changed, only labels can")
                if key:
                    changed[key] = labels.get(key, "")
                else:
                    changed = dict(labels)
            now_ns = time.time_ns()
            self._database.relabel(row.id, changed, now_ns)
            kept = {key: value for key, value in changed.items() if value}
            return replace(row.info, labels=kept, updated_ns=now_ns)

    def walk(self, texts: Iterable[str]) -> list[Info]:
        """Return the snapshots that pass the filters (`filters`), oldest first. Raises: InvalidArgumentError."""
        passes = filters.parse(texts)
        return [row.info for row in self._database.all() if passes(row.info)]

    def usage(self, key: str) -> Usage:
        """Return a snapshot's disk usage without its parents, measured now if it is active. Raises: NotFoundError."""
        return self._usage(self._database.get(key))

    def cleanup(self) -> None:
        """Remove the directories that have no row."""
        with self._database.transaction():  # so that no directory is listed whose row is about to be committed
            known = self._database.numbers()
            orphans = [name for name in os.listdir(self._directory) if not (name.isdigit() and int(name) in known)]
        for name in orphans:
            log.info("removing the leftover directory of snapshot %s", name)
            self._remove_directory(name)

    def _add(self, key: str, parent: str, kind: Kind, labels: Mapping[str, str]) -> list[Mount]:
        _check_name(key)
        with self._database.transaction():
            number = self._database.add(key, parent, kind, labels, time.time_ns())
            ancestors = self._database.ancestors(number)
            try:
                self._make_directory(number, self._path(ancestors[0]) if ancestors else None)
            except BaseException:
                self._remove_directory(number)
                raise
            return self._mounts(self._database.get(key))

    def _make_directory(self, number: int, parent: str | None) -> None:
        """Make the directory of a snapshot, durably. Its root directory gets the attributes of its parent's."""
        path = self._path(number)
        try:
            os.mkdir(path, _PRIVATE)
        except FileExistsError:  # left by a transaction that was rolled back
            remove_path(path)
            os.mkdir(path, _PRIVATE)
        os.mkdir(work_of(path), _PRIVATE)
        os.mkdir(files_of(path), 0o755)
        os.chmod(files_of(path), 0o755)  # regardless of the umask
        if parent is not None:
            _copy_attributes(files_of(parent), files_of(path))
        for directory in (path, self._directory):
            _sync_directory(directory)

    def _remove_directory(self, number: int | str) -> None:
        """Remove a snapshot's directory. A failure is only logged: the next cleanup tries again."""
        try:
            remove_path(self._path(number))
        except OSError as error:
            log.warning("removing %s failed: %s", self._path(number), error)

    def _complete(self, row: Row) -> None:
        """Wait for the daemon of an active snapshot that was unmounted, and give its upper the names of hard links that
        it lacks: as a lower it has no work directory."""
        own = self._path(row.id)
        parents = [files_of(self._path(number)) for number in self._database.ancestors(row.id)]
        if row.info.kind is not Kind.ACTIVE or not parents:
            return
        try:
            if not complete_upper(Options(lowers=tuple(parents), upper=files_of(own), work=work_of(own))):
                log.warning("snapshot %s lacks names of hard links: its files are still mounted", row.info.name)
        except OSError as error:
            log.warning("names of hard links in snapshot %s are missing: %s", row.info.name, error)

    def _usage(self, row: Row) -> Usage:
        if row.info.kind is not Kind.ACTIVE:
            return row.usage
        try:
            return disk_usage(files_of(self._path(row.id)))
        except FileNotFoundError:
            self._database.get(row.info.name)  # NotFoundError if it was removed meanwhile
            raise

    def _mounts(self, row: Row) -> list[Mount]:
        parents = [self._path(number) for number in self._database.ancestors(row.id)]
        return mounts_of(row.info.kind, self._path(row.id), parents, row.info.labels, self._mount_program)

    def _path(self, number: int | str) -> str:
        return f"{self._directory}/{number}"


def _check_name(name: str) -> None:
    if not name:
        raise InvalidArgumentError("the name of the snapshot is empty")


def _lock(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise SnapshotError(f"{os.path.dirname(path)} is in use by another snapshotter") from None
    return fd


def _copy_attributes(source: str, target: str) -> None:
    """Copy owner, mode, times and extended attributes of a directory, except the union's own marks."""
    source_fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(source_fd)
        with suppress(PermissionError):  # only root may change the owner
            os.chown(target, found.st_uid, found.st_gid)
        for name, value in fd_xattrs(source_fd).items():
            os.setxattr(target, name, value)
        os.chmod(target, found.st_mode & 0o7777)
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
    finally:
        os.close(source_fd)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
