"""A node in the record of nodes (core.node_record). Pure."""

from __future__ import annotations


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
        self.slot = slot  # changed by NodeTable.compact
        self.flags = flags  # immutable
        self.nodeid = nodeid  # immutable
        self.nlookup = nlookup  # changed by NodeTable
        self.ino = ino  # immutable
        self.names = names  # (node id of the parent, name), the primary one first; changed by takeover only
        self.former = former  # ids that the node had before, and that lead to it, too; immutable
        self.shown = shown  # of `shown_as`; immutable
