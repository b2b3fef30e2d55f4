"""The record of nodes in shared memory, from which the next daemon continues when this one dies (core.takeover).

Holds what the kernel has been told of each node: id, lookup count, inode number, names. It is written before the kernel
is told, so that no count in it is ever too low. Besides: ids given out, the requests that must not be done twice, the
rename in progress, counters. The process may die at any instruction: every entry is valid from one store of 8 bytes on.

    header    8 KiB; words of 8 bytes, see the constants below
    area      entries, one after the other, from the offset that the header names, until a word that is zero

An area is never shortened. When half of it is entries of nodes that are gone, all others are written into a new area
(`begin_area`, `end_area`), and one store in the header replaces the old one. Knows numbers and bytes, not nodes.
"""

from __future__ import annotations

import mmap
import os
from struct import Struct
from typing import Any, Final

LINKED: Final = 1  # a file that stands in NodeTable.by_inode: its other names lead to it
DEAD: Final = 2  # no name is left; the "name" says where the object is:
IN_LOWER: Final = 4  # INDEX/PATH of a file in a lower, by the lower's position
IN_INDEX: Final = 8  # KEY in the hard-link index
IN_LOWERS: Final = 16  # PATH of a directory in the union of the lowers
FORGOTTEN: Final = 32  # the kernel has forgotten it: file handles may still lead to it
LIVE: Final = 64  # in every entry that counts

NAMES_MOST: Final = 32
"""Names of one node in the record at most. Others are found again by its inode."""

SIZE: Final = 1 << 30
"""Bytes of address space; memory is used for what is written only. Some ten million nodes."""

_MAGIC: Final = int.from_bytes(b"unionfs\1", "little")  # the last byte is the version
_HEADER: Final = 8192
_PAGE: Final = 4096
_SLACK: Final = 1 << 20

# Words of the header.
_VERSION: Final = 0
_AREA: Final = 1  # offset of the area in use
_NEXT_ID: Final = 2  # no id from here on was given out
_SERVING: Final = 3  # unique of the request in hand
_FULL: Final = 4  # not zero: something is missing
_LIVES: Final = 5  # takeovers that are complete
_LONGEST_WAIT: Final = 6
_LEDGER: Final = 16  # 8 words
_RING_AT: Final = 63
_RING: Final = 64  # uniques of the last changes; with DONE, or 0 for one that failed
_RING_SIZE: Final = 64
_COUNTS: Final = 128  # requests by opcode
_COUNTS_SIZE: Final = 64
_RENAME: Final = 256  # unique; src, parent, new parent, dst, flags, lengths of the names; the names
_NAME_ROOM: Final = 256

_IDS_AHEAD: Final = 1024  # ids are reserved by so many at once

DONE: Final = 1 << 62

_FIELDS: Final = Struct("=QQQQQ")
_NAME: Final = Struct("=QQ")
_FIXED: Final = 8 + _FIELDS.size
_pack: Final = _FIELDS.pack_into


class DamagedError(Exception):
    """The record cannot be read. `str()` says why."""


class RecordedNode:
    """What the record has of a node."""

    __slots__ = ("slot", "flags", "nodeid", "nlookup", "ino", "names")

    def __init__(
        self, slot: int, flags: int, nodeid: int, nlookup: int, ino: int, names: list[tuple[int, bytes]]
    ) -> None:
        self.slot = slot  # changed by NodeTable.compact
        self.flags = flags  # immutable
        self.nodeid = nodeid  # immutable
        self.nlookup = nlookup  # changed by NodeTable
        self.ino = ino  # immutable
        self.names = names  # (node id of the parent, name), the primary one first; changed by takeover only


class Rename:
    """A rename that was in progress. Immutable."""

    __slots__ = ("unique", "src", "parent", "name", "new_parent", "new_name", "dst", "flags")

    def __init__(
        self, unique: int, src: int, parent: int, name: bytes, new_parent: int, new_name: bytes, dst: int, flags: int
    ) -> None:
        self.unique = unique
        self.src = src
        self.parent = parent
        self.name = name
        self.new_parent = new_parent
        self.new_name = new_name
        self.dst = dst  # node id of what is replaced or exchanged; 0: nothing
        self.flags = flags  # of renameat2(2)


class NodeRecord:
    """The record of one mount. Written by the daemon's only thread that serves; read by a daemon that takes over."""

    def __init__(self) -> None:
        """Make an empty record. Raises: OSError."""
        self.fd = os.memfd_create("unionfs-nodes", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, SIZE)
        self._mm: Any = mmap.mmap(self.fd, SIZE)
        self._words: Any = memoryview(self._mm).cast("Q")
        self.counts: Any = self._words[_COUNTS : _COUNTS + _COUNTS_SIZE]
        """The number of requests by opcode."""
        self.ledger: Any = self._words[_LEDGER : _LEDGER + 8]
        """The counters of core.ledger."""
        self._start = _HEADER  # of the area in use
        self._end = _HEADER
        self._used = 0  # bytes of entries that count
        self.compact_at = 0
        """NodeTable makes a new area when `end` is above this."""
        self._ring = 0
        self._reserved = 0  # ids below this are marked as given out
        self._before = (0, 0)  # the area that is being replaced
        self._words[_VERSION] = _MAGIC
        self._words[_AREA] = _HEADER
        self._set_limit()

    def _set_limit(self) -> None:
        self.compact_at = self._start + 2 * self._used + _SLACK

    # -- nodes -----------------------------------------------------------------------------------------------------

    @property
    def end(self) -> int:
        """The offset behind the last entry."""
        return self._end

    @property
    def is_full(self) -> bool:
        """Whether something could not be recorded: no daemon can continue from this."""
        return bool(self._words[_FULL])

    def put(self, flags: int, nodeid: int, nlookup: int, ino: int, names: list[tuple[int, bytes]]) -> int:
        """Add an entry. Returns its slot, never 0; 0 when there is no room."""
        parent, name = names[0]
        more = len(names) - 1
        length = len(name)
        at = self._end
        size = _FIXED + ((length + 7) & ~7)
        tail = b""
        if more:
            tail = b"".join(
                [_NAME.pack(above, len(other)) + other + bytes(-len(other) & 7) for above, other in names[1:]]
            )
        whole = size + len(tail)
        if at + whole + 8 > SIZE:
            self._words[_FULL] = 1
            return 0
        mm = self._mm
        _pack(mm, at + 8, nodeid, nlookup, ino, parent, length | more << 32)
        mm[at + _FIXED : at + _FIXED + length] = name
        if more:
            mm[at + size : at + whole] = tail
        self._words[at >> 3] = whole << 8 | flags | LIVE
        self._end = at + whole
        self._used += whole
        return at

    def count(self, slot: int, nlookup: int) -> None:
        """Change the lookup count of an entry."""
        self._words[(slot >> 3) + 2] = nlookup

    def mark(self, slot: int, flag: int) -> None:
        """Add a flag to an entry."""
        self._words[slot >> 3] |= flag

    def drop(self, slot: int) -> None:
        """Remove an entry."""
        word = self._words[slot >> 3]
        self._words[slot >> 3] = word & ~0xFF
        self._used -= word >> 8

    def give_id(self, nodeid: int) -> None:
        """Mark an id as given out, before it is."""
        if nodeid >= self._reserved:
            self._reserved = nodeid + _IDS_AHEAD
            self._words[_NEXT_ID] = self._reserved

    def begin_area(self) -> None:
        """Begin a new area. All entries that count are then put again, and `end_area` is called."""
        self._before = (self._start, self._end)
        room = 2 * self._used + _SLACK
        start = _HEADER if _HEADER + room < self._start else _page_after(self._end + 8)
        self._start = self._end = start
        self._used = 0

    def end_area(self) -> None:
        """Use the new area from now on, and give back the memory of the one before."""
        self._words[_AREA] = self._start
        start, end = self._before
        self._free(start, _page_after(end))
        self._set_limit()

    def _free(self, start: int, end: int) -> None:
        if end > start:
            self._mm.madvise(mmap.MADV_REMOVE, start, end - start)

    # -- requests --------------------------------------------------------------------------------------------------

    def serve(self, unique: int) -> None:
        """Record the request in hand."""
        self._words[_SERVING] = unique

    @property
    def lives(self) -> int:
        """The number of daemons that have begun to serve, the first one not counted."""
        lives: int = self._words[_LIVES]
        return lives

    @property
    def longest_wait_us(self) -> int:
        """The longest time without a daemon, in microseconds."""
        longest: int = self._words[_LONGEST_WAIT]
        return longest

    def begin_life(self, number: int, longest_wait_us: int) -> None:
        """A daemon begins to serve, `number` deaths after the first one."""
        self._words[_LONGEST_WAIT] = longest_wait_us
        self._words[_LIVES] = number

    @property
    def serving(self) -> int:
        """The unique of the last request."""
        unique: int = self._words[_SERVING]
        return unique

    def begin(self, unique: int) -> None:
        """A change that must not be done twice begins."""
        self._ring = (self._ring + 1) % _RING_SIZE
        self._words[_RING_AT] = self._ring
        self._words[_RING + self._ring] = unique

    def finish(self, is_done: bool) -> None:
        """The change that began last is done, or has failed."""
        at = _RING + self._ring
        self._words[at] = self._words[at] | DONE if is_done else 0

    def begin_rename(
        self, src: int, parent: int, name: bytes, new_parent: int, new_name: bytes, dst: int, flags: int
    ) -> None:
        """A rename begins; the arguments are those of Rename."""
        words, mm = self._words, self._mm
        at = (_RENAME + 8) * 8
        mm[at : at + len(name)] = name
        mm[at + _NAME_ROOM : at + _NAME_ROOM + len(new_name)] = new_name
        words[_RENAME + 1] = src
        words[_RENAME + 2] = parent
        words[_RENAME + 3] = new_parent
        words[_RENAME + 4] = dst
        words[_RENAME + 5] = flags
        words[_RENAME + 6] = len(name) | len(new_name) << 32
        words[_RENAME] = words[_RING + self._ring] & ~DONE or 1  # 1: not for a request

    def end_rename(self, is_done: bool) -> None:
        """The rename is done, and its names are recorded, or it has failed."""
        words = self._words
        if is_done:
            for at in range(_RING, _RING + _RING_SIZE):
                if words[at] == words[_RENAME]:
                    words[at] |= DONE
        words[_RENAME] = 0

    # -- for a daemon that takes over ------------------------------------------------------------------------------

    def load(self) -> tuple[int, list[RecordedNode]]:
        """Read what the daemon before has written, and continue behind it. Returns the first id that may be given out,
        and the nodes in the order of writing; of two entries with one id the later is right.

        Raises: DamagedError.
        """
        words, mm = self._words, self._mm
        if words[_VERSION] != _MAGIC:
            raise DamagedError(f"its version is {words[_VERSION]:#x}, not {_MAGIC:#x}")
        if words[_FULL]:
            raise DamagedError("it was full")
        at: int = words[_AREA]
        if not _HEADER <= at < SIZE or at % _PAGE:
            raise DamagedError(f"its area begins at {at}")
        self._start, self._used = at, 0
        found = []
        while word := words[at >> 3]:
            size = word >> 8
            if size < _FIXED or size % 8 or at + size + 8 > SIZE:
                raise DamagedError(f"an entry at {at} has {size} bytes")
            if word & LIVE:
                found.append(_entry(mm, at, size, word & 0xFF))
                self._used += size
            at += size
        self._end = at
        behind = _page_after(at)
        mm[at:behind] = bytes(behind - at)  # of an entry that was not finished
        self._free(behind, SIZE)
        self._free(_HEADER, self._start)
        self._set_limit()
        self._ring = words[_RING_AT] % _RING_SIZE
        self._reserved = words[_NEXT_ID]
        return self._reserved, found

    def changes(self) -> dict[int, bool]:
        """Return the changes that were begun, by unique: whether they are known to be done."""
        found: dict[int, bool] = {}
        for word in self._words[_RING : _RING + _RING_SIZE]:
            if word:
                unique = word & ~DONE
                found[unique] = bool(word & DONE) or found.get(unique, False)
        return found

    def rename(self) -> Rename | None:
        """Return the rename that was in progress, if any."""
        words, mm = self._words, self._mm
        unique = words[_RENAME]
        if not unique:
            return None
        lengths = words[_RENAME + 6]
        length, new_length = lengths & 0xFFFFFFFF, lengths >> 32
        if length > _NAME_ROOM or new_length > _NAME_ROOM:
            raise DamagedError("a rename has names that are too long")
        at = (_RENAME + 8) * 8
        name, new_name = bytes(mm[at : at + length]), bytes(mm[at + _NAME_ROOM : at + _NAME_ROOM + new_length])
        src, parent, new_parent, dst, flags = words[_RENAME + 1 : _RENAME + 6]
        return Rename(unique, src, parent, name, new_parent, new_name, dst, flags)


def _entry(mm: Any, at: int, size: int, flags: int) -> RecordedNode:
    """Decode the entry of `size` bytes at `at`. Raises: DamagedError."""
    nodeid, nlookup, ino, parent, lengths = _FIELDS.unpack_from(mm, at + 8)
    length, more = lengths & 0xFFFFFFFF, lengths >> 32
    position = at + _FIXED
    names = []
    while True:
        if position + length > at + size:
            raise DamagedError(f"the name of node {nodeid} is longer than its entry")
        names.append((parent, bytes(mm[position : position + length])))
        position += (length + 7) & ~7
        if not more:
            return RecordedNode(at, flags, nodeid, nlookup, ino, names)
        if position + _NAME.size > at + size:
            raise DamagedError(f"node {nodeid} has fewer names than its entry says")
        parent, length = _NAME.unpack_from(mm, position)
        position += _NAME.size
        more -= 1


def _page_after(offset: int) -> int:
    return (offset + _PAGE - 1) & ~(_PAGE - 1)
