"""Records the requests of one mount with their files, programs and reasons, for `unionfs profile` and `watch`.

Sums requests by opcode, reason, program and directory; remembers nodes, names and copy-ups to tell the reason: why the
kernel asked instead of answering from its cache. `turn` calls `served` after each request, only while there is an
Activity in `Session.observers`, and the loop calls `late` for each answer that is given later. All methods but `late`
are called on the union's thread. Times are seconds of time.monotonic. Knows the protocol and the paths of nodes;
does not know sockets.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from unionfs.core.attrs import VIEW, AttrChange, Attrs
from unionfs.core.ledger import FILE, CopiedUp
from unionfs.fuse.kernel import abi, decode
from unionfs.fuse.kernel.abi import Op
from unionfs.fuse.kernel.activity_sums import Copied, Directory, Late, Program, Row, Seen
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
"""Limit of the remembered nodes, names and copy-ups, some 200 bytes each; beyond it all are forgotten, and `forgot` is
set."""
ROWS_MAX: Final = 100_000
"""Limit of the sums between two answers; beyond it, a request is counted without program and directory."""
PROGRAMS_MAX: Final = 20_000
"""Limit of the remembered processes."""
FILES_MAX: Final = 50
"""Files with the most requests that an answer lists."""

_SETATTR: Final = 4
_UNLINK: Final = 10
_RENAME: Final = 12
_READ: Final = 15
_WRITE: Final = 16
_FALLOCATE: Final = 43
_RENAME2: Final = 45
_COPY_FILE_RANGE: Final = 47
_OPEN: Final = 14
_COPY_FILE_RANGE_64: Final = 53
_NEED_DATA: Final = frozenset((_WRITE, _FALLOCATE, _COPY_FILE_RANGE, _COPY_FILE_RANGE_64, _OPEN))
_REMOVING: Final = frozenset((_UNLINK, _RENAME, _RENAME2))
_SET_ID: Final = 0o6000

_PLAIN: Final = 0
_OF_NAME: Final = 1
_OF_ATTRIBUTES: Final = 2
_OF_XATTRS: Final = 3
_OF_DATA: Final = 4
_IN_DIRECTORY: Final = 5
_OF_NO_NODE: Final = 6


def _kinds() -> bytes:
    kinds = bytearray(256)
    for kind, opcodes in (
        (_OF_NAME, (Op.LOOKUP,)),
        (_OF_ATTRIBUTES, (Op.GETATTR, Op.STATX)),
        (_OF_XATTRS, (Op.GETXATTR, Op.LISTXATTR)),
        (_OF_DATA, (Op.READ, Op.WRITE)),
        (_IN_DIRECTORY, (Op.MKNOD, Op.MKDIR, Op.SYMLINK, Op.LINK, Op.UNLINK, Op.RMDIR, Op.RENAME, Op.RENAME2)),
        (_OF_NO_NODE, (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT)),
    ):
        for opcode in opcodes:
            kinds[opcode] = kind
    return bytes(kinds)


_KINDS: Final = _kinds()
"""The kind of a request, by its opcode."""

_clock: Final = monotonic
_read_in: Final = abi.READ_IN.unpack_from
_name_of_length: Final[list[Callable[[memoryview], tuple[bytes]] | None]] = [None] * (BODY + abi.NAME_MAX + 2)
"""Takes the name from a LOOKUP of this length, which costs less than a slice of a memoryview; made when needed."""
_NO_NODE_ID: Final = bytes(8)
_NODE_ID: Final = abi.OUT_HEADER.size  # where it begins in the reply to a LOOKUP
_NODE_ID_END: Final = _NODE_ID + len(_NO_NODE_ID)
_entry_id: Final = struct.Struct("=Q").unpack_from
_NAMES: Final = {int(op): op.name for op in Op}

_OPCODE_AT: Final = 4
"""Of the first byte of a request's opcode; all have one byte."""
_SETATTR_END: Final = BODY + abi.SETATTR_IN.size
_LOOK_AGAIN: Final = 4
_LOOK_AT_LAST: Final = 32
"""The process's requests, by number, at which its name is read again: it may have called execve(2) after the first
one."""

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
        self._timeout_s = options.timeout_s  # immutable
        self.settings = {  # immutable
            "timeout_s": options.timeout_s,
            "writeback": options.writeback,
            "passthrough": options.passthrough,
            "read_only": options.read_only,
            "partial": union.options.metacopy,
        }
        self._seen: dict[int, Seen] = {}
        self._directories: dict[bytes, Directory] = {}  # by path
        self._are_paths_current = True  # False once a directory was renamed
        self._active: list[Directory] = []  # those with rows
        self._rows = 0  # since the last `take`
        self._elsewhere = Directory(b"")  # counts requests beyond ROWS_MAX
        self._nobody = Program(0)
        self._programs: dict[int, Program] = {}
        self._names = 0
        self._late: dict[int, Late] = {}  # by unique
        self._answers: deque[tuple[int, float]] = deque()  # unique, when; filled by any thread
        self._copied: dict[int, Copied] = {}  # by node id
        self._copied_at: dict[bytes, Copied] = {}  # by path
        self._copied_now: list[CopiedUp] = []  # copy-ups of the request in hand; emptied after it
        self._is_unchanging = False  # whether the request in hand sets attributes to the values that they have
        self._hot: list[dict[str, Any]] = []  # of nodes that were forgotten
        # Node, directory and program of the last request, which the next one often has, too: found without a
        # dictionary.
        self._program = self._nobody
        self._node = -1
        self._seen_last = Seen(Directory(b""), b"", is_directory=False)
        self._key = -1
        self._row_last = Row(0, 0, self._program)
        self._row_directory = self._seen_last.directory

    def begin(self) -> bool:
        """Begin to record. Returns False, as `fuse.calls` wants it."""
        self._session.observers = (*self._session.observers, self)
        ledger = self._union.ledger
        ledger.listeners = (*ledger.listeners, self.copied)
        return False

    def end(self) -> bool:
        """End the recording. Returns False."""
        self._session.observers = tuple(each for each in self._session.observers if each is not self)
        ledger = self._union.ledger
        ledger.listeners = tuple(each for each in ledger.listeners if each != self.copied)
        return False

    # -- on the union's thread, for each request ---------------------------------------------------------------------

    def is_to_be_served(self, request: memoryview, length: int) -> None:
        """Note, before a SETATTR is handled, whether it will copy a file up and change nothing."""
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
        self,
        dispatcher: Dispatcher,
        request: memoryview,
        length: int,
        reply: bytes | memoryview | None,
        began: float,
        now: float,
    ) -> None:
        """Record a request that the dispatcher has handled from `began` to `now`, with its reply if there is one yet.

        It runs for each request: compiled, in some 400 nanoseconds with the clock.
        """
        if length < BODY:
            return
        head = dispatcher.serving
        opcode: int = head[1]
        pid: int = head[6]
        kind = _KINDS[opcode] if opcode < 256 else _PLAIN
        program = self._program
        if program.pid != pid:
            program = self._change_program(pid)
        program.count += 1
        if program.count == _LOOK_AGAIN or program.count == _LOOK_AT_LAST:  # noqa: PLR1714  compiled, this makes no tuple
            program.look_again()
        nodeid: int = 0 if kind == _OF_NO_NODE else head[3]
        seen = self._seen_last
        if nodeid != self._node:
            seen = self._change_node(nodeid)
        size = 0
        if kind == _OF_NAME:
            reason = self._of_lookup(seen.directory, request, length, reply, now)
        elif kind == _OF_DATA:
            reason = NO_REASON
            size = _read_in(request, BODY)[2]  # WRITE_IN has it at the same place
            _count_data(opcode, seen, size)
        else:
            reason = self._reason_of(opcode, kind, seen, request, length, now)
        seconds = now - began
        seen.count += 1
        seen.seconds += seconds
        key = pid << 16 | reason << 8 | opcode & 0xFF
        row = self._row_last
        if key != self._key or seen.directory is not self._row_directory:
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

    def _reason_of(self, opcode: int, kind: int, seen: Seen, request: memoryview, length: int, now: float) -> int:
        if kind == _OF_ATTRIBUTES:
            return self._of_getattr(seen, now)
        if kind == _OF_XATTRS:
            return XATTR
        if kind == _IN_DIRECTORY:
            seen.reason = CHANGED_BEFORE
            if opcode in _REMOVING and (self._copied_at or opcode != _UNLINK):
                self._removed(opcode, seen.directory, request, length)
        elif opcode == _SETATTR:
            seen.answered, seen.reason = now, NO_REASON
        return NO_REASON

    def _change_program(self, pid: int) -> Program:
        program = self._programs.get(pid)
        if program is None:
            program = self._programs[pid] = Program(pid)
        self._program = program
        return program

    def _change_node(self, nodeid: int) -> Seen:
        seen = self._seen.get(nodeid)
        if seen is None:
            seen = self._see(nodeid)
        self._node, self._seen_last = nodeid, seen
        return seen

    def _see(self, nodeid: int) -> Seen:
        if len(self._seen) >= NODES_MAX:
            self._hot = self._files()
            self._seen.clear()
            self._directories.clear()
            self._names = 0
            self.forgot = True
        seen = self._seen[nodeid] = self._new(nodeid)
        return seen

    def _new(self, nodeid: int) -> Seen:
        """Make the record of a node, with the directory that it is in: building its whole path would take longer than
        the rest of a request's recording."""
        unknown = Seen(self._directory(b""), b"", is_directory=False)
        if not nodeid or nodeid >= VIEW:
            return unknown
        try:
            parent, name, is_directory = self._union.name_of(nodeid)
            if not parent:
                return Seen(self._directory(b"/"), b"", is_directory=True)
            above = self._seen.get(parent)
            if above is None:
                above = self._see(parent)
            directory = above.directory
            if not (above.is_directory and self._are_paths_current):
                path = self._path(nodeid)[0]
                directory = self._directory(path[: path.rfind(b"/")] or b"/")
        except OSError:  # forgotten
            return unknown
        if is_directory:
            directory = self._directory(directory.path_of(name))
        return Seen(directory, name, is_directory=is_directory)

    def _path(self, nodeid: int) -> tuple[bytes, bool]:
        """The path of a node with a slash before it; empty if it is unknown."""
        if not nodeid or nodeid >= VIEW:
            return b"", False
        try:
            found = self._union.place_of(nodeid)
        except OSError:  # forgotten
            return b"", False
        return b"/" + found.path, found.is_directory

    def _directory(self, path: bytes) -> Directory:
        found = self._directories.get(path)
        if found is None:
            found = self._directories[path] = Directory(path)
        return found

    def _directory_of(self, path: bytes, is_directory: bool) -> Directory:
        return self._directory(path if is_directory or not path else path[: path.rfind(b"/")] or b"/")

    def _row(self, directory: Directory, key: int, program: Program) -> Row:
        row = directory.rows.get(key)
        if row is None:
            row = self._new_row(directory, key, program)
        self._key, self._row_directory, self._row_last = key, directory, row
        return row

    def _new_row(self, directory: Directory, key: int, program: Program) -> Row:
        self._rows += 1
        if self._rows > ROWS_MAX:
            directory, program, key = self._elsewhere, self._nobody, key & 0xFFFF
            row = directory.rows.get(key)
            if row is not None:
                return row
        if not directory.rows:
            self._active.append(directory)
        row = directory.rows[key] = Row(key & 0xFF, key >> 8 & 0xFF, program)
        return row

    def _of_lookup(
        self, directory: Directory, request: memoryview, length: int, reply: bytes | memoryview | None, now: float
    ) -> int:
        if length >= len(_name_of_length):  # no name is longer
            return NO_REASON
        name_of = _name_of_length[length]
        if name_of is None:
            name_of = _name_of_length[length] = struct.Struct(f"={BODY}x{max(length - BODY - 1, 0)}s").unpack_from
        name = name_of(request)[0]
        if not isinstance(reply, bytes) or len(reply) < _NODE_ID_END or reply[_NODE_ID:_NODE_ID_END] == _NO_NODE_ID:
            names = directory.missing
            known = len(names)
            names.add(name)
            if len(names) == known:
                return MISSING_AGAIN
            if self._is_one_too_many():
                directory.missing.add(name)
            return MISSING
        before = directory.found.get(name)
        if before is None:
            if name in directory.missing:
                directory.missing.discard(name)
                directory.found[name] = now
                return AGAIN
            self._is_one_too_many()
            directory.found[name] = now
            return FIRST
        directory.found[name] = now
        return EXPIRED if now - before > self._timeout_s else AGAIN

    def _is_one_too_many(self) -> bool:
        """Count one more name. Returns whether all names were forgotten to make room for it."""
        self._names += 1
        if self._names <= NAMES_MAX:
            return False
        for each in self._directories.values():
            each.found, each.missing = {}, set()
        self._names = 1
        self.forgot = True
        return True

    def _of_getattr(self, seen: Seen, now: float) -> int:
        before, reason = seen.answered, seen.reason
        seen.answered, seen.reason = now, NO_REASON
        if reason != NO_REASON:
            return reason
        if not before:
            return EARLIER
        return EXPIRED if now - before > self._timeout_s else AGAIN

    # -- waits -------------------------------------------------------------------------------------------------------

    def _wait(self, dispatcher: Dispatcher, head: decode.Head, request: memoryview, now: float, late: Late) -> None:
        """Note that a request is answered later, and the copy-up for which it waits, if any."""
        self._take_answers()  # so that they do not become many
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
            copied = Copied(path, self._directory_of(path, is_directory), late.program)
            self._copied[nodeid] = self._copied_at[path] = copied
            copied.is_unchanged = self._is_unchanging
        if _needs_data(head, request):
            copied.needs_data = True

    def late(self, reply: bytes | memoryview) -> None:
        """Note that an answer was sent. May be called in any thread."""
        self._answers.append((abi.OUT_HEADER.unpack_from(reply)[2], _clock()))

    def _take_answers(self) -> None:
        while self._answers:
            unique, when = self._answers.popleft()
            late = self._late.pop(unique, None)
            if late is None:
                continue
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
            copied = Copied(path, self._directory_of(path, is_directory=False), program)
            copied.size, copied.seconds = entry.copied, entry.seconds
            self._copied_at[path] = copied
            if path == seen.path():
                self._copied[nodeid] = copied
                copied.is_unchanged = self._is_unchanging
                copied.needs_data = _needs_data(head, request)
            else:  # the other file of a rename(2), link(2) or copy_file_range(2)
                self._copied[-len(self._copied) - 1] = copied
                copied.needs_data = opcode in _NEED_DATA
        self._copied_now.clear()

    def _removed(self, opcode: int, directory: Directory, request: memoryview, length: int) -> None:
        """Note that a name may have been removed, or replaced by a rename(2)."""
        if opcode == _UNLINK:
            gone = directory.path_of(bytes(request[BODY:length]).partition(b"\0")[0])
        else:
            fixed = abi.RENAME_IN.size if opcode == _RENAME else abi.RENAME2_IN.size
            (to,) = _entry_id(request, BODY)
            old, new, *_ = *bytes(request[BODY + fixed : length]).split(b"\0"), b"", b""
            gone = self._change_node(to).directory.path_of(new)
            if directory.path_of(old) in self._directories or gone in self._directories:
                self._are_paths_current = False
        copied = self._copied_at.pop(gone, None)
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
            path = _text(directory.path)
            rows += [_as_json(row, path) for row in directory.rows.values()]
            directory.rows = {}
        self._active = []
        self._rows = 0
        self._key = -1
        found: dict[str, Any] = {"rows": rows, "forgot": self.forgot}
        if whole:
            found["files"], found["copy_ups"] = self._files(), self._copies()
        return found

    def _files(self) -> list[dict[str, Any]]:
        """The files with the most requests."""
        files = [seen for seen in self._seen.values() if seen.name and not seen.is_directory]
        ordered = sorted(files, key=_count_of)[-FILES_MAX:]
        found = [
            {
                "path": _text(seen.path()),
                "requests": seen.count,
                "seconds": seen.seconds,
                "writes": seen.writes,
                "written": seen.written,
            }
            for seen in reversed(ordered)
        ]
        return [*found, *self._hot]

    def _copies(self) -> list[dict[str, Any]]:
        """The copied-up files by program, directory and use of the copy."""
        sums: dict[tuple[str, str, str], dict[str, Any]] = {}
        for copied in self._copied.values():
            if copied.size < 0:
                continue
            use = "data" if copied.needs_data else "attributes"
            if copied.is_removed:
                use = "removed"
            elif copied.is_unchanged and not copied.needs_data:
                use = "unchanged"
            key = (copied.program.name, _text(copied.directory.path), use)
            one = sums.get(key)
            if one is None:
                one = sums[key] = {
                    "program": key[0], "directory": key[1], "use": use, "count": 0, "size": 0, "seconds": 0.0,
                }  # fmt: skip
            one["count"] += 1
            one["size"] += copied.size
            one["seconds"] += copied.seconds
        return list(sums.values())


def _count_data(opcode: int, seen: Seen, size: int) -> None:
    if opcode == _READ:
        seen.reason = READ_BEFORE
        return
    seen.reason = WRITTEN_BEFORE
    seen.writes += 1
    seen.written += size


def _text(path: bytes) -> str:
    return path.decode(errors="replace")  # bytes that are no UTF-8 cannot be told apart


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
    """Whether a change of mode or owners alone wants the values that the object has already."""
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
