"""A rename in progress, as the record of nodes describes it."""

from __future__ import annotations


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
