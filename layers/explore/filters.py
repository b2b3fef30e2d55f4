"""Filters: which paths of a tree are shown."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from typing import Final

from layers.explore.data import content_type
from layers.explore.tree_index import ADDED, BELOW, CHANGED, METADATA, REMOVED_HERE, SAME_HERE, TreeIndex

CHANGES: Final = (ADDED, CHANGED, METADATA, REMOVED_HERE, SAME_HERE)
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID


@dataclass(frozen=True, slots=True)
class Filter:
    """The conditions for a path to be shown; all must hold. The directories above it are shown, too."""

    changes: frozenset[str] = field(default_factory=lambda: frozenset(CHANGES))  # of ADDED ... SAME_HERE
    layer: int | None = None  # the layer that brings the visible entry
    min_size: int = 0  # bytes
    owner: int | None = None  # uid
    set_id: bool = False  # set-user-id or set-group-id
    world_writable: bool = False  # and neither a symlink nor sticky
    name: bytes = b""  # a part of the name
    type: str = ""  # one of data.TYPES

    @property
    def is_open(self) -> bool:
        """Whether every path meets the filter."""
        return self == _OPEN


_OPEN: Final = Filter()


def matching(tree: TreeIndex, wanted: Filter, base: int, level: int) -> set[int]:
    """Return the nodes that meet a filter in the view from `base` to `level`, and the directories above them."""
    found: set[int] = set()
    since, by, node_of = tree.since, tree.by, tree.node_of
    with_removed = REMOVED_HERE in wanted.changes
    for entry in range(len(node_of)):
        shows = since[entry] <= level < by[entry]
        if not shows and not (with_removed and since[entry] <= base < by[entry]):
            continue
        node = node_of[entry]
        if node not in found and not tree.is_mark(entry) and _lets_through(tree, wanted, node, entry, base, level):
            while node >= 0 and node not in found:
                found.add(node)
                node = tree.parent(node)
    return found


def _lets_through(tree: TreeIndex, wanted: Filter, node: int, entry: int, base: int, level: int) -> bool:
    has_record = not tree.is_implied(entry)
    layer = tree.layers[tree.layer_of[entry]] if has_record else None
    record = tree.record_of[entry]
    if wanted.layer is not None and (tree.layer_of[entry] != wanted.layer or not has_record):
        return False
    if wanted.owner is not None and (layer.uid[record] if layer is not None else 0) != wanted.owner:
        return False
    if wanted.set_id or wanted.world_writable:
        if layer is None:
            return False
        mode = layer.mode[record]
        if wanted.set_id and (not mode & _SET_ID or tree.is_directory(entry)):
            return False
        is_open = mode & stat.S_IWOTH and not mode & stat.S_ISVTX and layer.kind_of(record) != stat.S_IFLNK
        if wanted.world_writable and not is_open:
            return False
    if wanted.min_size and (tree.is_directory(entry) or tree.bytes_of(entry) < wanted.min_size):
        return False
    if wanted.name and wanted.name not in tree.name(node):
        return False
    if wanted.type and type_of(tree, entry) != wanted.type:
        return False
    if wanted.changes != _OPEN.changes:
        change = tree.change(node, base, level)
        return (SAME_HERE if change == BELOW else change) in wanted.changes
    return True


def type_of(tree: TreeIndex, entry: int) -> str:
    """Return the content type of a regular file, one of data.TYPES; empty for anything else."""
    if tree.is_directory(entry) or tree.is_mark(entry):
        return ""
    layer, record = tree.layers[tree.layer_of[entry]], tree.record_of[entry]
    if layer.kind_of(record) != stat.S_IFREG:
        return ""
    return content_type(layer.head(record), layer.size[record])
