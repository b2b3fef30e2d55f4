"""What was copied up: counted always, told one by one to whoever listens. Knows no nodes and no branches.

The core enters what it did; a transport says by `asked_by` which request it is serving, so that a copy-up can be laid
at somebody's door.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

FILE = "file"
DIRECTORY = "directory"
OTHER = "other"


class Cause(NamedTuple):
    """The request that a copy-up was made for."""

    request: str  # the kernel's name of the opcode without FUSE_, or "" when nobody says
    pid: int  # of the caller, in the mount's pid namespace; 0: unknown


NOBODY = Cause("", 0)


class CopiedUp(NamedTuple):
    """One copy-up."""

    path: bytes  # in the union, from its root, without a slash before it
    branch: str  # the lower it came from
    kind: str  # FILE, DIRECTORY or OTHER
    size: int  # of the file, in bytes
    copied: int  # bytes of data moved: holes, shared extents and what is cut off at once do not count
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
        self.seconds = 0.0
        self.asked_by: Callable[[], Cause] = _nobody
        self.listeners: tuple[Callable[[CopiedUp], None], ...] = ()  # replaced as a whole, from any thread

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

    def tell(self, entry: CopiedUp) -> None:
        """Tell who listens of one copy-up, which was counted before."""
        for listener in self.listeners:
            listener(entry)


def _nobody() -> Cause:
    return NOBODY
