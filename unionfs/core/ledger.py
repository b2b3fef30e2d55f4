"""The ledger of copy-ups: counts all of them and passes each to the listeners. Knows no nodes and no branches.

The core enters each copy-up. A transport sets `current_cause`, which returns the request in progress, so that each
copy-up is attributed to a request and a process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

FILE = "file"
DIRECTORY = "directory"
OTHER = "other"


class Cause(NamedTuple):
    """The request that a copy-up was made for."""

    request: str  # the kernel's name of the opcode without FUSE_, or "" if unknown
    pid: int  # of the caller, in the mount's pid namespace; 0: unknown


NO_CAUSE = Cause("", 0)


class CopiedUp(NamedTuple):
    """One copy-up."""

    path: bytes  # in the union, from its root, without a slash before it
    branch: str  # the lower it came from
    kind: str  # FILE, DIRECTORY or OTHER
    size: int  # of the file, in bytes
    copied: int  # bytes of data moved, without holes, shared extents and data cut off by the same request
    reflinked: bool
    seconds: float  # from the first look at the lower to the rename that shows the copy
    cause: Cause


class Ledger:
    """The copy-ups of one union. Changed on the union's thread only; its numbers may be read from any."""

    def __init__(self) -> None:
        self.files = 0
        self.directories = 0
        self.others = 0
        self.reflinked = 0
        self.bytes = 0
        self.saved = 0  # bytes of copied-up files that stayed in the lowers
        self.seconds = 0.0
        self.current_cause: Callable[[], Cause] = _no_cause
        self.listeners: tuple[Callable[[CopiedUp], None], ...] = ()  # replaced as a whole, from any thread
        self.kept: Any = None  # numbers in shared memory (core.node_record), from which `continue_` goes on; set once

    def count(self, kind: str, copied: int, seconds: float, reflinked: bool) -> None:
        """Count one copy-up; the arguments are the fields of CopiedUp."""
        if kind == FILE:
            self.files += 1
        elif kind == DIRECTORY:
            self.directories += 1
        else:
            self.others += 1
        self.reflinked += reflinked
        self.bytes += copied
        self.seconds += seconds
        kept = self.kept
        if kept is not None:
            kept[0], kept[1], kept[2], kept[3] = self.files, self.directories, self.others, self.reflinked
            kept[4], kept[5], kept[6] = self.bytes, int(self.seconds * 1e9), max(0, self.saved)

    def count_more(self, copied: int, seconds: float = 0.0) -> None:
        """Count bytes that were copied to a partial file after its copy-up."""
        self.bytes += copied
        self.saved -= copied
        self.seconds += seconds
        kept = self.kept
        if kept is not None:
            kept[4], kept[5], kept[6] = self.bytes, int(self.seconds * 1e9), max(0, self.saved)

    def continue_(self) -> None:
        """Continue with the numbers that the daemon before has recorded."""
        self.files, self.directories, self.others, self.reflinked, self.bytes, nanoseconds, self.saved = self.kept[:7]
        self.seconds = nanoseconds / 1e9

    def notify(self, entry: CopiedUp) -> None:
        """Pass one copy-up, which `count` has counted, to all listeners."""
        for listener in self.listeners:
            listener(entry)


def _no_cause() -> Cause:
    return NO_CAUSE
