"""Find the node of a file handle by its id alone, also when the kernel has forgotten it.

A node is made again at its last place. A file that has lost the names the kernel knew, but not all, is reached by its
filesystem's own handle and gets a link in the staging directory, as a removed file that is still in use.
"""

from __future__ import annotations

import errno
import os

from unionfs.core import inodes, lookup
from unionfs.core.branch import BranchDir, Stat
from unionfs.core.handle_table import Forgotten, Nameless
from unionfs.core.node import DirNode, FileNode, Node
from unionfs.core.union_state import UnionState, refuse
from unionfs.syscalls import file_handles


def find(tree: UnionState, nodeid: int) -> Node:
    """Return the node of an id, and make it again if it was forgotten. ESTALE if its object has moved or gone."""
    chain: list[tuple[int, bytes]] = []  # (node id, name) of the nodes to make again, deepest first
    at = nodeid
    node = tree.nodes.known(at)
    while node is None:
        forgotten = tree.nodes.handle_table.find(at) if tree.nodes.handle_table is not None else None
        if forgotten is None:
            refuse(errno.ESTALE)
        if forgotten.nameless is not None:
            return _make_nameless(tree, nodeid, forgotten, forgotten.nameless)
        chain.append((at, forgotten.name))
        at = forgotten.parent
        node = tree.nodes.known(at)
    for wanted, name in reversed(chain):
        if not isinstance(node, DirNode):
            refuse(errno.ESTALE)
        try:
            found = lookup.resolve(tree, node, name).node
        except (FileNotFoundError, NotADirectoryError):
            tree.drop_unused(node)
            refuse(errno.ESTALE)
        if found.nodeid != wanted:
            tree.drop_unused(found)
            refuse(errno.ESTALE)
        node = found
    if node.dead if isinstance(node, DirNode) else node.is_dead and not tree.name_count(node):
        refuse(errno.ESTALE)  # removed: the kernel's FORGET is still on its way
    return node


def _make_nameless(tree: UnionState, nodeid: int, forgotten: Forgotten, where: Nameless) -> FileNode:
    """Make the node of a file that has no known name. ESTALE if it has no name at all."""
    table = tree.nodes.handle_table
    assert table is not None
    table.drop(nodeid)
    if where.handle:
        place, leaf, st = _linked_again(tree, nodeid, where.handle)
        key = tree.links.key_of(st.st_ino)
    else:
        place, leaf = where.place, where.leaf
        st = place.stat_entry(leaf)
        key = inodes.link_key(place.branch, st)
        if tree.links.upper_ino(key) is not None:
            place, leaf = tree.links.place, key
            st = place.stat_entry(leaf)
    node = FileNode(nodeid, tree.root, leaf, place, leaf, forgotten.ino, st.st_mode)
    links = node.rare()
    links.dead, links.key = True, key
    tree.nodes.register_inode(node, (st.st_dev, st.st_ino))
    tree.nodes.add(node)
    if not tree.name_count(node):
        tree.drop_unused(node)
        refuse(errno.ESTALE)
    return node


def _linked_again(tree: UnionState, nodeid: int, handle: bytes) -> tuple[BranchDir, bytes, Stat]:
    """Give a file of the upper a link in the staging directory. ESTALE if it is gone."""
    staging = tree.staging
    leaf = staging.orphan_name(nodeid)
    mount_fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=staging.fd())
    try:
        fd = file_handles.open_path(mount_fd, handle)
        try:
            os.link(b"/proc/self/fd/%d" % fd, leaf, dst_dir_fd=staging.fd())
        except FileNotFoundError:
            refuse(errno.ESTALE)
        finally:
            os.close(fd)
    finally:
        os.close(mount_fd)
    return staging.here, leaf, staging.here.stat_entry(leaf)
