"""Remove names: unlink and rmdir, and keep objects that are still in use after their last name was removed.

The whiteout comes first, then the entry leaves its name by one rename; so a crash shows the old state or the new one.
A whiteout file beside an entry does not hide it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from unionfs.core import inode_flags, lookup, marks, names, placement
from unionfs.core.branch import BranchDir, Stat
from unionfs.core.node import DirNode, FileNode, Node
from unionfs.core.owner_override import OwnerOverride, rename
from unionfs.core.staging import LARGE
from unionfs.core.union_state import UnionState, refuse
from unionfs.syscalls import files


def unlink(tree: UnionState, parent: DirNode, name: bytes) -> None:
    """Remove a name that is not a directory's (unlink(2)). ENOENT, EISDIR, EROFS."""
    lookup.check_name(name)
    placement.require_upper(tree)
    found = lookup.resolve(tree, parent, name)
    node, st = found.node, found.st
    if isinstance(node, DirNode):
        tree.drop_unused(node)
        refuse(errno.EISDIR, name)
    _refuse_protected(tree, parent, name, node)
    low = lookup.find_low(parent, name)
    up = placement.ensure_dir(tree, parent) if low is not None else parent.upper
    assert up is not None
    entry = lookup.upper_entry(tree, parent, name)
    keep = entry is not None and is_last_known(node, up, name)
    # To an unused name: rename(2) onto another name of the same file does nothing.
    leaf = tree.staging.orphan_name(node.nodeid) if keep else tree.staging.new_name()
    if entry is None:
        announce_hiding(tree, node, up, name, st)
        hide_low(tree, up, name)
    elif keep or low is not None:
        take_away(tree, up, name, leaf, low is not None)
    else:
        os.unlink(name, dir_fd=up.fd())
    names.removed(tree, parent, name, stat.S_IFMT(st.st_mode), hidden=low is not None)
    if entry is not None and not keep:
        tree.staging.dispose(leaf) if low is not None else None
    name_gone(tree, node, parent, name, leaf if keep else None, st, was_low=entry is None)
    tree.drop_unused(node)


def _refuse_protected(tree: UnionState, parent: DirNode, name: bytes, node: Node) -> None:
    try:
        inode_flags.refuse_removal(parent, name, node)
    except OSError:
        tree.drop_unused(node)
        raise


def announce_hiding(tree: UnionState, node: FileNode, up: BranchDir, name: bytes, st: Stat) -> None:
    """Announce to the hard-link index that a lower name of an indexed inode is about to be hidden."""
    if node.links is not None and node.links.key is not None:
        tree.links.announce_hiding(node.links.key, st.st_nlink, up, name)


def is_last_known(node: FileNode, up: BranchDir, name: bytes) -> bool:
    """Whether this entry is the only known name of the node's object."""
    return node.home is up and node.leaf == name and (node.links is None or not node.links.others)


def name_gone(
    tree: UnionState, node: FileNode, parent: DirNode, name: bytes, orphan: bytes | None, st: Stat, *, was_low: bool
) -> None:
    """Record that the node has lost the name; after its last known name, its object stays as an orphan until the node
    is forgotten."""
    parent.children.pop(name, None)
    home_lost = node.home is parent.upper and node.leaf == name
    if (node.parent, node.name) == (parent, name):
        others = node.links.others if node.links is not None else []
        if others:
            node.parent, node.name = others.pop(0)
        else:
            node.rare().dead = True
    elif node.links is not None:
        node.links.others = [pair for pair in node.links.others if pair != (parent, name)]
    key = node.links.key if node.links is not None else None
    if orphan is not None:
        node.home, node.leaf = tree.staging.here, orphan
        node.rare().large = st.st_blocks * 512 > LARGE
    elif home_lost:
        _find_other_home(tree, node)
    if key is not None and was_low:
        tree.links.cover(key, st.st_nlink)
    if key is not None and node.is_up:
        with contextlib.suppress(OSError):  # the name is gone; what stays in the index is swept by the next mount
            release_index(tree, node, key)
    tree.nodes.renamed(node)
    tree.record_own_change(node)


def _find_other_home(tree: UnionState, node: FileNode) -> None:
    """Let the node reach its object by another known name, after the entry that it used was removed."""
    for parent, name in [(node.parent, node.name), *(node.links.others if node.links is not None else [])]:
        if parent.upper is None:
            continue
        try:
            entry = lookup.upper_entry(tree, parent, name)
        except PermissionError:
            with OwnerOverride(parent.upper, with_parents=True):  # the name exists, whatever the mode above it
                entry = lookup.upper_entry(tree, parent, name)
        if entry is not None:
            node.home, node.leaf = parent.upper, name
            return
    key = node.links.key if node.links is not None else None
    if key is not None and tree.links.upper_ino(key) is not None:
        node.home, node.leaf = tree.links.place, key


def release_index(tree: UnionState, node: FileNode, key: bytes) -> None:
    """Remove an indexed inode from the index if no name leads to it any more; it may still be in use."""
    if tree.links.remaining(key, 0) > 0:
        return
    if node.home is tree.links.place:
        st = os.stat(key, dir_fd=tree.links.place.fd(), follow_symlinks=False)
        if st.st_nlink > 1:
            return
        leaf = tree.staging.orphan_name(node.nodeid)
        tree.links.take(key, leaf)
        node.home, node.leaf = tree.staging.here, leaf
        node.rare().dead = True
        node.rare().key = None
        return
    if node.is_dead and node.home is tree.staging.here:
        st = os.stat(node.leaf, dir_fd=node.home.fd(), follow_symlinks=False)
        if st.st_nlink == 2:  # the orphan and the index
            tree.links.remove(key)
            node.rare().key = None


def rmdir(tree: UnionState, parent: DirNode, name: bytes) -> None:
    """Remove an empty merged directory (rmdir(2)). ENOENT, ENOTDIR, ENOTEMPTY, EROFS."""
    lookup.check_name(name)
    placement.require_upper(tree)
    node = lookup.resolve(tree, parent, name).node
    if isinstance(node, FileNode):
        tree.drop_unused(node)
        refuse(errno.ENOTDIR, name)
    _refuse_protected(tree, parent, name, node)
    try:
        if not is_empty(tree, node):
            refuse(errno.ENOTEMPTY, name)
        low = lookup.find_low(parent, name)
        up = placement.ensure_dir(tree, parent)
        leaf = tree.staging.orphan_name(node.nodeid)
        if node.upper is None:
            hide_low(tree, up, name)
        else:
            take_away(tree, up, name, leaf, low is not None)
            node.upper.parent, node.upper.name = tree.staging.here, leaf
            node.upper.branch = tree.staging.branch
        node.dead = True
        tree.nodes.renamed(node)
        parent.children.pop(name, None)
        names.removed(tree, parent, name, stat.S_IFDIR, hidden=low is not None)
    finally:
        tree.drop_unused(node)


def is_empty(tree: UnionState, node: DirNode) -> bool:
    """Whether a merged directory has no visible entry."""
    if tree.up_names(node):
        return False
    if node.low is None:
        return True
    return all(name in node.hidden for name, _, _ in node.low.listing())


def hide_low(tree: UnionState, up: BranchDir, name: bytes) -> None:
    """Place a whiteout where the upper has no entry of that name."""
    if tree.options.whiteout != marks.AUFS and marks.make_node_whiteout(up.fd(), name):
        return
    if marks.place_aufs_whiteout(up, name):
        return
    if not marks.make_node_whiteout(up.fd(), name):
        refuse(errno.ENAMETOOLONG, name)


def take_away(tree: UnionState, up: BranchDir, name: bytes, leaf: bytes, whiteout: bool) -> None:
    """Move the upper's entry `name` to `leaf` in the staging directory, leaving a whiteout if asked."""
    staging = tree.staging
    if whiteout and tree.options.whiteout != marks.AUFS and _exchange_for_whiteout(tree, up, name, leaf):
        return
    if whiteout and not marks.place_aufs_whiteout(up, name):
        if not _exchange_for_whiteout(tree, up, name, leaf):
            refuse(errno.ENAMETOOLONG, name)
        return
    try:
        rename(up, name, staging.here, leaf)
    except OSError:
        if whiteout:
            marks.clear_aufs_whiteout(up, name)
        raise


def _exchange_for_whiteout(tree: UnionState, up: BranchDir, name: bytes, leaf: bytes) -> bool:
    """Put a whiteout device in the entry's place in one step. False where such devices cannot be made."""
    staging = tree.staging
    if not marks.make_node_whiteout(staging.fd(), leaf):
        return False
    try:
        rename(staging.here, leaf, up, name, files.RENAME_EXCHANGE)
    except OSError:
        staging.dispose(leaf)
        raise
    return True
