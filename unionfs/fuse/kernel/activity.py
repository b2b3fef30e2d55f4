"""Records what the requests of one mount are about, for `unionfs profile` and `watch`.

Sums requests by opcode, reason, program and directory; remembers nodes, names and copy-ups to tell the reason: why the
kernel asked instead of answering from its cache. `turn` calls `served` after each request, only while there is an
Activity in `Session.observers`, and the loop calls `late` for each answer that is given later. All methods but `late`
are called on the union's thread. Times are seconds of time.perf_counter. Knows the protocol and the paths of nodes;
does not know sockets.
"""

from __future__ import annotations

import struct
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from unionfs.core.attrs import VIEW, AttrChange, Attrs
from unionfs.core.ledger import FILE, CopiedUp
from unionfs.fuse.kernel import abi, decode
from unionfs.fuse.kernel.abi import Op
from unionfs.fuse.kernel.decode import BODY

if TYPE_CHECKING:
    from unionfs.core.union import Union
    from unionfs.fuse.kernel.dispatch import Dispatcher
    from unionfs.fuse.kernel.session import Session

NO_REASON: Final = 0
FIRST: Final = 1
AGAIN: Final = 2
EXPIRED: Final = 3
MISSING: Final = 4
MISSING_AGAIN: Final = 5
READ_BEFORE: Final = 6
WRITTEN_BEFORE: Final = 7
CHANGED_BEFORE: Final = 8
XATTR: Final = 9
EARLIER: Final = 10
REASONS: Final = (
    *("", "first", "again", "expired", "missing", "missing again", "atime", "written", "changed", "xattr", "earlier"),
)
"""Why the kernel asked, by number: `first`: asked for the first time since the recording began; `again`: it had an
answer and has dropped it; `expired`: the answer was older than the mount's timeout; `missing`: no such name; `atime`:
attributes after a READ, which changes st_atime; `written`: attributes after a WRITE; `changed`: attributes of a
directory after a change in it; `xattr`: it caches none; `earlier`: attributes that it had dropped for a reason that
came before the recording."""

NODES_MAX: Final = 50_000
NAMES_MAX: Final = 100_000
COPIES_MAX: Final = 100_000
"""What is remembered at most, some 200 bytes each; then all of it is forgotten, and `forgot` is set."""
PROGRAMS_MAX: Final = 20_000
"""Processes that are remembered at most."""
FILES_MAX: Final = 50
"""Files with the most requests that an answer lists."""

_LOOKUP: Final = 1
_FORGET: Final = 2
_GETATTR: Final = 3
_SETATTR: Final = 4
_UNLINK: Final = 10
_RENAME: Final = 12
_READ: Final = 15
_WRITE: Final = 16
_GETXATTR: Final = 22
_LISTXATTR: Final = 23
_INTERRUPT: Final = 36
_BATCH_FORGET: Final = 42
_FALLOCATE: Final = 43
_RENAME2: Final = 45
_COPY_FILE_RANGE: Final = 47
_OPEN: Final = 14
_STATX: Final = 52
_COPY_FILE_RANGE_64: Final = 53
_NEED_DATA: Final = frozenset((_WRITE, _FALLOCATE, _COPY_FILE_RANGE, _COPY_FILE_RANGE_64, _OPEN))
_REMOVING: Final = frozenset((_UNLINK, _RENAME, _RENAME2))
_IN_DIRECTORY: Final = frozenset(
    map(int, (Op.MKNOD, Op.MKDIR, Op.SYMLINK, Op.LINK, Op.UNLINK, Op.RMDIR, Op.RENAME, Op.RENAME2))
)
_DATA: Final = frozenset((_READ, _WRITE))
_SET_ID: Final = 0o6000
_NO_NODE: Final = frozenset((_FORGET, _BATCH_FORGET, _INTERRUPT))

_read_in: Final = abi.READ_IN.unpack_from
_entry_id: Final = struct.Struct("=Q").unpack_from
_NAMES: Final = {int(op): op.name for op in Op}

_OPCODE_AT: Final = 4
"""Of the first byte of a request's opcode; all have one byte."""
_SETATTR_END: Final = BODY + abi.SETATTR_IN.size
_LOOK_AGAIN: Final = (4, 32)
"""At these requests of a process its name is read again: it may have called execve(2) after the first one."""


class Row:
    """The sums of one opcode, reason, program and directory since the last `take`."""

    def __init__(self, opcode: int, reason: int, program: Program) -> None:
        self.opcode = opcode  # immutable
        self.reason = reason  # immutable
        self.program = program  # immutable
        self.count = 0
        self.size = 0  # bytes of READ and WRITE
        self.seconds = 0.0  # that the union's thread worked for it
        self.copying = 0.0  # that requests waited for a copy-up that they caused
        self.blocked = 0.0  # ... for a copy-up that another request had caused
        self.disk = 0.0  # ... for threads that read, wrote or synced data


class Program:
    """A process, by the name it had when it was looked at last."""

    def __init__(self, pid: int) -> None:
        self.pid = pid  # immutable
        self.name = _name_of(pid)
        self.count = 0

    def look_again(self) -> None:
        """Read the name again, unless the process has ended."""
        self.name = _name_of(self.pid) or self.name


class Directory:
    """A directory of the union."""

    def __init__(self, path: str) -> None:
        self.path = path  # immutable
        self.rows: dict[int, Row] = {}
        self.names: dict[bytes, float] = {}  # names that were looked up -> when


class Seen:
    """A node that requests were about."""

    def __init__(self, path: bytes, directory: Directory, *, is_directory: bool) -> None:
        self.path = path  # immutable
        self.directory = directory  # immutable; of a directory, itself
        self.is_directory = is_directory  # immutable
        self.count = 0
        self.seconds = 0.0
        self.writes = 0
        self.written = 0  # bytes
        self.answered = 0.0  # when its attributes were told; 0: not yet
        self.reason = 0  # READ_BEFORE, WRITTEN_BEFORE or CHANGED_BEFORE: since its attributes were told


class Copied:
    """A file that was copied up."""

    def __init__(self, path: bytes, directory: Directory, program: Program) -> None:
        self.path = path  # immutable
        self.directory = directory  # immutable
        self.program = program  # immutable
        self.is_unchanged = False  # by the request that caused it: all attributes were as wanted already
        self.needs_data = False
        self.is_removed = False
        self.size = -1  # bytes copied; -1: not yet
        self.seconds = 0.0


class Late:
    """A request that is to be answered later."""

    def __init__(self, began: float, kind: int, directory: Directory, key: int, program: Program) -> None:
        self.began = began  # immutable
        self.kind = kind  # immutable: one of _COPYING, _BLOCKED, _DISK
        self.directory = directory  # immutable
        self.key = key  # immutable
        self.program = program  # immutable


_COPYING: Final = 0
_BLOCKED: Final = 1
_DISK: Final = 2


class Activity:
    """The requests of one mount since `begin`."""

    def __init__(self, session: Session, union: Union) -> None:
        self._session = session  # immutable
        self._union = union  # immutable
        self.forgot = False  # whether nodes, names or copy-ups were forgotten: reasons may be wrong from then on
        options = session.options
        self.settings = {  # immutable
            "timeout_s": options.timeout_s,
            "writeback": options.writeback,
            "passthrough": options.passthrough,
            "read_only": options.read_only,
            "partial": union.options.metacopy,
        }
        self._seen: dict[int, Seen] = {}
        self._directories: dict[str, Directory] = {}
        self._active: list[Directory] = []  # those with rows
        self._programs: dict[int, Program] = {}
        self._names = 0
        self._late: dict[int, Late] = {}  # by unique
        self._answers: deque[tuple[int, float]] = deque()  # unique, when; filled by any thread
        self._copied: dict[int, Copied] = {}  # by node id
        self._copied_at: dict[bytes, Copied] = {}  # by path
        self._copied_now: list[CopiedUp] = []  # copy-ups of the request in hand; emptied after it
        self._is_unchanging = False  # whether the request in hand sets attributes to what they are
        self._hot: list[dict[str, Any]] = []  # of nodes that were forgotten

    def begin(self) -> bool:
        """Begin to record. Returns False, as `fuse.calls` wants it."""
        self._session.observers = (*self._session.observers, self)
        ledger = self._union.ledger
        ledger.listeners = (*ledger.listeners, self.copied)
        return False

    def end(self) -> bool:
        """Record nothing more. Returns False."""
        self._session.observers = tuple(each for each in self._session.observers if each is not self)
        ledger = self._union.ledger
        ledger.listeners = tuple(each for each in ledger.listeners if each != self.copied)
        return False

    # -- on the union's thread, for each request ---------------------------------------------------------------------

    def is_to_be_served(self, request: memoryview, length: int) -> None:
        """Note, before a request is handled, whether it will copy a file up and change nothing."""
        if length < _SETATTR_END or request[_OPCODE_AT] != _SETATTR:
            return
        head = abi.IN_HEADER.unpack_from(request)
        nodeid: int = head[3]
        if nodeid >= VIEW:
            return
        try:
            if not self._union.place_of(nodeid).is_up:
                (change,) = decode.setattr_(head, request, length)
                self._is_unchanging = _is_as_wanted(self._union.getattr(nodeid), change)
        except OSError:  # the request will fail, too
            return

    def served(
        self, dispatcher: Dispatcher, request: memoryview, length: int, reply: bytes | memoryview | None, began: float
    ) -> None:
        """Record a request that the dispatcher has handled, with its reply if there is one yet."""
        if length < BODY:
            return
        now = perf_counter()
        head = dispatcher.serving
        opcode: int = head[1]
        pid: int = head[6]
        if self._answers:
            self._take_answers()
        program = self._programs.get(pid)
        if program is None:
            program = self._programs[pid] = Program(pid)
        program.count += 1
        if program.count in _LOOK_AGAIN:
            program.look_again()
        nodeid: int = 0 if opcode in _NO_NODE else head[3]
        seen = self._seen.get(nodeid)
        if seen is None:
            seen = self._see(nodeid)
        reason = self._reason_of(opcode, seen, request, length, reply, now)
        size = 0
        if opcode in _DATA:
            size = _read_in(request, BODY)[2]  # WRITE_IN has it at the same place
            seen.reason = READ_BEFORE if opcode == _READ else WRITTEN_BEFORE
            if opcode == _WRITE:
                seen.writes += 1
                seen.written += size
        seconds = now - began
        seen.count += 1
        seen.seconds += seconds
        key = pid << 16 | reason << 8 | opcode
        row = seen.directory.rows.get(key)
        if row is None:
            row = self._row(seen.directory, key, program)
        row.count += 1
        row.size += size
        row.seconds += seconds
        if reply is None and nodeid:
            self._wait(dispatcher, head, request, now, Late(now, _DISK, seen.directory, key, program))
        if self._copied_now:
            self._note_copies(opcode, nodeid, seen, request, head)
        if self._copied and opcode in _NEED_DATA and nodeid in self._copied:
            self._copied[nodeid].needs_data = True
        self._is_unchanging = False

    def _reason_of(
        self, opcode: int, seen: Seen, request: memoryview, length: int, reply: bytes | memoryview | None, now: float
    ) -> int:
        if opcode == _LOOKUP:
            return self._of_lookup(seen.directory, bytes(request[BODY : length - 1]), reply, now)
        if opcode in (_GETATTR, _STATX):
            return self._of_getattr(seen, now)
        if opcode in (_GETXATTR, _LISTXATTR):
            return XATTR
        if opcode == _SETATTR:
            seen.answered = now
            seen.reason = NO_REASON
        elif opcode in _IN_DIRECTORY:
            seen.reason = CHANGED_BEFORE
            if opcode in _REMOVING and self._copied_at:
                self._removed(opcode, seen, request, length)
        return NO_REASON

    def _see(self, nodeid: int) -> Seen:
        if len(self._seen) >= NODES_MAX:
            self._hot = self._files()
            self._seen.clear()
            self._directories.clear()
            self._names = 0
            self.forgot = True
        path, is_directory = self._path(nodeid)
        seen = Seen(path, self._directory(path, is_directory), is_directory=is_directory)
        self._seen[nodeid] = seen
        return seen

    def _path(self, nodeid: int) -> tuple[bytes, bool]:
        """The path of a node with a slash before it; empty if it is unknown."""
        if not nodeid or nodeid >= VIEW:
            return b"", False
        try:
            found = self._union.place_of(nodeid)
        except OSError:  # forgotten
            return b"", False
        return b"/" + found.path, found.is_directory

    def _directory(self, path: bytes, is_directory: bool) -> Directory:
        name = path if is_directory or not path else path[: path.rfind(b"/")] or b"/"
        text = name.decode(errors="replace")  # bytes that are no UTF-8 cannot be told apart
        found = self._directories.get(text)
        if found is None:
            found = self._directories[text] = Directory(text)
        return found

    def _row(self, directory: Directory, key: int, program: Program) -> Row:
        if not directory.rows:
            self._active.append(directory)
        row = directory.rows[key] = Row(key & 0xFF, key >> 8 & 0xFF, program)
        return row

    def _of_lookup(self, directory: Directory, name: bytes, reply: bytes | memoryview | None, now: float) -> int:
        before = directory.names.get(name)
        if before is None:
            self._names += 1
            if self._names > NAMES_MAX:
                for each in self._directories.values():
                    each.names = {}
                self._names = 1
                self.forgot = True
        directory.names[name] = now
        if reply is None or len(reply) < 24 or not _entry_id(reply, 16)[0]:
            return MISSING if before is None else MISSING_AGAIN
        if before is None:
            return FIRST
        return EXPIRED if now - before > self._session.options.timeout_s else AGAIN

    def _of_getattr(self, seen: Seen, now: float) -> int:
        before, reason = seen.answered, seen.reason
        seen.answered, seen.reason = now, NO_REASON
        if reason != NO_REASON:
            return reason
        if not before:
            return EARLIER
        return EXPIRED if now - before > self._session.options.timeout_s else AGAIN

    # -- waits -------------------------------------------------------------------------------------------------------

    def _wait(self, dispatcher: Dispatcher, head: decode.Head, request: memoryview, now: float, late: Late) -> None:
        """Note that a request is to be answered later, and for which copy-up it waits, if for any."""
        unique: int = head[2]
        slow = dispatcher.slow
        if slow and isinstance(slow[-1], bytes):
            return  # the reply follows a notification
        for waiting in self._session.waiting.values():
            if unique in waiting.requests:
                is_first = next(iter(waiting.requests)) == unique
                late.kind = _COPYING if is_first else _BLOCKED
                self._begin_copy(dispatcher, waiting.nodeid, head, request, late)
                break
        self._late[unique] = late

    def _begin_copy(
        self, dispatcher: Dispatcher, nodeid: int, head: decode.Head, request: memoryview, late: Late
    ) -> None:
        copied = self._copied.get(nodeid)
        if copied is None:
            if len(self._copied) >= COPIES_MAX:
                self._copied.clear()
                self._copied_at.clear()
                self.forgot = True
            path, is_directory = self._path(nodeid)
            copied = Copied(path, self._directory(path, is_directory), late.program)
            self._copied[nodeid] = self._copied_at[path] = copied
            copied.is_unchanged = self._is_unchanging
        if _needs_data(head, request):
            copied.needs_data = True

    def late(self, reply: bytes | memoryview) -> None:
        """In any thread: note that an answer was sent."""
        self._answers.append((abi.OUT_HEADER.unpack_from(reply)[2], perf_counter()))

    def _take_answers(self) -> None:
        while self._answers:
            unique, when = self._answers.popleft()
            late = self._late.pop(unique, None)
            if late is None:
                continue
            row = late.directory.rows.get(late.key)
            if row is None:
                row = self._row(late.directory, late.key, late.program)
            if late.kind == _COPYING:
                row.copying += when - late.began
            elif late.kind == _BLOCKED:
                row.blocked += when - late.began
            else:
                row.disk += when - late.began

    # -- copy-ups ----------------------------------------------------------------------------------------------------

    def copied(self, entry: CopiedUp) -> None:
        """Note a finished copy-up; a listener of the ledger."""
        if entry.kind != FILE:
            return
        copied = self._copied_at.get(b"/" + entry.path)
        if copied is None:
            self._copied_now.append(entry)
        else:
            copied.size, copied.seconds = entry.copied, entry.seconds

    def _note_copies(self, opcode: int, nodeid: int, seen: Seen, request: memoryview, head: decode.Head) -> None:
        """Note copy-ups that were made while a request was handled."""
        for entry in self._copied_now:
            path = b"/" + entry.path
            program = self._programs.get(entry.cause.pid) or Program(entry.cause.pid)
            copied = Copied(path, self._directory(path, is_directory=False), program)
            copied.size, copied.seconds = entry.copied, entry.seconds
            self._copied_at[path] = copied
            if path == seen.path:
                self._copied[nodeid] = copied
                copied.is_unchanged = self._is_unchanging
                copied.needs_data = _needs_data(head, request)
            else:  # the other file of a rename(2), link(2) or copy_file_range(2)
                self._copied[-len(self._copied) - 1] = copied
                copied.needs_data = opcode in _NEED_DATA
        self._copied_now.clear()

    def _removed(self, opcode: int, seen: Seen, request: memoryview, length: int) -> None:
        """Note that a name may have been removed, or replaced by a rename(2)."""
        parts = bytes(request[BODY:length]).split(b"\0")
        if opcode == _UNLINK:
            directory, name = seen.path, parts[0]
        else:
            fixed = abi.RENAME_IN.size if opcode == _RENAME else abi.RENAME2_IN.size
            (to,) = _entry_id(request, BODY)
            parts = bytes(request[BODY + fixed : length]).split(b"\0")
            directory, name = self._path(to)[0], parts[1] if len(parts) > 1 else b""
        copied = self._copied_at.pop((directory if directory != b"/" else b"") + b"/" + name, None)
        if copied is not None:
            copied.is_removed = True

    # -- answers -----------------------------------------------------------------------------------------------------

    def take(self, *, whole: bool) -> dict[str, Any]:
        """The rows since the last call; and if `whole`, files and copy-ups since the beginning, which takes longer."""
        self._take_answers()
        if len(self._programs) > PROGRAMS_MAX:
            self._programs.clear()
        rows = []
        for directory in self._active:
            rows += [_as_json(row, directory.path) for row in directory.rows.values()]
            directory.rows = {}
        self._active = []
        found: dict[str, Any] = {"rows": rows, "forgot": self.forgot}
        if whole:
            found["files"], found["copy_ups"] = self._files(), self._copies()
        return found

    def _files(self) -> list[dict[str, Any]]:
        """The files with the most requests."""
        files = [seen for seen in self._seen.values() if seen.path and not seen.is_directory]
        ordered = sorted(files, key=_count_of)[-FILES_MAX:]
        found = [
            {
                "path": seen.path.decode(errors="replace"),
                "requests": seen.count,
                "seconds": seen.seconds,
                "writes": seen.writes,
                "written": seen.written,
            }
            for seen in reversed(ordered)
        ]
        return [*found, *self._hot]

    def _copies(self) -> list[dict[str, Any]]:
        """The copied-up files by program, directory and what the copy was used for."""
        sums: dict[tuple[str, str, str], dict[str, Any]] = {}
        for copied in self._copied.values():
            if copied.size < 0:
                continue
            use = "data" if copied.needs_data else "attributes"
            if copied.is_removed:
                use = "removed"
            elif copied.is_unchanged and not copied.needs_data:
                use = "unchanged"
            key = (copied.program.name, copied.directory.path, use)
            one = sums.get(key)
            if one is None:
                one = sums[key] = {
                    "program": key[0], "directory": key[1], "use": use, "count": 0, "size": 0, "seconds": 0.0,
                }  # fmt: skip
            one["count"] += 1
            one["size"] += copied.size
            one["seconds"] += copied.seconds
        return list(sums.values())


def _count_of(seen: Seen) -> int:
    return seen.count


def _as_json(row: Row, directory: str) -> dict[str, Any]:
    return {
        "kind": _NAMES.get(row.opcode) or str(row.opcode), "reason": REASONS[row.reason], "program": row.program.name,
        "directory": directory, "requests": row.count, "size": row.size, "seconds": row.seconds,
        "copying": row.copying, "blocked": row.blocked, "disk": row.disk,
    }  # fmt: skip


def _needs_data(head: decode.Head, request: memoryview) -> bool:
    """Whether a request uses the data of the file that it has copied up."""
    if head[1] == _SETATTR:
        return decode.setattr_(head, request, len(request))[0].size is not None
    return head[1] in _NEED_DATA


def _is_as_wanted(now: Attrs, change: AttrChange) -> bool:
    """Whether a change of mode or owners alone wants what is there."""
    if change.size is not None or change.atime_ns is not None or change.mtime_ns is not None:
        return False
    if change.mode is None and change.uid is None and change.gid is None:
        return False
    if change.kill_priv and now.mode & _SET_ID:
        return False
    return (
        (change.mode is None or change.mode == now.mode & 0o7777)
        and (change.uid is None or change.uid == now.uid)
        and (change.gid is None or change.gid == now.gid)
    )


def _name_of(pid: int) -> str:
    """The name of a process of this pid namespace; "" where there is none, and for the kernel's own requests (0)."""
    if not pid:
        return ""
    try:
        with open(f"/proc/{pid}/comm", "rb") as comm:
            return comm.read().rstrip(b"\n").decode(errors="replace")  # any process may give itself any bytes
    except OSError:
        return ""
