"""A listing in the record of nodes (core.node_record): the nodes of one directory that one request has looked up. Pure.

A READDIRPLUS looks up many nodes; a LOOKUP, MKNOD or MKDIR makes a listing of one.

word      bytes of the listing << 8 | LISTED
word      the request that has counted a lookup of each node, as the record notes it; 0: none that is still to be noted
word      node id of the directory
word      number of nodes | bytes of the names << 32
entries   four words for each node, SHORT bytes: the first ones of any entry of the record
names     with a NUL between them, filled to a word
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Final

from unionfs.core.recorded_entry import FIXED, LIVE, WORD, DamagedError
from unionfs.core.recorded_node import RecordedNode
from unionfs.markers import NAME_MAX

LISTED: Final = 130
"""In the first word of a listing: the bits of no entry."""
SHORT: Final = 32
HEAD: Final = 32
"""Bytes before the first entry."""

_ENTRIES: Final[list[list[Any]]] = [[(FIXED + 8 * words) << 8 | LIVE, 0, 1, 0] for words in range(NAME_MAX // 8 + 2)]
"""An entry that was looked up once, by the words of its name; objects, since compiled code would make others."""


def _behind_first_word(count: int) -> Struct:
    return Struct(f"{3 + 4 * count}{WORD}")


_ONE: Final = [Struct(f"7{WORD}{8 * words}s").pack_into for words in range(NAME_MAX // 8 + 2)]
_PREPARED: Final = 256
_PACK: Final = [_behind_first_word(count).pack_into for count in range(_PREPARED)]


def end_of(at: int, count: int, length: int) -> int:
    """Return the offset behind a listing at `at` with `count` nodes and `length` bytes of names."""
    return at + HEAD + count * SHORT + ((length + 7) & ~7)


def room_of(longest: int) -> int:
    """Return the bytes that an entry says it has: the most that one needs outside of the listing, whose names have
    `longest` bytes at most."""
    return FIXED + ((longest + 7) & ~7)


def write(
    mm: Any, at: int, counted_for: int, parent: Any, ids: list[int], inos: list[int], names: bytes, longest: int
) -> None:
    """Write all but the first word of a listing of nodes that were looked up once."""
    count, length = len(ids), len(names)
    entries = _ENTRIES[(longest + 7) >> 3] * count
    values: list[Any] = [mm, at + 8, counted_for, parent, count | length << 32, *entries]
    values[6::4] = ids
    values[8::4] = inos
    (_PACK[count] if count < _PREPARED else _behind_first_word(count).pack_into)(*values)
    names_at = at + HEAD + count * SHORT
    mm[names_at : names_at + length] = names


def write_one(mm: Any, at: int, counted_for: int, parent: int, nodeid: int, ino: int, name: bytes, room: int) -> None:
    """As `write`, for one node. `room`: as `room_of` its name, of NAME_MAX bytes at most."""
    length = len(name)
    _ONE[(room - FIXED) >> 3](mm, at + 8, counted_for, parent, 1 | length << 32, room << 8 | LIVE, nodeid, 1, ino, name)


def read(mm: Any, words: Any, at: int, size: int) -> list[RecordedNode]:
    """Return the nodes that count of the listing of `size` bytes at `at`. `words`: the same memory as words. Raises:
    DamagedError."""
    _, parent, lengths = words[(at >> 3) + 1 : (at + HEAD) >> 3]
    count, length = lengths & 0xFFFFFFFF, lengths >> 32
    names_at = at + HEAD + count * SHORT
    names = bytes(mm[names_at : names_at + length]).split(b"\0")
    if names_at + length > at + size or len(names) != count:
        raise DamagedError(f"a listing at {at} has not the names that it says")
    found = []
    for slot, name in zip(range(at + HEAD, names_at, SHORT), names, strict=True):
        word, nodeid, nlookup, ino = words[slot >> 3 : (slot + SHORT) >> 3]
        if word & LIVE:
            found.append(RecordedNode(slot, word & 0xFF, nodeid, nlookup, ino, [(parent, name)], [], b""))
    return found


def ids_of(words: Any, at: int) -> list[int]:
    """Return the ids of all nodes of a listing that is not damaged."""
    word, count = at >> 3, words[(at >> 3) + 3] & 0xFFFFFFFF
    return list(words[word + 5 : word + 5 + 4 * count : 4])
