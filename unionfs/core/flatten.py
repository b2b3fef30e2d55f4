"""Flatten: bring the whole content of a merged directory to the upper and cut it off from the lowers.

Used by rename when the path in a redirect mark would be too long for an extended attribute.
"""

from __future__ import annotations

from unionfs.core import copyup, lookup, marks, placement
from unionfs.core.node import DirNode
from unionfs.core.union_state import UnionState


def flatten(tree: UnionState, directory: DirNode) -> None:
    """Copy everything below `directory` up, then mark each directory opaque. Raises OSError with the view unchanged."""
    pending, found = [directory], []
    while pending:
        here = pending.pop()
        here.nlookup += 1  # it must not be forgotten before it is cut off
        found.append(here)
        placement.ensure_dir(tree, here)
        for name, _, _ in tree.visible(here):
            node = lookup.resolve(tree, here, name).node
            if isinstance(node, DirNode):
                pending.append(node)
                continue
            copyup.give_name(tree, node, here, name)
            tree.drop_unused(node)
    _cut_off(tree, found)


def _cut_off(tree: UnionState, found: list[DirNode]) -> None:
    for here in reversed(found):
        assert here.upper is not None
        if here.low is not None:
            before = here.upper.stat()
            tree.hold_times(here, before)
            marks.set_opaque(marks.proc_path(here.upper.fd()), here.upper.fd(), tree.options.whiteout)
            tree.restore_times(here.upper.fd(), before)
            here.low = None
            here.subdirs = -1
        here.nlookup -= 1
        tree.drop_unused(here)
