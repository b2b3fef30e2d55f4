"""Look names up in the union of the lowers, or of some of them, by the rule of `unionfs.trees.walk`."""

from __future__ import annotations

from typing import NamedTuple

from unionfs import markers
from unionfs.changes.objects import Branches, BranchPath, Object
from unionfs.trees import walk

Stack = tuple[BranchPath, ...]
"""The branch directories that a merged directory is made of, top first. Empty: nothing from any lower."""


class Found(NamedTuple):
    """The result of a lookup: the visible object and, for a directory, the branch directories to read."""

    object: Object
    stack: Stack


def lookup(branches: Branches, stack: Stack, name: bytes) -> Found | None:
    """Look up `name` in the merged directory `stack`; None if it is missing or hidden. Raises: OSError."""
    found = walk.lookup(branches, stack, name)
    return Found(found.object._replace(data=found.data), found.stack) if found is not None else None


def names(branches: Branches, stack: Stack) -> set[bytes]:
    """Every name that may be visible in the merged directory; a whiteout may still hide some of them."""
    found: set[bytes] = set()
    for place in stack:
        found.update(name for name in branches.names(place) if not markers.is_reserved(name))
    return found
