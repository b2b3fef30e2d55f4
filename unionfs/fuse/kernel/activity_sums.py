"""The values of a recording of requests (`activity`): sums by program and directory, nodes, copy-ups, late answers.

Native classes when compiled, whose fields are changed for each request. Times are seconds. Knows /proc for the names of
programs; does not know the protocol.
"""

from __future__ import annotations


class Row:
    """The sums of one opcode, reason, program and directory since the last `take`."""

    def __init__(self, opcode: int, reason: int, program: Program) -> None:
        self.opcode = opcode  # immutable
        self.reason = reason  # immutable
        self.program = program  # immutable
        self.count = 0
        self.size = 0  # bytes of READ and WRITE
        self.seconds = 0.0  # of work of the union's thread
        self.copying = 0.0  # of waiting for a copy-up that the waiting request caused
        self.blocked = 0.0  # ... for a copy-up that another request had caused
        self.disk = 0.0  # ... for threads that read, wrote or synced data


class Program:
    """A process, with the name that it had when that was last read."""

    def __init__(self, pid: int) -> None:
        self.pid = pid  # immutable
        self.name = _name_of(pid)
        self.count = 0

    def look_again(self) -> None:
        """Read the name again, unless the process has ended."""
        self.name = _name_of(self.pid) or self.name


class Directory:
    """A directory of the union."""

    def __init__(self, path: bytes) -> None:
        self.path = path  # immutable; with a slash before it
        self.rows: dict[int, Row] = {}
        self.found: dict[bytes, float] = {}  # names that were looked up and found -> when
        self.missing: set[bytes] = set()  # names that were looked up and not found

    def path_of(self, name: bytes) -> bytes:
        """The path of a name in this directory."""
        return (self.path if self.path != b"/" else b"") + b"/" + name


class Seen:
    """A node that requests have named."""

    def __init__(self, directory: Directory, name: bytes, *, is_directory: bool) -> None:
        self.directory = directory  # immutable; of a directory, itself
        self.name = name  # immutable; empty if it is unknown
        self.is_directory = is_directory  # immutable
        self.count = 0
        self.seconds = 0.0
        self.writes = 0
        self.written = 0  # bytes
        self.answered = 0.0  # when the kernel last got its attributes; 0: not yet
        self.reason = 0  # READ_BEFORE, WRITTEN_BEFORE or CHANGED_BEFORE: since the kernel got its attributes

    def path(self) -> bytes:
        """The path; empty if it is unknown. Not stored: the paths of most nodes are never needed."""
        if self.is_directory:
            return self.directory.path
        return self.directory.path_of(self.name) if self.name else b""


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
    """A request that is answered later."""

    def __init__(self, began: float, kind: int, directory: Directory, key: int, program: Program) -> None:
        self.began = began  # immutable
        self.kind = kind  # immutable: one of _COPYING, _BLOCKED, _DISK
        self.directory = directory  # immutable
        self.key = key  # immutable
        self.program = program  # immutable


def _name_of(pid: int) -> str:
    """The name of a process of this pid namespace; "" where there is none, and for the kernel's own requests (0)."""
    if not pid:
        return ""
    try:
        with open(f"/proc/{pid}/comm", "rb") as comm:
            return comm.read().rstrip(b"\n").decode(errors="replace")  # any process may give itself any bytes
    except OSError:
        return ""
