"""Execute a plan whose new files are all built: rename, remove, set attributes.

Knows the journal and the target only: the upper is not needed any more. Every operation finds out from the target
whether it was already done, so any process can execute a plan again from its start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from unionfs.changes.check import DROP, PUT, SET_ATTRIBUTES, SWAP
from unionfs.changes.journal import Journal, Operation
from unionfs.changes.objects import ObjectState
from unionfs.changes.owners import Owner
from unionfs.changes.stage import WRITABLE, Progress, set_attributes
from unionfs.syscalls import files
from unionfs.trees.open_beneath import open_beneath
from unionfs.trees.remove import remove_tree

_SECOND: Final = b".old"
"""Appended to a temporary name for the old object if two names cannot be exchanged."""


class ChangedMeanwhileError(OSError):
    """The object at the path is not the one of the plan."""


class Commit:
    """The execution of one plan."""

    def __init__(self, journal: Journal, *, force: bool, progress: Progress) -> None:
        self.journal: Final = journal
        self.force: Final = force  # replace and remove even objects that another program made meanwhile
        self.progress: Final = progress
        self.root_fd: Final = os.open(journal.target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.root_fd)

    def carry_out(self, operation: Operation) -> None:
        """Do one operation unless it is done. Raises: OSError; ChangedMeanwhileError if another program changed the
        path."""
        verbs: dict[str, Callable[[int, bytes, Operation], None]] = {
            PUT: _put,
            SWAP: _swap,
            DROP: _drop,
            SET_ATTRIBUTES: _set_attributes,
        }
        self.progress(operation.verb, b"/" + os.fsencode(operation.path))
        parent, _, name = os.fsencode(operation.path).rpartition(b"/")
        dir_fd = open_beneath(self.root_fd, parent, os.O_PATH | os.O_DIRECTORY)
        try:
            if self.force:
                if operation.verb == SET_ATTRIBUTES and _kind(_lstat(dir_fd, name)) != _kind(operation.expected):
                    return  # it was removed or replaced: there are no attributes to set
                operation = _as_it_is_now(dir_fd, name, operation)
            verbs[operation.verb](dir_fd, name, operation)
        finally:
            os.close(dir_fd)

    def clear(self) -> list[str]:
        """Remove all temporary files, and restore the modes of directories. Returns the paths that could not be
        removed."""
        left = []
        for rel, _ in self.journal.asides:
            self.progress("clear", b"/" + os.fsencode(rel))
            try:
                self._remove(rel)
                self._remove(rel + os.fsdecode(_SECOND))
            except OSError as error:
                left.append(f"/{rel}: {error.strerror}")
        self._lock()
        return left

    def take_back(self) -> None:
        """Remove all new files, so that nothing has changed. Preconditions: no plan is set."""
        mtimes: dict[str, int] = {}
        for rel, mtime_ns in self.journal.asides:
            mtimes.setdefault(os.path.dirname(rel), mtime_ns)
            self._remove(rel)
        for rel, mtime_ns in mtimes.items():
            self._restore_mtime(rel, mtime_ns)
        self._lock()

    def _lock(self) -> None:
        """Restore the modes of directories that were made writable, unless another program has changed them since."""
        for rel, mode in self.journal.locked.items():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                fd = open_beneath(self.root_fd, os.fsencode(rel), os.O_PATH | os.O_DIRECTORY)
                try:
                    if stat.S_IMODE(os.fstat(fd).st_mode) == mode | WRITABLE:
                        os.chmod(f"/proc/self/fd/{fd}", mode)
                finally:
                    os.close(fd)

    def _remove(self, rel: str) -> None:
        parent, _, name = os.fsencode(rel).rpartition(b"/")
        try:
            dir_fd = open_beneath(self.root_fd, parent, os.O_PATH | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            remove_tree(dir_fd, name)
        finally:
            os.close(dir_fd)

    def _restore_mtime(self, rel: str, mtime_ns: int) -> None:
        fd = open_beneath(self.root_fd, os.fsencode(rel), os.O_PATH | os.O_DIRECTORY)
        try:
            st = os.fstat(fd)
            os.utime(f"/proc/self/fd/{fd}", ns=(st.st_atime_ns, mtime_ns))
        except PermissionError:
            pass  # another user's directory in which we may write: its time shows our change
        finally:
            os.close(fd)


def _rename_to_free(dir_fd: int, name: bytes, free: bytes) -> None:
    """Rename to a free name, without replacing a file that is made there meanwhile."""
    try:
        files.renameat2(dir_fd, name, dir_fd, free, files.RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS) or _lstat(dir_fd, free) is not None:
            raise
        os.rename(name, free, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


def _lstat(dir_fd: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _kind(found: os.stat_result | ObjectState | None) -> int | None:
    if isinstance(found, ObjectState):
        return stat.S_IFMT(found.mode)
    return None if found is None else stat.S_IFMT(found.st_mode)


def _as_it_is_now(dir_fd: int, name: bytes, operation: Operation) -> Operation:
    """The operation as if it had been planned for the present object at the path, unless it is already done."""
    there = _lstat(dir_fd, name)
    if there is not None and operation.made == (there.st_dev, there.st_ino):
        return operation
    verb = operation.verb
    aside = _lstat(dir_fd, os.fsencode(operation.aside)) if verb in (PUT, SWAP) else None
    if aside is not None:
        either_dir = there is not None and (stat.S_ISDIR(there.st_mode) or stat.S_ISDIR(aside.st_mode))
        verb = SWAP if either_dir else PUT
    expected = ObjectState.of(there) if there is not None else None
    return dataclasses.replace(operation, verb=verb, expected=expected)


def _check(name: bytes, there: os.stat_result | None, expected: ObjectState | None) -> None:
    if there is None and expected is None:
        return
    if there is None or expected is None or not expected.same_object(ObjectState.of(there)):
        raise ChangedMeanwhileError(0, "was added, removed or replaced by another program", os.fsdecode(name))


def _put(dir_fd: int, name: bytes, operation: Operation) -> None:
    aside = os.fsencode(operation.aside)
    if _lstat(dir_fd, aside) is None:
        return
    _check(name, _lstat(dir_fd, name), operation.expected)
    if operation.expected is None:
        _rename_to_free(dir_fd, aside, name)
    else:
        os.rename(aside, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


def _swap(dir_fd: int, name: bytes, operation: Operation) -> None:
    aside = os.fsencode(operation.aside)
    there = _lstat(dir_fd, name)
    if there is not None and operation.made == (there.st_dev, there.st_ino):
        return
    if _lstat(dir_fd, aside) is None:
        return
    second = aside + _SECOND
    if there is None and _lstat(dir_fd, second) is not None:  # stopped between the two renames below
        _rename_to_free(dir_fd, aside, name)
        return
    _check(name, there, operation.expected)
    try:
        files.renameat2(dir_fd, aside, dir_fd, name, files.RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        # A filesystem that cannot exchange two names: for a moment the path is missing.
        _rename_to_free(dir_fd, name, second)
        _rename_to_free(dir_fd, aside, name)


def _drop(dir_fd: int, name: bytes, operation: Operation) -> None:
    there = _lstat(dir_fd, name)
    if there is None:
        return
    _check(name, there, operation.expected)
    if stat.S_ISDIR(there.st_mode):
        _rename_to_free(dir_fd, name, os.fsencode(operation.aside))
    else:
        os.unlink(name, dir_fd=dir_fd)


def _set_attributes(dir_fd: int, name: bytes, operation: Operation) -> None:
    fd = os.open(name or b".", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        st = os.fstat(fd)
        expected = operation.expected
        # Its attributes may be the old ones or, if this was done before, the new ones.
        if expected is None or (expected.dev, expected.ino) != (st.st_dev, st.st_ino):
            raise ChangedMeanwhileError(0, "was replaced by another program", os.fsdecode(name))
        owner = None
        if operation.uid is not None and operation.gid is not None:
            owner = Owner(operation.uid, operation.gid)
        xattrs = None
        if operation.xattrs is not None:
            xattrs = {key: bytes.fromhex(value) for key, value in operation.xattrs.items()}
        times = (st.st_atime_ns, operation.mtime_ns) if operation.mtime_ns is not None else None
        set_attributes(fd, owner, operation.mode, xattrs, times)
    finally:
        os.close(fd)
