"""List a merged directory: "." and "..", then its visible names in the order of their cookies.

Knows nodes, and which names of which branch are visible. The order itself is core.listing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from unionfs.core import lookup
from unionfs.core.attrs import IFDIR, DirEntry, make
from unionfs.core.listing import Listing
from unionfs.core.node import DirNode
from unionfs.core.union_state import UnionState

_BATCH: Final = 256  # names


def entries(tree: UnionState, node: DirNode, cookie: int) -> Iterator[DirEntry]:
    """List the entries after `cookie`. See Union.readdir."""
    if cookie < 1:
        yield DirEntry(b".", 1, node.ino, IFDIR)
    if cookie < 2:
        yield DirEntry(b"..", 2, node.parent.ino if node.parent is not None else node.ino, IFDIR)
    if node.dead:
        return
    order = _order(tree, node)
    up_names = tree.up_names(node)
    low = node.low
    low_names = low.load() if low is not None else {}
    stacks = low.stacks if low is not None else []  # a lookup between two entries may drop them from the cache
    position = cookie
    while some := order.after(position, _BATCH):
        for position, name in some:
            code = up_names.get(name)
            if code is not None:
                yield make(DirEntry, (name, position, _shown_ino(tree, node, name, code), (code & 0xF) << 12))
                continue
            code = low_names.get(name)
            if code is None:
                continue
            assert low is not None
            shown = tree.low_ino(node, low.place_of(code, stacks), name, code)
            yield make(DirEntry, (name, position, shown, (code & 0xF) << 12))


def names(tree: UnionState, node: DirNode, cookie: int, most: int) -> list[tuple[int, bytes]]:
    """List (cookie, name) of about `most` entries after `cookie`. See Union.names."""
    if cookie >= 2:
        return [] if node.dead else _order(tree, node).after(cookie, most)
    found = [(1, b".")] if cookie < 1 else []
    found.append((2, b".."))
    return found if node.dead else found + _order(tree, node).after(cookie, most)


def _order(tree: UnionState, node: DirNode) -> Listing:
    order = node.order
    if order is None:
        visible = tree.visible_names(node)
        order = node.order = Listing(visible)
        tree.cache.grow(node, len(visible))
    return order


def _shown_ino(tree: UnionState, parent: DirNode, name: bytes, code: int) -> int:
    child = parent.children.get(name)
    if child is not None:
        return child.ino
    assert parent.upper is not None
    if not tree.has_lowers_to_copy(parent):
        return tree.inodes.shown(parent.upper.branch.fs_index, code >> 4)
    try:
        resolved = lookup.resolve(tree, parent, name)
    except OSError:
        return tree.inodes.shown(parent.upper.branch.fs_index, code >> 4)
    ino = resolved.node.ino
    tree.drop_unused(resolved.node)
    return ino
