"""The state of a shown tree: its level, its open directories, its order and its filter.

Knows the tree. Does not know terminals, keys and widgets. A *row* is a line of the tree pane.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from layers.explore.filters import Filter, matching
from layers.explore.tree_index import REMOVED_HERE, ROOT, SAME_HERE, TreeIndex

BY_SIZE: Final = "size"
BY_NAME: Final = "name"


class Row(NamedTuple):
    """One line of the tree."""

    node: int
    depth: int  # 0: in the root directory
    entry: int  # the visible entry, or of a removed path the entry that was visible before
    change: str  # of tree_index
    size: int  # visible bytes at and below it; of a removed path those that were visible before
    files: int
    is_directory: bool
    is_open: bool


class Explorer:
    """The state of one tree pane. The rows are numbered from 0."""

    def __init__(self, tree: TreeIndex) -> None:
        self.tree = tree  # immutable
        self.level = tree.top  # the tree as this layer and all beneath show it
        self.whole = True  # changes since the bottom layer; False: changes of the layer `level` alone
        self.order = BY_SIZE
        self.filter = Filter()
        self._let_through: set[int] | None = None  # by the filter; None: everything
        self._open: set[int] = set()
        self._nodes: list[int] = []
        self._depths: list[int] = []
        self._rebuild()

    @property
    def base(self) -> int:
        """The level that the shown tree is compared with; -1 for an empty tree, so that everything is added."""
        return _base(self.level, whole=self.whole)

    def __len__(self) -> int:
        return len(self._nodes)

    def node(self, row: int) -> int:
        return self._nodes[row]

    def row(self, number: int) -> Row:
        node, level = self._nodes[number], self.level
        change = self.tree.change(node, self.base, level)
        if change == REMOVED_HERE:
            level = self.base
        entry = self.tree.shown(node, level)
        size, files = self.tree.size(node, level)
        is_directory = self.tree.is_directory(entry)
        if self.base < 0:  # everything was added
            change = SAME_HERE
        return Row(node, self._depths[number], entry, change, size, files, is_directory, node in self._open)

    # -- what is shown --

    def show(
        self,
        level: int | None = None,
        *,
        whole: bool | None = None,
        wanted: Filter | None = None,
        let_through: set[int] | None = None,
    ) -> None:
        """Show another level, the changes from another base, or another filter. Open directories stay open.

        `let_through`: the result of `filtered` for the same arguments; None: it is computed here.
        """
        found = self.filtered(level, whole=whole, wanted=wanted) if let_through is None else let_through
        self.level, self.whole, self.filter = self._would(level, whole, wanted)
        self._let_through = found
        self._rebuild()

    def filtered(
        self, level: int | None = None, *, whole: bool | None = None, wanted: Filter | None = None
    ) -> set[int] | None:
        """Return the nodes that `show` would show; None for all. Changes nothing, so a thread may call it: it visits
        every entry of the tree, half a second for 500,000."""
        level, whole, wanted = self._would(level, whole, wanted)
        return None if wanted.is_open else matching(self.tree, wanted, _base(level, whole=whole), level)

    def _would(self, level: int | None, whole: bool | None, wanted: Filter | None) -> tuple[int, bool, Filter]:
        return (
            self.level if level is None else level,
            self.whole if whole is None else whole,
            self.filter if wanted is None else wanted,
        )

    def sort(self, order: str) -> None:
        self.order = order
        self._rebuild()

    def is_filtered_out(self, node: int) -> bool:
        return self._let_through is not None and node not in self._let_through

    # -- opening and closing --

    def toggle(self, row: int) -> None:
        """Open a directory, or close it."""
        if self._nodes[row] in self._open:
            self.close(row)
        else:
            self.open(row)

    def open(self, row: int) -> bool:
        """Show the content of a directory. False: it is open already, or no directory."""
        node = self._nodes[row]
        if node in self._open or not self._is_directory(node):
            return False
        self._open.add(node)
        nodes, depths = self._below(node, self._depths[row] + 1)
        self._nodes[row + 1 : row + 1] = nodes
        self._depths[row + 1 : row + 1] = depths
        return True

    def close(self, row: int) -> bool:
        """Hide the content of a directory. False: it is closed already."""
        node = self._nodes[row]
        if node not in self._open:
            return False
        self._open.discard(node)
        end = row + 1
        while end < len(self._nodes) and self._depths[end] > self._depths[row]:
            end += 1
        del self._nodes[row + 1 : end], self._depths[row + 1 : end]
        return True

    def close_all(self) -> None:
        self._open.clear()
        self._rebuild()

    def parent_row(self, row: int) -> int:
        """Return the row of the directory that contains a row; the row itself if that is the root directory."""
        depth = self._depths[row]
        for above in range(row - 1, -1, -1):
            if self._depths[above] < depth:
                return above
        return row

    def reveal(self, node: int) -> int:
        """Open the directories above a node; returns its row, -1 where it does not show in this view."""
        above = []
        at = self.tree.parent(node)
        while at > ROOT:
            above.append(at)
            at = self.tree.parent(at)
        for directory in reversed(above):
            row = self._row_of(directory)
            if row < 0:
                return -1
            self.open(row)
        return self._row_of(node)

    def find(self, wanted: bytes) -> Iterator[int]:
        """Yield the nodes of this view whose names contain `wanted`, those nearest to the root first."""
        for node in self.tree.named(wanted):
            if node != ROOT and not self.is_filtered_out(node) and self._shows(node):
                yield node

    # -- rows --

    def _shows(self, node: int) -> bool:
        tree, base = self.tree, self.base
        return tree.shown(node, self.level) >= 0 or (base >= 0 and tree.shown(node, base) >= 0)

    def _is_directory(self, node: int) -> bool:
        entry = self.tree.shown(node, self.level)
        if entry < 0:
            entry = self.tree.shown(node, self.base)
        return self.tree.is_directory(entry)

    def _row_of(self, node: int) -> int:
        try:
            return self._nodes.index(node)
        except ValueError:
            return -1

    def _children(self, node: int) -> list[int]:
        tree, base, level, by_size = self.tree, self.base, self.level, self.order == BY_SIZE
        found: list[tuple[bool, int, int]] = []
        for child in tree.children(node, base, level):
            if self.is_filtered_out(child):
                continue
            at, entry = level, tree.shown(child, level)
            if entry < 0:  # removed: as it was before
                at, entry = base, tree.shown(child, base)
            is_directory, size = tree.is_directory(entry), 0
            if by_size:
                size = tree.size(child, at)[0] if is_directory else tree.stored[entry]
            found.append((not is_directory, -size, child))
        found.sort()  # children are numbered by name
        return [child for _, _, child in found]

    def _below(self, node: int, depth: int) -> tuple[list[int], list[int]]:
        """Return the rows below a directory, including those of open directories in it."""
        nodes, depths = [], []
        todo = [(child, depth) for child in reversed(self._children(node))]
        while todo:
            child, at = todo.pop()
            nodes.append(child)
            depths.append(at)
            if child in self._open and self._is_directory(child):
                todo += [(inner, at + 1) for inner in reversed(self._children(child))]
        return nodes, depths

    def _rebuild(self) -> None:
        self._nodes, self._depths = self._below(ROOT, 0)


def _base(level: int, *, whole: bool) -> int:
    if whole:
        return 0 if level else -1
    return level - 1
