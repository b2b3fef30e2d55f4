"""A node, an open file, and what a request has counted, in the record of nodes (core.node_record). Pure."""

from __future__ import annotations

from typing import Final

NOTED_UNIQUE: Final = (1 << 47) - 1
"""The bits of a request's unique that stand with its notes: quick in compiled code."""


class RecordedNode:
    """The entry of a node in the record."""

    __slots__ = ("slot", "flags", "nodeid", "nlookup", "ino", "names", "former", "shown")

    def __init__(
        self,
        slot: int,
        flags: int,
        nodeid: int,
        nlookup: int,
        ino: int,
        names: list[tuple[int, bytes]],
        former: list[int],
        shown: bytes,
    ) -> None:
        self.slot = slot  # changed by NodeTable.put_recorded
        self.flags = flags  # immutable
        self.nodeid = nodeid  # immutable
        self.nlookup = nlookup  # changed by NodeTable
        self.ino = ino  # immutable
        self.names = names  # (node id of the parent, name), the primary one first; changed by takeover only
        self.former = former  # ids that the node had before, and that lead to it, too; immutable
        self.shown = shown  # of `shown_as`; immutable


class OpenFile:
    """An open node, whose file the kernel reads and writes by itself, or by messages."""

    __slots__ = ("nodeid", "backing_id", "identity", "count", "writers", "slot")

    def __init__(
        self, nodeid: int, backing_id: int, identity: tuple[int, int], count: int = 0, writers: int = 0
    ) -> None:
        self.nodeid = nodeid  # immutable
        self.backing_id = backing_id  # immutable; 0: reads and writes are messages
        self.identity = identity  # immutable: (st_dev, st_ino) of the backing file
        self.count = count  # of opens
        self.writers = writers  # of opens for writing
        self.slot = 0  # of its entry in the record; belongs to NodeRecord


class Notes:
    """The lookups and opens that a request has counted, whose answer the kernel may not have got."""

    __slots__ = ("_unique", "notes")

    def __init__(self, unique: int = 0, notes: list[int] | None = None) -> None:
        self._unique = unique  # immutable
        self.notes = notes or []  # node ids of lookups and, with OPENED, of opens

    def are_for(self, unique: int) -> bool:
        """Whether there are notes of this request."""
        return bool(self.notes) and unique & NOTED_UNIQUE == self._unique
