"""Update a directory's remembered names when an operation changes them.

Every operation that adds, removes or hides a name calls one of these functions, in the same critical section.
"""

from __future__ import annotations

from unionfs.core.attrs import IFDIR
from unionfs.core.branch import Stat
from unionfs.core.node import DirNode
from unionfs.core.union_state import UnionState


def show(tree: UnionState, directory: DirNode, st: Stat | None) -> None:
    """Show a directory's size, blocks and ctime as they are in `st`, until a user changes the directory. `st` None: a
    user has changed it."""
    if directory.shown_as is not st:
        directory.shown_as = st
        tree.nodes.renamed(directory)


def added(tree: UnionState, parent: DirNode, name: bytes, kind: int, ino: int) -> None:
    """Record a new entry `name` of the upper that was not visible before, and that a whiteout of it is gone."""
    if parent.up_names is not None:
        parent.up_names[name] = (ino << 4) | (kind >> 12)
        parent.hidden.discard(name)
        tree.cache.grow(parent, 1)
    if parent.order is not None:
        parent.order.add(name)
        tree.cache.grow(parent, 1)
    if parent.subdirs >= 0 and kind == IFDIR:
        parent.subdirs += 1
    show(tree, parent, None)
    tree.record_own_change(parent)


def copied_up(tree: UnionState, parent: DirNode, name: bytes, kind: int, ino: int, before: Stat) -> None:
    """Record that a visible name was copied up. The directory goes on to show its attributes `before` that, since no
    user changed it."""
    if parent.shown_as is None:
        show(tree, parent, before)
    if parent.up_names is not None and name not in parent.up_names:
        parent.up_names[name] = (ino << 4) | (kind >> 12)
        tree.cache.grow(parent, 1)
    tree.record_own_change(parent)


def replaced(tree: UnionState, parent: DirNode, name: bytes, kind: int, ino: int) -> None:
    """Record that a visible name is another object of the upper now."""
    if parent.up_names is not None:
        parent.up_names[name] = (ino << 4) | (kind >> 12)
        parent.hidden.discard(name)
    show(tree, parent, None)
    tree.record_own_change(parent)


def removed(tree: UnionState, parent: DirNode, name: bytes, kind: int, *, hidden: bool) -> None:
    """Record that `name` is not visible any more; `hidden`: by a whiteout in the upper."""
    if parent.up_names is not None:
        if parent.up_names.pop(name, None) is not None:
            tree.cache.grow(parent, -1)
        if hidden:
            parent.hidden.add(name)
    if parent.order is not None:
        parent.order.discard(name)
    if parent.subdirs >= 0 and kind == IFDIR:
        parent.subdirs -= 1
    show(tree, parent, None)
    tree.record_own_change(parent)


def learn_empty(tree: UnionState, directory: DirNode) -> None:
    """Record that the upper's directory has just been made and is empty, so that it need not be scanned."""
    if directory.up_names is None:
        directory.up_names, directory.hidden = {}, set()
        tree.cache.add(directory, 0)
    if tree.watcher is not None and directory.nodeid in tree.watcher.seen:
        tree.watcher.watch(directory)
