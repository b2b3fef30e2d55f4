"""The versions of one path: the entry of each layer, which of them is visible, and why the others are hidden."""

from __future__ import annotations

import difflib
from typing import Final, NamedTuple

from layers.explore import waste
from layers.explore.tree_build import KEPT, MOVED, NEVER, REMOVED, SAME
from layers.explore.tree_index import TreeIndex

SHOWS: Final = "shows"
MERGED: Final = "merged"  # a directory below one of a higher layer
HIDDEN: Final = "hidden"
MARK: Final = "mark"  # no entry, but a whiteout or opaque mark

DIFF_MAX: Final = 64 << 10
"""Bytes of a file that is compared as text; larger files are compared by size and digest."""
LINES_MAX: Final = 4000
"""Lines of such a file: the time for finding the differences grows with the square of their number."""


class Version(NamedTuple):
    """The entry of one layer at a path."""

    layer: int  # whose entry it is
    entry: int
    state: str  # SHOWS, MERGED, HIDDEN or MARK
    since: int  # the layer from which on it is at this path; another one if a redirect has moved it
    by: int  # the layer that hides it; NEVER: none
    why: str  # why it is hidden: a sentence without its subject


def versions(tree: TreeIndex, node: int, level: int) -> list[Version]:
    """List the entries of the layers up to `level` at a path, the topmost first."""
    shown = tree.shown(node, level)
    found = []
    for entry in reversed(tree.entries(node)):
        since, by = tree.since[entry], tree.by[entry]
        if since > level:
            continue
        if tree.is_mark(entry):
            state, why = MARK, ""
        elif by <= level:
            state, why = HIDDEN, _why(tree, entry)
        else:
            state, why = SHOWS if entry == shown else MERGED, ""
        found.append(Version(tree.layer_of[entry], entry, state, since, by if by <= level else NEVER, why))
    return found


def _why(tree: TreeIndex, entry: int) -> str:
    how, by = tree.how[entry], tree.by[entry]
    if how == MOVED:
        return f"layer {by} shows it at another path (redirect)"
    if how == KEPT:
        return f"layer {by} hides this name; the data shows under another name"
    if how == REMOVED:
        mark = waste.mark_that_hides(tree, entry)
        if mark < 0:
            return f"layer {by} removes it"
        extra = tree.layers[tree.layer_of[mark]].extra(tree.record_of[mark])
        return f"layer {by} removes it by {words_of_mark(tree, mark)} ({extra.get('dialect', '')})"
    other = waste.replacement(tree, entry)
    if other < 0:
        return f"layer {by} has something of another type there or above"
    changed = waste.differences(tree, entry, other)
    if how == SAME:
        return f"layer {by} has the same data with another {' and '.join(changed)}" if changed else (
            f"layer {by} has the same file again"
        )  # fmt: skip
    return f"layer {by} replaces it"


def words_of_mark(tree: TreeIndex, mark: int) -> str:
    """Describe a mark: its kind and the path that it hides. The text is not printable yet."""
    kind = tree.layer_entry(mark).kind
    path = "/" + tree.path(tree.node_of[mark]).decode("utf-8", "surrogateescape")
    return f"a whiteout of {path}" if kind == -2 else f"the opaque directory {path}"


def text_difference(old: bytes, new: bytes, *, context: int = 2) -> list[str] | None:
    """Return the differences of two texts as `diff -u` prints them, without header lines; None if one is no text."""
    texts = []
    for data in (old, new):
        if b"\0" in data or len(data) > DIFF_MAX:
            return None
        try:
            texts.append(data.decode().splitlines())
        except UnicodeDecodeError:
            return None
        if len(texts[-1]) > LINES_MAX:
            return None
    return list(difflib.unified_diff(texts[0], texts[1], n=context, lineterm=""))[2:]
