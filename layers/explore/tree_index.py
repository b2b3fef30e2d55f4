"""The merged tree of a stack of layers at any of its levels, read from the files that `tree_build` wrote.

A *node* is a path. An *entry* is what one layer has at a path. A *level* is the number of a layer, and means the tree
that this layer and all layers below it make. A view has two levels, `base` and `level`, and shows the changes from one
to the other; base -1 is an empty tree. Nothing is loaded: every answer reads mapped columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Final

from layers.entry import DIRECTORY, OPAQUE, WHITEOUT, Entry
from layers.explore.columns import Columns, text
from layers.explore.layer_index import LayerIndex
from layers.explore.tree_build import IMPLIED

ROOT: Final = 0

ADDED: Final = "added"
CHANGED: Final = "changed"
METADATA: Final = "metadata"  # changed, with the same data
BELOW: Final = "below"  # a directory that is the same, with changes below it
REMOVED_HERE: Final = "removed"
SAME_HERE: Final = ""

_DIRECTORY: Final = DIRECTORY >> 12
_MARKS: Final = (WHITEOUT, OPAQUE)
_ROW: Final = 4  # numbers for each layer of a directory: brought bytes and files, change of visible bytes and files


class TreeIndex:
    """The tree of a stack. Close it after use; the caller closes the layers' indexes."""

    def __init__(self, columns: Columns, layers: Sequence[LayerIndex]) -> None:
        self.layers = layers  # bottom first
        self.about = columns.about
        self.top = len(layers) - 1  # the topmost level
        self._columns = columns
        self._names, self._name, self._parent = columns["names"], columns["name"], columns["parent"]
        self._first, self._count, self._entry = columns["first"], columns["count"], columns["entry"]
        self.layer_of, self.record_of, self.node_of = columns["layer"], columns["record"], columns["node"]
        self.since, self.by, self.how = columns["since"], columns["by"], columns["how"]
        self.stored, self._kind = columns["stored"], columns["kind"]
        self._total, self._total_layer, self._total_row = columns["total"], columns["total_layer"], columns["total_row"]
        self._wasted, self._effect = columns["wasted"], columns["effect"]
        self._duplicate, self._duplicates = columns["duplicate"], columns["duplicates"]

    def close(self) -> None:
        for name in [name for name, value in vars(self).items() if isinstance(value, memoryview)]:
            delattr(self, name)
        self._columns.close()

    def __len__(self) -> int:
        return len(self._parent)

    # -- names --

    def name(self, node: int) -> bytes:
        return text(self._names, self._name, node)

    def path(self, node: int) -> bytes:
        """The path from the root, joined by slashes."""
        names = []
        while node:
            names.append(self.name(node))
            node = self._parent[node]
        return b"/".join(reversed(names))

    def parent(self, node: int) -> int:
        """The node of the directory that contains a node; -1 for the root."""
        found: int = self._parent[node]
        return found

    def find(self, path: bytes) -> int:
        """The node of a path at any level; -1 if no layer has it."""
        node = ROOT
        for name in path.split(b"/") if path else ():
            low, high = self._first[node], self._first[node] + self._count[node]
            while low < high:
                middle = (low + high) // 2
                if self.name(middle) < name:
                    low = middle + 1
                else:
                    high = middle
            if low == self._first[node] + self._count[node] or self.name(low) != name:
                return -1
            node = low
        return node

    def named(self, wanted: bytes) -> Iterator[int]:
        """The nodes whose names contain `wanted`, those nearest to the root first."""
        at = 0
        while wanted and (at := self._columns.find("names", wanted, at)) >= 0:
            low, high = 0, len(self)
            while high - low > 1:  # the node whose name begins at `at` or before it
                middle = (low + high) // 2
                if self._name[middle] <= at:
                    low = middle
                else:
                    high = middle
            end = self._name[low + 1]
            if at + len(wanted) <= end:
                yield low
                at = end
            else:
                at += 1

    # -- entries --

    def entries(self, node: int) -> range:
        """The entries and marks of all layers at a path, bottom first."""
        return range(self._entry[node], self._entry[node + 1])

    def is_mark(self, entry: int) -> bool:
        return self._kind[entry] in _MARKS

    def shown(self, node: int, level: int) -> int:
        """The visible entry of a path at a level; -1 if there is none."""
        for entry in reversed(self.entries(node)):
            if self.since[entry] <= level < self.by[entry] and self._kind[entry] not in _MARKS:
                return entry
        return -1

    def is_directory(self, entry: int) -> bool:
        return bool(self._kind[entry] == _DIRECTORY)

    def is_implied(self, entry: int) -> bool:
        """Whether an entry is a directory for which no layer has an entry, although layers have entries below it."""
        return bool(self.record_of[entry] == IMPLIED)

    def layer_entry(self, entry: int) -> Entry:
        """The entry in its layer."""
        if self.is_implied(entry):
            return Entry((), DIRECTORY, 0o755)
        return self.layers[self.layer_of[entry]].entry(self.record_of[entry])

    def bytes_of(self, entry: int) -> int:
        """The size of a file; more than its stored bytes if it has holes or is a hard link."""
        if self.is_directory(entry) or self.is_mark(entry):
            return 0
        size: int = self.layers[self.layer_of[entry]].size[self.record_of[entry]]
        return size

    # -- directories --

    def all_children(self, node: int) -> range:
        """The nodes in a directory, sorted by name, including those that are visible at no level."""
        first = self._first[node]
        return range(first, first + self._count[node])

    def changing_layers(self, node: int) -> list[int]:
        """The layers that bring or hide anything at or below a directory."""
        return list(self._total_layer[self._total[node] : self._total[node + 1]])

    def children(self, node: int, base: int, level: int) -> list[int]:
        """The nodes in a directory that are visible at one of two levels, sorted by name."""
        return [
            child
            for child in self.all_children(node)
            if self.shown(child, level) >= 0 or (base >= 0 and self.shown(child, base) >= 0)
        ]

    def size(self, node: int, level: int) -> tuple[int, int]:
        """The visible bytes at and below a path, and the number of visible files (all types but directories)."""
        entry = self.shown(node, level)
        if entry < 0:
            return 0, 0
        if not self.is_directory(entry):
            return self.stored[entry], 1
        size = files = 0
        for at in range(self._total[node], self._total[node + 1]):
            if self._total_layer[at] <= level:
                size += self._total_row[at * _ROW + 2]
                files += self._total_row[at * _ROW + 3]
        return size, files

    def brought(self, node: int, layer: int) -> tuple[int, int]:
        """The bytes and files of one layer at and below a path, visible or not."""
        for at in range(self._total[node], self._total[node + 1]):
            if self._total_layer[at] == layer:
                return self._total_row[at * _ROW], self._total_row[at * _ROW + 1]
        files = [
            entry
            for entry in self.entries(node)
            if self.layer_of[entry] == layer == self.since[entry]
            and not self.is_mark(entry)
            and not self.is_directory(entry)
        ]
        return sum(self.stored[entry] for entry in files), len(files)

    def change(self, node: int, base: int, level: int) -> str:
        """The change of a path from `base` to `level`: ADDED, CHANGED, METADATA, BELOW, REMOVED_HERE, SAME_HERE."""
        old, new = self.shown(node, base) if base >= 0 else -1, self.shown(node, level)
        if new < 0:
            return REMOVED_HERE if old >= 0 else SAME_HERE
        if old < 0:
            return ADDED
        if old != new and not self._is_alike(old, new):
            if self.is_directory(old) and self.is_directory(new):
                return METADATA
            same_type = self._kind[old] == self._kind[new]
            return METADATA if same_type and self._has_same_data(old, new) else CHANGED
        if self.is_directory(new):
            for at in range(self._total[node], self._total[node + 1]):
                if base < self._total_layer[at] <= level:
                    return BELOW
        return SAME_HERE

    def _is_alike(self, old: int, new: int) -> bool:
        """Whether two entries are the same record, or directories without a difference."""
        if (self.layer_of[old], self.record_of[old]) == (self.layer_of[new], self.record_of[new]):
            return True
        if not (self.is_directory(old) and self.is_directory(new)):
            return False
        before, after = self.layer_entry(old), self.layer_entry(new)
        return self.is_implied(new) or before._replace(path=(), mtime_ns=0) == after._replace(path=(), mtime_ns=0)

    def _has_same_data(self, old: int, new: int) -> bool:
        before, after = (self.layers[self.layer_of[entry]].content(self.record_of[entry]) for entry in (old, new))
        if before or after:
            return before == after
        first, second = self.layer_entry(old), self.layer_entry(new)
        return (first.size, first.target, first.device, first.link) == (
            second.size, second.target, second.device, second.link,
        )  # fmt: skip

    def effects(self, layer: int) -> tuple[int, int, int]:
        """The number of files (all entries except directories) that a layer adds, changes and removes."""
        added, changed, removed = self._effect[layer * 3 : layer * 3 + 3]
        return added, changed, removed

    # -- wasted bytes --

    @cached_property
    def hidden_in(self) -> list[int]:
        """For each layer, its bytes that are hidden at the topmost level."""
        found = [0] * len(self.layers)
        for entry in self._wasted:
            found[self.layer_of[entry]] += self.stored[entry]
        return found

    def hidden(self) -> Sequence[int]:
        """The hidden entries with bytes, the largest first."""
        return self._wasted

    def duplicates(self) -> Iterator[list[int]]:
        """Groups of entries with the same data that are visible at the topmost level, those that waste most first."""
        for at in range(len(self._duplicates) - 1):
            yield list(self._duplicate[self._duplicates[at] : self._duplicates[at + 1]])
