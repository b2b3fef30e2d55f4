"""Copy a file up without its data, for a change of its attributes or names, or to write blocks of it (core.partial).

Knows nodes and branches.
"""

from __future__ import annotations

import errno
import os
from time import monotonic, perf_counter
from typing import Final

from unionfs import markers
from unionfs.core import copy_metadata, inode_flags, partial, placement
from unionfs.core.attrs import ATTRIBUTES, DATA, IFREG
from unionfs.core.branch import Stat
from unionfs.core.ledger import FILE
from unionfs.core.marks import path_at
from unionfs.core.node import FileNode, names_of
from unionfs.core.union_state import UnionState, refuse
from unionfs.partial_record import Record

SPARSE_FROM: Final = 64 << 10
"""Bytes: files of at least that size are copied up without data if only their attributes or names change."""


def is_possible(tree: UnionState, node: FileNode, length: int, need: int) -> bool:
    """Whether a lower file, of which a change needs `length` bytes, may be copied up without data; `need`: see
    core.fill."""
    if tree.whole_until and monotonic() < tree.whole_until:
        return False
    if need == ATTRIBUTES:
        least = SPARSE_FROM if tree.options.metacopy else 0
    else:
        least = tree.options.partial_from if need == DATA and tree.writes_blocks else 0
    return 0 < least <= length and (node.links is None or node.links.data is None)


def copy(tree: UnionState, node: FileNode, st: Stat, wanted: int | None, despite: int) -> bool | None:
    """Copy up a lower file with attributes `st` without its data. Returns whether it was made with the permissions
    `wanted`, and has kept them; None: nothing was done, it must be copied whole. Raises as copyup.ensure does."""
    since, home, leaf_below = perf_counter(), node.home, node.leaf
    source = path_at(home, leaf_below)
    listed = copy_metadata.list_xattrs(source) if home.branch.has_xattrs else []
    redirect = _path_below(node, st)
    if redirect is None or any(mark in listed for mark in markers.METACOPY_XATTRS):
        return None
    flags = inode_flags.read_at(home, leaf_below)
    if flags & inode_flags.PROTECTED & ~despite:
        refuse(errno.EPERM, node.name)
    if flags & inode_flags.PROTECTED:
        return None  # filling it later would be refused
    tree.staging.announce_partial()
    leaf, dst, mode = placement.make_copy(tree, st, wanted)
    try:
        with dst:
            record = Record(st.st_size, st.st_size, st.st_mtime_ns, st.st_ino)
            made = partial.make(dst.fd, redirect, record)
            if made is None:
                tree.staging.dispose(leaf)
                return None
            kept_mode = copy_metadata.give(tree, source, home, st, tree.staging.here, leaf, dst.fd, listed, mode)
            if flags:
                inode_flags.carry(dst.fd, flags)
            if tree.is_strict:
                os.fsync(dst.fd)
        placement.publish_file(tree, node, leaf, st)
    except BaseException:
        tree.staging.dispose(leaf)
        raise
    node.rare().data = (home, leaf_below)
    node.rare().partial = partial.Partial(made, st.st_size, st.st_blocks)
    tree.ledger.saved += st.st_size
    placement.enter(tree, node, home.branch.path, FILE, since, st.st_size, 0)
    return kept_mode and mode == wanted


def _path_below(node: FileNode, st: Stat) -> bytes | None:
    """Return the path of a lower file in the union of the lowers, as a redirect; None if none of its known names leads
    to it."""
    for parent, name in names_of(node):
        low = parent.low
        found = low.find(name) if low is not None else None
        if low is None or found is None or found.kind != IFREG or found.place.branch is not node.home.branch:
            continue
        there = found.place.stat_entry(found.name)
        if (there.st_dev, there.st_ino) == (st.st_dev, st.st_ino):
            return b"/" + b"/".join((*low.path_components(), name))
    return None


def keep_source(tree: UnionState, node: FileNode) -> None:
    """Before a file of the upper gets another name: store in it the path of the lower file that has its data. Until
    then the kernel's overlay omits that path. Raises OSError."""
    part = node.links.partial if node.links is not None else None
    if part is None or part.has_redirect or part.is_lost or node.parent.low is None:
        return
    path = b"/" + b"/".join((*node.parent.low.path_components(), node.name))
    with tree.upper_fd(node) as held:
        partial.set_redirect(held.fd, part.prefix, path)
    part.has_redirect = True
