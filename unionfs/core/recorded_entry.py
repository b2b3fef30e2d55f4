"""One entry of the record of nodes (core.node_record): a node with its names, or an open file. Pure.

word      bytes of the entry << 8 | flags, with LIVE while it counts
words     node id, lookups, inode number, node id of the directory, bytes of the name | number of further names << 32
name      filled to a word
then, for each further name: node id of the directory, bytes of the name; the name, filled to a word
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Final

from unionfs.core.recorded_node import RecordedNode

LIVE: Final = 64
"""In every entry that counts."""
OPEN: Final = 128
"""An open file under passthrough: the fields have other meanings, see NodeRecord.put_open."""

WORD: Final = "L" if Struct("L").size == 8 else "Q"
"""The code of a word for `struct`. CPython converts a long more quickly than a long long."""
FIXED: Final = 48
"""Bytes of an entry without its names."""

_FIELDS: Final = Struct(f"5{WORD}")
_NAME: Final = Struct(f"2{WORD}")


class DamagedError(Exception):
    """The record cannot be read. `str()` says why."""


def encode(nodeid: int, nlookup: int, ino: int, names: list[tuple[int, bytes]]) -> bytes:
    """Return all but the first word of an entry."""
    parent, first = names[0]
    fields = _FIELDS.pack(nodeid, nlookup, ino, parent, len(first) | len(names) - 1 << 32)
    further = [_NAME.pack(above, len(name)) + _filled(name) for above, name in names[1:]]
    return b"".join((fields, _filled(first), *further))


def _filled(name: bytes) -> bytes:
    return name + bytes(-len(name) & 7)


def read(mm: Any, at: int, size: int, flags: int) -> RecordedNode:
    """Return what the entry of `size` bytes says. Raises: DamagedError."""
    nodeid, nlookup, ino, parent, lengths = _FIELDS.unpack_from(mm, at + 8)
    length, more = lengths & 0xFFFFFFFF, lengths >> 32
    position = at + FIXED
    names: list[tuple[int, bytes]] = []
    former = []
    shown = b""
    while True:
        if position + length > at + size:
            raise DamagedError(f"the name of node {nodeid} is longer than its entry")
        name = bytes(mm[position : position + length])
        if not names or flags & OPEN or (name and parent):
            names.append((parent, name))
        elif name:
            shown = name
        else:
            former.append(parent)  # see NodeRecord.put
        position += (length + 7) & ~7
        if not more:
            return RecordedNode(at, flags, nodeid, nlookup, ino, names, former, shown)
        if position + _NAME.size > at + size:
            raise DamagedError(f"node {nodeid} has fewer names than its entry says")
        parent, length = _NAME.unpack_from(mm, position)
        position += _NAME.size
        more -= 1
