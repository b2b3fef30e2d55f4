"""Remember the node ids of forgotten nodes by place, so that file handles stay valid after the kernel's FORGET.

open_by_handle_at(2) names an object by its node id alone, perhaps long after the kernel has forgotten it. So the places
of the last LIMIT forgotten nodes are remembered, and a node that is made again for the same object at the same place
gets its old id. Knows numbers and names only.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

LIMIT: Final = 1 << 14
"""Forgotten nodes remembered at most: a few megabytes."""


class HandleTable:
    """Maps the place of a forgotten node, (node id of the parent, name), to its node id, and back."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit  # immutable
        self._places: OrderedDict[int, tuple[int, bytes]] = OrderedDict()  # oldest first
        self._ids: dict[tuple[int, bytes], tuple[int, int]] = {}  # place -> (node id, ino)

    def __len__(self) -> int:
        return len(self._places)

    def add(self, nodeid: int, parent: int, name: bytes, ino: int) -> None:
        """Remember the place of a forgotten node whose object may still exist."""
        place = (parent, name)
        before = self._ids.get(place)
        if before is not None:
            self._places.pop(before[0], None)
        self._places[nodeid] = place
        self._ids[place] = (nodeid, ino)
        if len(self._places) > self._limit:
            _, oldest = self._places.popitem(last=False)
            self._ids.pop(oldest, None)

    def take(self, parent: int, name: bytes, ino: int) -> int:
        """Remove the record of a place, since a node for it is being made. Returns the id that the object `ino` had
        there, 0 if none is remembered."""
        known = self._ids.pop((parent, name), None)
        if known is None:
            return 0
        self._places.pop(known[0], None)
        return known[0] if known[1] == ino else 0

    def place(self, nodeid: int) -> tuple[int, bytes] | None:
        """Return the place of the forgotten node `nodeid`, or None."""
        return self._places.get(nodeid)
