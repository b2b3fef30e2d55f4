"""Inode numbers after a change of the branches, so that another daemon can continue.

A known object keeps the number that it has shown, but a lookup would find another one: of the frozen copy, or of the
topmost directory in the new stack. The next daemon finds objects by lookups, and accepts those that have the recorded
number. So the numbers that lookups find are shown as the former ones (`Inodes.kept`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from time import monotonic

from unionfs.core import lookup
from unionfs.core.branches import SLICE_S
from unionfs.core.node import DirNode, FileNode, Node
from unionfs.core.union import Union


class KeptNumbers:
    """Finds these numbers. On the union's thread, after the change."""

    def __init__(self, union: Union) -> None:
        self._tree = union._tree  # immutable
        self._found: dict[int, int] = {}
        self._steps = self._run()

    def work(self) -> bool:
        """Go on for some milliseconds. Returns whether more is to be done."""
        inodes = self._tree.inodes
        before, inodes.kept = inodes.kept, {}
        try:
            until = monotonic() + SLICE_S
            if any(monotonic() > until for _ in self._steps):
                return True
        finally:
            inodes.kept = before
        inodes.kept = self._found
        return False

    def _run(self) -> Iterator[None]:
        for node in self._tree.nodes.all():
            with suppress(OSError):
                number = self._number(node)
                if number not in (0, node.ino):
                    self._found[number] = node.ino
            yield

    def _number(self, node: Node) -> int:
        """Return the number that a lookup would find; 0: no name leads to the node, or it is the root."""
        tree, parent = self._tree, node.parent
        if isinstance(node, FileNode):
            if node.is_dead:
                return 0
            st = node.home.stat_entry(node.leaf)
            key = node.links.key if node.links is not None else None
            return (
                lookup.upper_number(tree, node.home, node.leaf, st, key)
                if node.is_up
                else tree.inodes.shown(node.home.branch.fs_index, st.st_ino)
            )
        if node.dead or not isinstance(parent, DirNode):
            return 0
        if node.upper is not None and parent.upper is not None:
            return lookup.upper_number(tree, parent.upper, node.name, parent.upper.stat_entry(node.name), None)
        if node.low is None:
            return 0
        return tree.inodes.shown(node.low.stack[0].branch.fs_index, node.low.stat().st_ino)
