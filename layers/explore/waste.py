"""Wasted bytes of an image: files that are hidden, or visible twice, with the cause of each.

The cause is found from the two entries: the hidden one and the one that hides it. All sizes are bytes as stored
in the layers, without compression, as `layers inspect` counts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import islice
from typing import Final, NamedTuple

from layers.entry import OPAQUE, WHITEOUT
from layers.explore.tree_build import REMOVED, SAME
from layers.explore.tree_index import TreeIndex

REPLACED: Final = "replaced"
REMOVED_LATER: Final = "removed later"
METADATA: Final = "chown or chmod alone"
AGAIN: Final = "stored again"
TWICE: Final = "same content twice"
CAUSES: Final = {
    REPLACED: "A higher layer has other data at the path.",
    REMOVED_LATER: "A higher layer removes the path.",
    METADATA: "A higher layer has the same data with another owner, mode or attributes.",
    AGAIN: "A higher layer has the same data, owner and mode; at most the time is another.",
    TWICE: "Another file that shows has the same data.",
}


class Waste(NamedTuple):
    """A file whose bytes are wasted."""

    size: int
    cause: str  # one of CAUSES
    entry: int
    by: int  # the layer that hides it; with the cause TWICE the layer of the other file
    other: int  # the entry of the same path that replaces it, or the other file with the same data; -1: none


class Sum(NamedTuple):
    """The bytes and files of one cause."""

    size: int
    files: int


def hidden(tree: TreeIndex) -> Iterator[Waste]:
    """Yield the hidden files, the largest first."""
    for entry in tree.hidden():
        other = replacement(tree, entry)
        yield Waste(tree.stored[entry], _cause(tree, entry, other), entry, tree.by[entry], other)


def twice(tree: TreeIndex) -> Iterator[Waste]:
    """Yield the visible files with the same data as another visible file, the largest first."""
    found = [
        Waste(tree.stored[entry], TWICE, entry, tree.layer_of[group[0]], group[0])
        for group in tree.duplicates()
        for entry in group[1:]
    ]
    yield from sorted(found, key=lambda waste: (-waste.size, waste.entry))


def largest(tree: TreeIndex, most: int, cause: str = "") -> list[Waste]:
    """The `most` largest, of one cause or of all."""
    found = merge(hidden(tree), twice(tree), key=lambda waste: -waste.size)
    return list(islice((waste for waste in found if not cause or waste.cause == cause), most))


def sums(tree: TreeIndex) -> dict[str, Sum]:
    """The sum of each cause, in the order of CAUSES. Visits every wasted file."""
    found = dict.fromkeys(CAUSES, Sum(0, 0))
    for source in (hidden(tree), twice(tree)):
        for waste in source:
            size, files = found[waste.cause]
            found[waste.cause] = Sum(size + waste.size, files + 1)
    return found


def replacement(tree: TreeIndex, entry: int) -> int:
    """Return the entry of the same path that hides `entry`; -1 if there is none or it is a directory."""
    for other in tree.entries(tree.node_of[entry]):
        if other > entry and tree.since[other] == tree.by[entry] and not tree.is_mark(other):
            return -1 if tree.is_directory(other) else other
    return -1


def differences(tree: TreeIndex, old: int, new: int) -> tuple[str, ...]:
    """List in which of mode, owner and attributes two entries differ."""
    before, after = tree.layer_entry(old), tree.layer_entry(new)
    pairs = {
        "mode": (before.mode, after.mode),
        "owner": ((before.uid, before.gid), (after.uid, after.gid)),
        "attributes": (before.xattrs, after.xattrs),
    }
    return tuple(name for name, (first, second) in pairs.items() if first != second)


def _cause(tree: TreeIndex, entry: int, other: int) -> str:
    how = tree.how[entry]
    if how == SAME and other >= 0:
        return METADATA if differences(tree, entry, other) else AGAIN
    return REMOVED_LATER if how == REMOVED else REPLACED


def mark_that_hides(tree: TreeIndex, entry: int) -> int:
    """Return the whiteout or opaque mark, on its path or above, that hides an entry; -1 if there is none."""
    node = start = tree.node_of[entry]
    while node >= 0:
        for mark in tree.entries(node):
            if tree.is_mark(mark) and tree.layer_of[mark] == tree.by[entry]:
                kind = tree.layer_entry(mark).kind
                if kind == WHITEOUT or (kind == OPAQUE and node != start):
                    return mark
        node = tree.parent(node)
    return -1
