"""Keep what a directory remembers of its names right when an operation changes them.

Every operation that adds, removes or hides a name tells it here, in the same critical section.
"""

from __future__ import annotations

from unionfs.core.attrs import IFDIR
from unionfs.core.branch import Stat
from unionfs.core.node import DirNode
from unionfs.core.union_state import UnionState


def added(tree: UnionState, parent: DirNode, name: bytes, kind: int, ino: int) -> None:
    """The upper has a new entry `name` that was not visible before. A whiteout of it is gone."""
    if parent.up_names is not None:
        parent.up_names[name] = (ino << 4) | (kind >> 12)
        parent.hidden.discard(name)
        tree.cache.grow(parent, 1)
    if parent.order is not None:
        parent.order.add(name)
        tree.cache.grow(parent, 1)
    if parent.subdirs >= 0 and kind == IFDIR:
        parent.subdirs += 1
    parent.shown_as = None
    tree.ours(parent)


def copied_up(tree: UnionState, parent: DirNode, name: bytes, kind: int, ino: int, before: Stat) -> None:
    """A visible name is now (also) in the upper. The directory shows the attributes it had `before`: no user changed
    it."""
    if parent.shown_as is None:
        parent.shown_as = before
    if parent.up_names is not None and name not in parent.up_names:
        parent.up_names[name] = (ino << 4) | (kind >> 12)
        tree.cache.grow(parent, 1)
    tree.ours(parent)


def replaced(tree: UnionState, parent: DirNode, name: bytes, kind: int, ino: int) -> None:
    """A visible name is another object of the upper now."""
    if parent.up_names is not None:
        parent.up_names[name] = (ino << 4) | (kind >> 12)
        parent.hidden.discard(name)
    parent.shown_as = None
    tree.ours(parent)


def removed(tree: UnionState, parent: DirNode, name: bytes, kind: int, *, hidden: bool) -> None:
    """`name` is not visible any more; `hidden`: by a whiteout in the upper."""
    if parent.up_names is not None:
        if parent.up_names.pop(name, None) is not None:
            tree.cache.grow(parent, -1)
        if hidden:
            parent.hidden.add(name)
    if parent.order is not None:
        parent.order.discard(name)
    if parent.subdirs >= 0 and kind == IFDIR:
        parent.subdirs -= 1
    parent.shown_as = None
    tree.ours(parent)


def learn_empty(tree: UnionState, directory: DirNode) -> None:
    """The upper's directory has just been made and holds no entry: nothing needs to be scanned."""
    if directory.up_names is None:
        directory.up_names, directory.hidden = {}, set()
        tree.cache.add(directory, 0)
    if tree.watcher is not None and directory.nodeid in tree.watcher.seen:
        tree.watcher.watch(directory)
