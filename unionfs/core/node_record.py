"""The record of nodes in shared memory, from which the next daemon continues when this one dies (core.takeover).

Contains all that the kernel knows of each node: id, lookup count, inode number, names; and under passthrough the open
files. It is written before each answer, so that no count in it is ever too low. What the request in hand has
counted is noted: if the kernel sends it again, it never got the answer, and the counts are taken back. Besides: ids
given out, the requests that must not be done twice, the rename in progress, counters. The process may die at any
instruction: every entry is valid from one store of 8 bytes on.

    header    128 KiB; words of 8 bytes, see the constants below
    area      entries, one after the other, from the offset that the header names, until a word that is zero; those of
              nodes that one request has looked up stand together (core.recorded_listing)
    request   the last 2 MiB: the buffer into which requests are read

An area is never shortened. When half of it is entries of nodes that are gone, all others are written into a new area
(`compact`), and one store in the header replaces the old one. Knows numbers and bytes, not nodes.
"""

from __future__ import annotations

import mmap
import os
import sys
from array import array
from collections.abc import Callable
from typing import Any, Final

from unionfs.core import record_version, recorded_entry, recorded_listing
from unionfs.core.recorded_entry import FIXED, LIVE, OPEN, WORD, DamagedError
from unionfs.core.recorded_listing import HEAD, LISTED
from unionfs.core.recorded_node import NOTED_UNIQUE, Notes, OpenFile, RecordedNode
from unionfs.core.recorded_rename import Rename

LINKED: Final = 1  # a file that stands in NodeTable.by_inode: its other names lead to it
DEAD: Final = 2  # no name is left; the "name" says where the object is:
IN_LOWER: Final = 4  # NUMBER/PATH of a file in a lower, by Branch.number
IN_INDEX: Final = 8  # KEY in the hard-link index
IN_LOWERS: Final = 16  # PATH of a directory in the union of the lowers
FORGOTTEN: Final = 32  # the kernel has forgotten it: file handles may still lead to it

NAMES_MOST: Final = 32
"""Limit of the names of one node in the record. Further names are found again by its inode."""

SIZE: Final = 1 << 30
"""Bytes of address space, for some ten million nodes; only written pages use memory."""
REQUEST_ROOM: Final = 2 << 20
"""Bytes at the end for the buffer of requests. The last request stays there; it may be a half-done FORGET."""

_HEADER: Final = 128 << 10
_AREAS_END: Final = SIZE - REQUEST_ROOM
_PAGE: Final = 4096
_SLACK: Final = 1 << 20

# Words of the header.
_KIND: Final = 0  # see core.record_version
_AREA: Final = 1  # offset of the area in use
_NEXT_ID: Final = 2  # no id from here on was given out
_SERVING: Final = 3  # unique of the request in hand; with _EARLIER, that of the daemon before
_EARLIER: Final = 1 << 62
_FULL: Final = 4  # not zero: the record is incomplete
_LIVES: Final = 5  # takeovers that are complete
_LONGEST_WAIT: Final = 6
_BACKING: Final = 7  # the last backing id that the kernel has given
_CLOSING: Final = 8  # a backing id that is being given back
_PLAIN_OPENS: Final = 9
_FORGETTING: Final = 10  # unique << _FORGET_BITS | number of its lines that are begun
_FORGET_BITS: Final = 20
_FORGET_UNIQUE: Final = (1 << 41) - 1  # with the bits above less than 62 bits: quick in compiled code
_HAS_VIEW: Final = 11
_HAS_HANDLES: Final = 12
_OUTDATED: Final = 14  # CHANGING, or not zero: the union has other branches than the keeper knows
_LEDGER: Final = 16  # 8 words
_TIMES: Final = 24  # node id, or 0, atime and mtime of a directory whose times are about to be set back
_WAITS: Final = 32  # WAITS + 1 words
_RING_AT: Final = 63
_RING: Final = 64  # uniques of the last changes; with DONE, or 0 for one that failed
_RING_SIZE: Final = 64
_COUNTS: Final = 128  # requests by opcode
_COUNTS_SIZE: Final = 64
_RENAME: Final = 256  # unique; src, parent, new parent, dst, flags, lengths of the names; the names
_NAME_ROOM: Final = 256
_NOTIFYING: Final = 512  # ids of threads that wait in a notification of the kernel
_NOTIFYING_MOST: Final = 128
_NOTED: Final = 1024  # unique << _NOTED_BITS | number of the notes; the notes: node ids, or with OPENED an open
_NOTED_BITS: Final = 14
_NOTES_MOST: Final = 12288  # more than entries fit a listing of 1 MiB

WAITS: Final = 16  # times without a daemon that are recorded one by one

_CHANGING: Final = 2  # versions that cannot continue such a change treat the record as outdated

_IDS_AHEAD: Final = 1024  # ids are reserved by so many at once

DONE: Final = 1 << 62
_DONE_TOP: Final = DONE >> 56  # uniques are smaller: this is the highest byte of one with DONE
_TOP: Final = 7 if sys.byteorder == "little" else 0

OPENED: Final = 1 << 62  # in a note: an open of the node,
OPENED_TO_WRITE: Final = 1 << 61  # for writing
_WRITERS: Final = 32  # bits by which the number of writers is shifted in an entry of an open file


class NodeRecord:
    """The record of one mount. Written by the daemon's only thread that serves; read by a daemon that takes over."""

    def __init__(self, fd: int = -1) -> None:
        """Make an empty record; or open that in the memory `fd`, which is changed from the first `load` on. Raises:
        OSError; DamagedError for memory that has no record, or one of a version that is not read here."""
        is_new = fd < 0
        self.fd = os.memfd_create("unionfs-nodes", os.MFD_CLOEXEC) if is_new else fd
        if is_new:
            os.ftruncate(self.fd, SIZE)
        elif os.fstat(fd).st_size != SIZE:
            raise DamagedError(f"it has {os.fstat(fd).st_size} bytes, not {SIZE}")
        self._mm: Any = mmap.mmap(self.fd, SIZE)
        self._words: Any = memoryview(self._mm).cast(WORD)
        self.request: Any = memoryview(self._mm)[_AREAS_END:]
        """The buffer of requests, REQUEST_ROOM bytes."""
        self.counts: Any = self._words[_COUNTS : _COUNTS + _COUNTS_SIZE]
        """The number of requests by opcode."""
        self.ledger: Any = self._words[_LEDGER : _LEDGER + 8]
        """The counters of core.ledger."""
        self.waits: Any = self._words[_WAITS : _WAITS + WAITS + 1]
        """The last WAITS times without a daemon, by number, and the sum of all, in microseconds; see
        fuse.daemon_history."""
        self._start = self._end = _HEADER  # of the area in use
        self._used = 0  # bytes of entries that count
        self.compact_at = 0
        """When `end` is above this, NodeTable makes a new area."""
        self.opens: dict[int, OpenFile] = {}
        """Under passthrough the open files by node id; each has an entry."""
        self.put_again: Callable[[], None] | None = None  # puts all nodes again; set once, by NodeTable
        self._ring = 0
        self._listing_at = 0  # the last listing, if it notes lookups of the request in hand
        self._noted = 0  # notes for the request in hand
        self._noted_for = 0  # the request in hand, shifted as in _NOTED
        self._holds_times = False
        self._reserved = 0  # ids below this are marked as given out
        self._before = (0, 0)  # the area that is being replaced
        if is_new:
            self._words[_KIND], self._words[_AREA] = record_version.WRITTEN, _HEADER
        self._check_version()
        self._has_listings = self._words[_KIND] == record_version.WRITTEN  # immutable
        self.compact_at = self._start + 2 * self._used + _SLACK

    def _check_version(self) -> None:
        """Raises: DamagedError."""
        if why := record_version.why_not_readable(self._words[_KIND]):
            raise DamagedError(why)

    # -- nodes -----------------------------------------------------------------------------------------------------

    @property
    def end(self) -> int:
        """The offset behind the last entry."""
        return self._end

    @property
    def is_full(self) -> bool:
        """Whether something could not be recorded: no daemon can continue from this."""
        return bool(self._words[_FULL])

    @property
    def is_outdated(self) -> bool:
        """Whether the union has other branches than it began with: no daemon can continue from what the keeper has."""
        return self._words[_OUTDATED] not in (0, _CHANGING)

    def outdate(self, is_so: bool = True) -> None:
        """Record that the branches are about to change; not `is_so`: they did not, or the keeper knows the new ones."""
        self._words[_OUTDATED] = is_so

    @property
    def is_changing(self) -> bool:
        """Whether the branches are being changed as the keeper knows, or it knows them already."""
        return bool(self._words[_OUTDATED] == _CHANGING)

    def begin_changing(self) -> None:
        """Record that a change of the branches begins that the keeper knows: another daemon can continue."""
        self._words[_OUTDATED] = _CHANGING

    def put(self, flags: int, nodeid: int, nlookup: int, ino: int, names: list[tuple[int, bytes]]) -> int:
        """Add an entry. Returns its slot, never 0; 0 when there is no room. Behind the names may stand ids that the
        node had before, each as the parent of a name without a byte, and, with parent 0, what a directory shows."""
        entry = recorded_entry.encode(nodeid, nlookup, ino, names)
        at, whole = self._end, 8 + len(entry)
        if at + whole + 8 > _AREAS_END:
            self._words[_FULL] = 1
            return 0
        self._mm[at + 8 : at + whole] = entry
        self._words[at >> 3] = whole << 8 | flags | LIVE
        self._end = at + whole
        self._used += whole
        return at

    def put_listed(self, parent: Any, ids: list[int], inos: list[int], names: list[bytes], longest: int) -> int:
        """Add entries without flags for nodes of one directory that the request in hand has looked up once, and so note
        these lookups: all by one store. `longest`: bytes of the longest name. Returns the slot of the first entry, each
        other one has the slot of the one before plus recorded_listing.SHORT; 0 if there is no room, the request has
        a listing already, or the record has an older version: `put` and `note` each."""
        at, count, joined = self._end, len(names), b"\0".join(names)
        end = recorded_listing.end_of(at, count, len(joined))
        if end + 8 > _AREAS_END or not self._has_listings or self._listing_at:
            return 0
        recorded_listing.write(self._mm, at, self._noted_for, parent, ids, inos, joined, longest)
        return self._add_listing(end, count * recorded_listing.room_of(longest))

    def put_looked_up(self, parent: int, nodeid: int, ino: int, name: bytes) -> int:
        """As `put_listed` for one node, whose name has NAME_MAX bytes at most."""
        at, room = self._end, recorded_listing.room_of(len(name))
        end = recorded_listing.end_of(at, 1, len(name))
        if end + 8 > _AREAS_END or not self._has_listings or self._listing_at:
            return 0
        recorded_listing.write_one(self._mm, at, self._noted_for, parent, nodeid, ino, name, room)
        return self._add_listing(end, room)

    def _add_listing(self, end: int, used: int) -> int:
        """Let the listing that is written behind the last entry count, with `used` bytes. Returns its first slot."""
        at = self._end
        self._words[at >> 3] = (end - at) << 8 | LISTED
        self._listing_at, self._end = at, end
        self._used += used
        return at + HEAD

    def count(self, slot: int, nlookup: int) -> None:
        """Change the lookup count of an entry."""
        self._words[(slot >> 3) + 2] = nlookup

    def note(self, note: int) -> None:
        """Note a lookup of a node, by its id, or an open (OPENED), that the request in hand has just counted."""
        noted = self._noted
        if noted < _NOTES_MOST:
            words = self._words
            words[_NOTED + 1 + noted] = note
            self._noted = noted + 1
            words[_NOTED] = self._noted_for | noted + 1

    def note_all(self, ids: list[int]) -> None:
        """Note a lookup of each of these nodes."""
        noted = self._noted
        count = min(len(ids), _NOTES_MOST - noted)
        self._words[_NOTED + 1 + noted : _NOTED + 1 + noted + count] = array(WORD, ids[:count])
        self._noted = noted + count
        self._words[_NOTED] = self._noted_for | self._noted

    def unnote(self, note: int) -> None:
        """Take the last note back, if it is this one, since it is no longer counted in a moment. A lookup may be noted
        in a listing of one node."""
        noted = self._noted
        if noted and self._words[_NOTED + noted] == note:
            self._noted = noted - 1
            self._words[_NOTED] = self._noted_for | noted - 1
        elif self._listing_at and recorded_listing.ids_of(self._words, self._listing_at) == [note]:
            self._words[(self._listing_at >> 3) + 1] = self._listing_at = 0

    def drop_earlier_notes(self) -> None:
        """Drop what the daemon before has noted for the request in hand: it is about to be taken back, and a death from
        here on must not have it taken back again."""
        self._words[_NOTED] = self._noted_for | self._noted

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
            given: int = self._words[_NEXT_ID]  # another daemon may have reserved more ids
            if nodeid >= given:
                given = self._words[_NEXT_ID] = nodeid + _IDS_AHEAD
            self._reserved = given

    # -- open files ------------------------------------------------------------------------------------------------

    def put_open(self, opened: OpenFile) -> None:
        """Add an entry for an open file."""
        device, inode = opened.identity
        counts = opened.count | opened.writers << _WRITERS
        opened.slot = self.put(OPEN, opened.nodeid, counts, opened.backing_id, [(device, b""), (inode, b"")])
        self.compact_if_due()

    def count_opens(self, opened: OpenFile) -> None:
        """Record how often the file is open."""
        self.count(opened.slot, opened.count | opened.writers << _WRITERS)

    def backing_given(self, backing_id: int) -> None:
        """Record a backing id of the kernel. They are given in sequence, so a missing one is the next number."""
        self._words[_BACKING] = backing_id

    def backing_closing(self, backing_id: int) -> None:
        """Record that a backing id, which no entry refers to any more, is about to be given back."""
        self._words[_CLOSING] = backing_id

    def lost_backing_ids(self) -> list[int]:
        """Return the backing ids that the daemon before may have left without an entry."""
        found = [int(self._words[_BACKING]) + 1]
        closing = int(self._words[_CLOSING])
        if closing and all(closing != opened.backing_id for opened in self.opens.values()):
            found.append(closing)
        return found

    @property
    def plain_opens(self) -> int:
        """The number of opens without a backing file."""
        return int(self._words[_PLAIN_OPENS])

    def opened_plainly(self) -> None:
        """Count an open without a backing file."""
        self._words[_PLAIN_OPENS] += 1

    # -- areas -----------------------------------------------------------------------------------------------------

    def compact_if_due(self) -> None:
        """Put all entries that count into a new area if half of this one are entries of dropped nodes."""
        if self._end > self.compact_at:
            self.compact()

    def compact(self) -> None:
        """Put all entries that count into a new area."""
        if self.put_again is None:
            return
        noted = recorded_listing.ids_of(self._words, self._listing_at) if self._listing_at else []
        self._begin_area()
        self.put_again()
        for opened in self.opens.values():
            device, inode = opened.identity
            counts = opened.count | opened.writers << _WRITERS
            opened.slot = self.put(OPEN, opened.nodeid, counts, opened.backing_id, [(device, b""), (inode, b"")])
        self._end_area()
        self._listing_at = 0
        if noted:
            self.note_all(noted)  # not before: no lookup may be noted twice

    def _begin_area(self) -> None:
        self._before = (self._start, self._end)
        room = 2 * self._used + _SLACK
        start = _HEADER if _HEADER + room < self._start else _page_after(self._end + 8)
        self._start = self._end = start
        self._used = 0

    def _end_area(self) -> None:
        """Use the new area from now on, and give back the memory of the one before."""
        self._words[_AREA] = self._start
        start, end = self._before
        self._free(start, _page_after(end))
        self.compact_at = self._start + 2 * self._used + _SLACK

    def _free(self, start: int, end: int) -> None:
        if end > start:
            self._mm.madvise(mmap.MADV_REMOVE, start, end - start)

    # -- requests --------------------------------------------------------------------------------------------------

    def serve(self, unique: int) -> None:
        """Record the request in hand, which has counted nothing yet."""
        if self._holds_times:
            self.release_times()
        self._noted = self._listing_at = 0
        self._noted_for = (unique & NOTED_UNIQUE) << _NOTED_BITS
        self._words[_SERVING] = unique

    @property
    def lives(self) -> int:
        """The number of daemons that have begun to serve, the first one not counted."""
        return int(self._words[_LIVES])

    @property
    def longest_wait_us(self) -> int:
        """The longest time without a daemon, in microseconds."""
        return int(self._words[_LONGEST_WAIT])

    def begin_life(self, number: int, longest_wait_us: int) -> None:
        """Record that a daemon begins to serve, `number` deaths after the first one."""
        self._words[_LONGEST_WAIT], self._words[_LIVES] = longest_wait_us, number

    @property
    def serving(self) -> int:
        """The unique of the last request of this daemon; 0: it has had none."""
        unique = int(self._words[_SERVING])
        return 0 if unique & _EARLIER else unique

    def no_longer_served(self) -> None:
        """Record that another daemon begins: the request in hand, which `load` still needs, causes no death of it."""
        self._words[_SERVING] |= _EARLIER

    def begin(self, unique: int) -> None:
        """Record that a change begins which must not be done twice."""
        self._ring = (self._ring + 1) % _RING_SIZE
        self._words[_RING_AT] = self._ring
        self._words[_RING + self._ring] = unique

    def finish(self, is_done: bool) -> None:
        """Record that the change that began last is done, or has failed."""
        at = _RING + self._ring
        if is_done:
            self._mm[8 * at + _TOP] = _DONE_TOP
        else:
            self._words[at] = 0

    def begin_rename(
        self, src: int, parent: int, name: bytes, new_parent: int, new_name: bytes, dst: int, flags: int
    ) -> None:
        """Record that a rename begins; the arguments are those of Rename."""
        words, mm = self._words, self._mm
        at = (_RENAME + 8) * 8
        mm[at : at + len(name)] = name
        mm[at + _NAME_ROOM : at + _NAME_ROOM + len(new_name)] = new_name
        words[_RENAME + 1], words[_RENAME + 2], words[_RENAME + 3] = src, parent, new_parent
        words[_RENAME + 4], words[_RENAME + 5] = dst, flags
        words[_RENAME + 6] = len(name) | len(new_name) << 32
        words[_RENAME] = words[_RING + self._ring] & ~DONE or 1  # 1: not for a request

    def end_rename(self, is_done: bool) -> None:
        """Record that the rename is done and its names are recorded, or that it has failed."""
        words = self._words
        if is_done:
            for at in range(_RING, _RING + _RING_SIZE):
                if words[at] == words[_RENAME]:
                    words[at] |= DONE
        words[_RENAME] = 0

    def hold_times(self, nodeid: int, atime_ns: int, mtime_ns: int) -> None:
        """Record the times to which a directory, which is about to be changed, is set back within this request."""
        self._words[_TIMES + 1], self._words[_TIMES + 2] = max(atime_ns, 0), max(mtime_ns, 0)
        self._words[_TIMES], self._holds_times = nodeid, True

    def held_times(self) -> tuple[int, int, int]:
        """Return the arguments of `hold_times`; the node id is 0 if they are set back."""
        nodeid, atime_ns, mtime_ns = self._words[_TIMES : _TIMES + 3]
        return nodeid, atime_ns, mtime_ns

    def release_times(self) -> None:
        """Record that the times have been set back."""
        self._words[_TIMES], self._holds_times = 0, False

    def forgetting(self, unique: int, line: int) -> None:
        """Record that a line of a FORGET or BATCH_FORGET, counted from 0, is about to be done."""
        self._words[_FORGETTING] = (unique & _FORGET_UNIQUE) << _FORGET_BITS | line + 1

    def forgotten_lines(self, unique: int) -> int:
        """Return how many lines of such a message have been begun: none is done twice."""
        word = int(self._words[_FORGETTING])
        is_it = word >> _FORGET_BITS == unique & _FORGET_UNIQUE
        return word & ((1 << _FORGET_BITS) - 1) if is_it else 0

    @property
    def has_handles(self) -> bool:
        """Whether forgotten nodes are remembered for file handles."""
        return bool(self._words[_HAS_HANDLES])

    def handles_wanted(self) -> None:
        """Record that forgotten nodes are remembered for file handles from now on."""
        self._words[_HAS_HANDLES] = 1

    @property
    def has_view(self) -> bool:
        """Whether the view of the union was given."""
        return bool(self._words[_HAS_VIEW])

    def view_given(self) -> None:
        """Record that the view of the union is about to be given."""
        self._words[_HAS_VIEW] = 1

    # -- threads that notify the kernel ----------------------------------------------------------------------------

    def begin_notifying(self, thread: int) -> int:
        """Record that a thread is about to notify the kernel, which may wait for answers of the daemon. Returns a
        position for `end_notifying`, 0 if there is no room. From one thread at a time."""
        words = self._words
        for at in range(_NOTIFYING, _NOTIFYING + _NOTIFYING_MOST):
            if not words[at]:
                words[at] = thread
                return at
        return 0

    def end_notifying(self, position: int) -> None:
        """Record that the thread has notified the kernel."""
        if position:
            self._words[position] = 0

    def notifying(self) -> set[int]:
        """Return the ids of the threads that are notifying the kernel."""
        return set(self._words[_NOTIFYING : _NOTIFYING + _NOTIFYING_MOST]) - {0}

    # -- for a daemon that takes over ------------------------------------------------------------------------------

    def load(self) -> tuple[int, list[RecordedNode]]:
        """Read the record of the daemon before, and continue behind its last entry. Returns the first id that may be
        given out, and the nodes in the order of writing; of two entries with one id the later is right.

        Raises: DamagedError.
        """
        words, mm = self._words, self._mm
        self._check_version()
        if words[_FULL]:
            raise DamagedError("it was full")
        at: int = words[_AREA]
        if not _HEADER <= at < _AREAS_END or at % _PAGE:
            raise DamagedError(f"its area begins at {at}")
        self._start, self._used, last = at, 0, 0
        self.opens.clear()
        found: list[RecordedNode] = []
        while word := words[at >> 3]:
            size = word >> 8
            if size < FIXED or size % 8 or at + size + 8 > _AREAS_END:
                raise DamagedError(f"an entry at {at} has {size} bytes")
            if word & 0xFF == LISTED:
                last, listed = at, recorded_listing.read(mm, words, at, size)
                found += listed
                self._used += sum(words[there.slot >> 3] >> 8 for there in listed)
            elif word & LIVE:
                there = recorded_entry.read(mm, at, size, word & 0xFF)
                self._used += size
                if not word & OPEN:
                    found.append(there)
                elif len(there.names) == 2:
                    self._found_open(there)
                else:
                    raise DamagedError(f"an open file of node {there.nodeid} has {len(there.names)} numbers")
            at += size
        self._end = at
        if last:
            self._note_listing(last)
        behind = _page_after(at)
        mm[at:behind] = bytes(behind - at)  # of an entry that was not finished
        self._free(behind, _AREAS_END)
        self._free(_HEADER, self._start)
        self.compact_at = self._start + 2 * self._used + _SLACK
        for position in range(_NOTIFYING, _NOTIFYING + _NOTIFYING_MOST):
            words[position] = 0  # threads of the daemon before
        self._ring = words[_RING_AT] % _RING_SIZE
        self._reserved = words[_NEXT_ID]
        return self._reserved, found

    def _note_listing(self, at: int) -> None:
        """Note the lookups of the last listing, if the request in hand has made them: never twice."""
        words, counted_for = self._words, self._words[(at >> 3) + 1]
        if counted_for and counted_for == (words[_SERVING] & NOTED_UNIQUE) << _NOTED_BITS:
            words[(at >> 3) + 1] = 0
            noted = words[_NOTED] - counted_for
            self._noted, self._noted_for = noted if 0 <= noted <= _NOTES_MOST else 0, counted_for
            self.note_all(recorded_listing.ids_of(words, at))

    def _found_open(self, there: RecordedNode) -> None:
        (device, _), (inode, _) = there.names
        counts = there.nlookup
        opened = OpenFile(there.nodeid, there.ino, (device, inode), counts & ((1 << _WRITERS) - 1), counts >> _WRITERS)
        opened.slot = there.slot
        self.opens[there.nodeid] = opened

    def notes(self) -> Notes:
        """Return the notes of the daemon before. Nothing may have been noted since."""
        words = self._words
        word: int = words[_NOTED]
        count = min(word & ((1 << _NOTED_BITS) - 1), _NOTES_MOST)
        return Notes(word >> _NOTED_BITS, list(words[_NOTED + 1 : _NOTED + 1 + count]))

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


def _page_after(offset: int) -> int:
    return (offset + _PAGE - 1) & ~(_PAGE - 1)
