"""The journal of an apply, on disk, by which it can be undone or resumed after a crash.

A file of JSON lines, only ever appended to. Before the line with the plan, all new files can be removed again, and
the target is unchanged. After that line the plan must be executed: its operations find out by themselves whether
they were done. An incomplete last line is ignored.

    {"token": T, "target": PATH}                          first
    {"aside": REL, "mtime": NS[, "mode": MODE]}           about to be built at REL; its directory had this mtime, and
                                                          this mode if that keeps its owner from writing in it
    {"plan": [OPERATION...]}                              everything is built
    {"done": true}                                        the plan is executed

Names that are not UTF-8 are stored as lone surrogates, which JSON escapes. Knows no branches and decides nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Final

from unionfs.changes.objects import ObjectState

_PREFIX: Final = ".unionfs-apply-"


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a plan: `verb` is one of check.PUT, SWAP, DROP, SET_ATTRIBUTES."""

    verb: str
    path: str  # below the target's root
    kind: str = ""  # A, C or D: how the change is listed
    aside: str = ""  # temporary name beside `path`: of the new object, or of the old one before it is removed
    made: tuple[int, int] | None = None  # device and inode number of the new object
    expected: ObjectState | None = None  # the object at `path` before
    uid: int | None = None  # for SET_ATTRIBUTES: the values to set; None keeps the value
    gid: int | None = None
    mode: int | None = None
    xattrs: dict[str, str] | None = None  # values in hexadecimal
    mtime_ns: int | None = None

    @property
    def says(self) -> bool:
        """Whether the operation changes more than the time of a directory in which other operations were done."""
        return not self.for_directory or (self.uid, self.mode, self.xattrs) != (None, None, None)

    @property
    def for_directory(self) -> bool:
        """Whether the attributes of a directory are set."""
        return self.verb == "dress" and self.expected is not None and stat.S_ISDIR(self.expected.mode)


@dataclass(slots=True)
class Journal:
    """The journal of one apply, open and locked against a second apply."""

    path: str
    target: str
    token: str
    asides: list[tuple[str, int]] = field(default_factory=list)
    locked: dict[str, int] = field(default_factory=dict)  # directories that are made writable meanwhile -> mode before
    plan: list[Operation] | None = None  # None: still building
    done: bool = False
    _fd: int = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; the file stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def name(self, number: int) -> str:
        """A temporary name that no other apply uses."""
        return f"{_PREFIX}{self.token}.{number}"

    def add_aside(self, rel: str, mtime_ns: int, mode: int | None = None) -> None:
        """Record that a file will be made at `rel`. Call it before that, and before its directory's mode is changed."""
        self.asides.append((rel, mtime_ns))
        if mode is not None:
            self.locked.setdefault(os.path.dirname(rel), mode)
        self._append({"aside": rel, "mtime": mtime_ns, **({} if mode is None else {"mode": mode})})

    def set_plan(self, plan: Sequence[Operation]) -> None:
        """Record the plan, after everything was built."""
        self._append({"plan": [asdict(operation) for operation in plan]})
        os.fsync(self._fd)
        self.plan = list(plan)

    def set_done(self) -> None:
        """Record that the plan was executed."""
        self._append({"done": True})
        self.done = True

    def end(self) -> None:
        """Remove the journal: there is nothing to resume or undo."""
        os.unlink(self.path)
        self.close()

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        while line:
            line = line[os.write(self._fd, line) :]


def begin(path: str, target: str) -> Journal:
    """Make a journal. Raises: FileExistsError if there is one, which must be resumed or undone first."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    journal = Journal(path, target, os.urandom(4).hex(), _fd=fd)
    journal._append({"token": journal.token, "target": target})
    return journal


def find(path: str) -> Journal | None:
    """The journal of an earlier apply, or None. Raises: BlockingIOError while that apply is running."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(fd, "rb", closefd=False) as file:
            lines = file.read().split(b"\n")[:-1]
        if not lines:  # stopped before the first line: nothing was built
            os.unlink(path)
            os.close(fd)
            return None
        first, *rest = (json.loads(line) for line in lines)
        journal = Journal(path, first["target"], first["token"], _fd=fd)
        for record in rest:
            if "done" in record:
                journal.done = True
            elif "plan" in record:
                journal.plan = [_operation(saved) for saved in record["plan"]]
            else:
                journal.asides.append((record["aside"], record["mtime"]))
                if "mode" in record:
                    journal.locked.setdefault(os.path.dirname(record["aside"]), record["mode"])
    except BaseException:
        os.close(fd)
        raise
    return journal


def is_begun(path: str) -> bool:
    """Whether a plan was begun or executed, so that the upper's marks are not valid any more."""
    journal = find(path)
    if journal is None:
        return False
    with journal:
        return journal.plan is not None


def _operation(saved: dict[str, Any]) -> Operation:
    saved["made"] = tuple(saved["made"]) if saved["made"] is not None else None
    saved["expected"] = ObjectState(*saved["expected"]) if saved["expected"] is not None else None
    return Operation(**saved)
