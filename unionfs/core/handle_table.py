"""File handles outlive nodes: which number an object had that the kernel forgot, so that it is known by it again.

open_by_handle_at(2) names an object by its node id alone, perhaps long after the kernel has forgotten it. So the places
of forgotten nodes are remembered, the last some ten thousand of them, and a node that is made again for the same object
in the same place gets its old number back. Knows numbers and names only.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

LIMIT: Final = 1 << 14
"""How many forgotten nodes are remembered: a few megabytes."""


class Forgotten:
    """Which number an object had, by its place: (node id of the parent, name)."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit  # immutable
        self._places: OrderedDict[int, tuple[int, bytes]] = OrderedDict()  # oldest first
        self._ids: dict[tuple[int, bytes], tuple[int, int]] = {}  # place -> (node id, ino)

    def __len__(self) -> int:
        return len(self._places)

    def add(self, nodeid: int, parent: int, name: bytes, ino: int) -> None:
        """The node is gone; its object may be still there."""
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
        """The number that the object `ino` had at this place, 0 if it had none. What is known of the place is dropped:
        there is a node now."""
        known = self._ids.pop((parent, name), None)
        if known is None:
            return 0
        self._places.pop(known[0], None)
        return known[0] if known[1] == ino else 0

    def place(self, nodeid: int) -> tuple[int, bytes] | None:
        """Where the object with this number was."""
        return self._places.get(nodeid)
