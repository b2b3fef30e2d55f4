"""Rename, for files and directories of every origin, never EXDEV.

A directory with lower content is copied up without that content and marked with a redirect, the path of the content in
the union of the lowers. A directory that is the upper's alone is made opaque before it moves onto a name
that the lowers have.

Order, so that a crash shows the old state or the new one: marks on the moved directory (they change nothing where it
is), the whiteout for the old name (an entry beside it takes precedence), the replaced object is saved, then the one
rename, then whiteouts that the new entry made superfluous are removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import NamedTuple

from unionfs import markers
from unionfs.core import (
    copy_metadata,
    copyup,
    flatten,
    inode_flags,
    lookup,
    marks,
    names,
    owner_override,
    placement,
    remove,
)
from unionfs.core.branch import BranchDir, Stat
from unionfs.core.node import DirNode, FileNode, Node
from unionfs.core.owner_override import OwnerOverride
from unionfs.core.union_state import UnionState, refuse
from unionfs.syscalls import files


class _End(NamedTuple):
    """One end of a rename: a name in a directory, and its node and attributes."""

    parent: DirNode
    name: bytes
    node: Node
    st: Stat


def rename(tree: UnionState, parent: DirNode, name: bytes, new_parent: DirNode, new_name: bytes, flags: int) -> None:
    """rename(2) and renameat2(2) with RENAME_NOREPLACE or RENAME_EXCHANGE. ENOENT, EEXIST, EISDIR, ENOTDIR,
    ENOTEMPTY, EINVAL."""
    lookup.check_name(name)
    lookup.check_name(new_name)
    placement.require_upper(tree)
    if flags not in (0, files.RENAME_NOREPLACE, files.RENAME_EXCHANGE):  # the two exclude each other
        refuse(errno.EINVAL, name)
    if markers.is_reserved(new_name):
        refuse(errno.EINVAL, new_name)
    if new_parent.dead:
        refuse(errno.ENOENT, new_name)
    found = lookup.resolve(tree, parent, name)
    src = _End(parent, name, found.node, found.st)
    dst: _End | None = None
    record, is_done = tree.nodes.record, False
    try:
        try:
            found = lookup.resolve(tree, new_parent, new_name)
            dst = _End(new_parent, new_name, found.node, found.st)
        except FileNotFoundError:
            if flags & files.RENAME_EXCHANGE:
                raise
        if dst is not None and flags & files.RENAME_NOREPLACE:
            refuse(errno.EEXIST, new_name)
        if dst is not None and dst.node is src.node:
            return  # two names of one file, or the same name twice: nothing to do
        inode_flags.refuse_removal(parent, name, src.node)
        if dst is not None:
            inode_flags.refuse_removal(new_parent, new_name, dst.node)
        else:
            inode_flags.refuse_new_entry(new_parent, new_name)
        _refuse_loops(src, new_parent, dst if flags & files.RENAME_EXCHANGE else None, parent)
        if record is not None:
            replaced = dst.node.nodeid if dst is not None else 0
            record.begin_rename(src.node.nodeid, parent.nodeid, name, new_parent.nodeid, new_name, replaced, flags)
        if dst is not None and flags & files.RENAME_EXCHANGE:
            _exchange(tree, src, dst)
        else:
            if dst is not None:
                _check_replaceable(tree, src, dst)
            _move(tree, src, new_parent, new_name, dst)
        is_done = True
    finally:
        if record is not None:
            record.end_rename(is_done)
        tree.drop_unused(src.node)
        if dst is not None:
            tree.drop_unused(dst.node)


def _refuse_loops(src: _End, new_parent: DirNode, swapped: _End | None, parent: DirNode) -> None:
    """Raise EINVAL if a directory would move into itself."""
    if _is_below(new_parent, src.node) or (swapped is not None and _is_below(parent, swapped.node)):
        refuse(errno.EINVAL, src.name)


def _is_below(directory: DirNode | None, node: Node) -> bool:
    while directory is not None:
        if directory is node:
            return True
        directory = directory.parent
    return False


def _check_replaceable(tree: UnionState, src: _End, dst: _End) -> None:
    if isinstance(src.node, DirNode):
        if not isinstance(dst.node, DirNode):
            refuse(errno.ENOTDIR, dst.name)
        if not remove.is_empty(tree, dst.node):
            refuse(errno.ENOTEMPTY, dst.name)
    elif isinstance(dst.node, DirNode):
        refuse(errno.EISDIR, dst.name)


def _bring_up(tree: UnionState, end: _End) -> None:
    """Copy the object up under this name."""
    if isinstance(end.node, DirNode):
        placement.ensure_dir(tree, end.node)
    else:
        copyup.give_name(tree, end.node, end.parent, end.name)


def _prepare(tree: UnionState, node: Node, new_parent: DirNode, new_name: bytes) -> None:
    """Mark a directory so that it shows the same content under its new name. Changes nothing under the old one."""
    if not isinstance(node, DirNode):
        return
    assert node.upper is not None
    path = marks.proc_path(node.upper.fd())
    if node.low is not None:
        value = b"/" + b"/".join(node.low.path_components())
        try:
            with OwnerOverride(node.upper):
                marks.set_trusted_or_user(path, "overlay.redirect", value)
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.E2BIG, errno.ERANGE) or len(value) < 256:
                raise
            flatten.flatten(tree, node)  # a path too long for an attribute: bring the content up instead
    if node.low is None and lookup.find_low(new_parent, new_name) is not None:
        with OwnerOverride(node.upper):
            before = node.upper.stat()
            tree.hold_times(node, before)
            marks.set_opaque(path, node.upper.fd(), tree.options.whiteout)
            tree.restore_times(node.upper.fd(), before)


def _move(tree: UnionState, src: _End, new_parent: DirNode, new_name: bytes, dst: _End | None) -> None:
    node = src.node
    _bring_up(tree, src)
    up = placement.ensure_dir(tree, src.parent)
    new_up = placement.ensure_dir(tree, new_parent)
    _prepare(tree, node, new_parent, new_name)
    low_src = lookup.find_low(src.parent, src.name) is not None
    low_dst = lookup.find_low(new_parent, new_name) is not None
    had_entry = dst is not None and lookup.upper_entry(tree, new_parent, new_name) is not None
    placing = low_src and (tree.options.whiteout == marks.AUFS or not _can_whiteout_by_rename(tree))
    orphan = _save_replaced(tree, dst) if dst is not None and had_entry else None
    placed = False
    try:
        if dst is not None and not had_entry and isinstance(dst.node, FileNode):
            remove.announce_hiding(tree, dst.node, new_up, new_name, dst.st)
        placed = placing and marks.place_aufs_whiteout(up, src.name)
        if low_src and not placed and not _can_whiteout_by_rename(tree):
            refuse(errno.ENAMETOOLONG, src.name)
        _rename_entry(
            tree,
            up,
            src.name,
            new_up,
            new_name,
            leave_whiteout=low_src and not placed,
            is_dir=isinstance(node, DirNode),
        )
    except OSError:
        if placed:
            marks.clear_aufs_whiteout(up, src.name)
        if orphan is not None and dst is not None:
            _restore_replaced(tree, dst, orphan)
        raise
    if low_dst:
        marks.clear_aufs_whiteout(new_up, new_name)
    kind = stat.S_IFMT(src.st.st_mode)
    names.removed(tree, src.parent, src.name, kind, hidden=low_src)
    if dst is not None:
        dst_kind = stat.S_IFMT(dst.st.st_mode)
        names.removed(tree, new_parent, new_name, dst_kind, hidden=False)
        _forget_replaced(tree, dst, orphan, had_entry=had_entry)
    new = os.stat(new_name, dir_fd=new_up.fd(), follow_symlinks=False)
    names.added(tree, new_parent, new_name, kind, new.st_ino)
    _relocate(node, src.parent, src.name, up, new_parent, new_name, new_up)
    _has_moved(tree, node)


def _save_replaced(tree: UnionState, dst: _End) -> bytes | None:
    """Save the upper's entry that is about to be replaced in the staging directory, for programs that still use it.
    Returns its name there; None if another known name leads to it.

    A directory is exchanged for an empty one for the rename to replace, since its marks would make that fail.
    """
    node = dst.node
    up = dst.parent.upper
    assert up is not None
    staging = tree.staging
    leaf = staging.orphan_name(node.nodeid)
    if isinstance(node, FileNode):
        if not remove.is_last_known(node, up, dst.name):
            return None
        os.link(dst.name, leaf, src_dir_fd=up.fd(), dst_dir_fd=staging.fd(), follow_symlinks=False)
        return leaf
    assert node.upper is not None
    os.mkdir(leaf, 0o700, dir_fd=staging.fd())
    try:
        place = staging.here.child(leaf)
        marks.set_opaque_xattr(marks.proc_path(place.fd()))
        copy_metadata.give(tree, marks.path_at(node.upper, b"."), node.upper, node.upper.stat(), staging.here, leaf)
        tree.fds.drop(place)
        owner_override.rename(staging.here, leaf, up, dst.name, files.RENAME_EXCHANGE)
    except BaseException:
        staging.dispose(leaf)
        raise
    return leaf


def _restore_replaced(tree: UnionState, dst: _End, orphan: bytes) -> None:
    """Put the saved object back after a failed rename."""
    if isinstance(dst.node, DirNode) and dst.parent.upper is not None:
        with contextlib.suppress(OSError):
            owner_override.rename(tree.staging.here, orphan, dst.parent.upper, dst.name, files.RENAME_EXCHANGE)
    tree.staging.dispose(orphan)


def _forget_replaced(tree: UnionState, dst: _End, orphan: bytes | None, *, had_entry: bool) -> None:
    """Record that the replaced object has lost its name."""
    node, parent, name = dst.node, dst.parent, dst.name
    if isinstance(node, DirNode):
        parent.children.pop(name, None)
        node.dead = True
        if orphan is not None and node.upper is not None:
            node.upper.parent, node.upper.name = tree.staging.here, orphan
            node.upper.branch = tree.staging.branch
        tree.nodes.renamed(node)
        return
    remove.name_gone(tree, node, parent, name, orphan, dst.st, was_low=not had_entry)


def _can_whiteout_by_rename(tree: UnionState) -> bool:
    """Whether the upper's filesystem has RENAME_WHITEOUT (rename(2)); found out once, in the staging directory."""
    if tree.rename_whiteout is None:
        staging = tree.staging
        name, other = staging.new_name(), staging.new_name()
        os.mknod(name, stat.S_IFREG | 0o600, dir_fd=staging.fd())
        try:
            files.renameat2(staging.fd(), name, staging.fd(), other, files.RENAME_WHITEOUT)
            tree.rename_whiteout = True
        except OSError:
            tree.rename_whiteout = False
        staging.dispose(name)
        staging.dispose(other)
    return tree.rename_whiteout


def _rename_entry(
    tree: UnionState,
    up: BranchDir,
    name: bytes,
    new_up: BranchDir,
    new_name: bytes,
    *,
    leave_whiteout: bool,
    is_dir: bool,
) -> None:
    """Rename the entry in the upper. A directory cannot replace a whiteout device, so it is exchanged with it."""
    flags = files.RENAME_WHITEOUT if leave_whiteout else 0
    try:
        owner_override.rename(up, name, new_up, new_name, flags)
        return
    except OSError as exc:
        if exc.errno != errno.ENOTDIR or not is_dir:
            raise
    before = os.stat(name, dir_fd=up.fd(), follow_symlinks=False)
    owner_override.rename(up, name, new_up, new_name, files.RENAME_EXCHANGE)
    with contextlib.suppress(OSError):  # xfs moves the mtime of a directory that changes places; a rename does not
        os.utime(new_name, ns=(before.st_atime_ns, before.st_mtime_ns), dir_fd=new_up.fd(), follow_symlinks=False)
    if not leave_whiteout:
        with contextlib.suppress(OSError):  # the rename is done; a whiteout that hides nothing does no harm
            os.unlink(name, dir_fd=up.fd())


def _relocate(
    node: Node, parent: DirNode, name: bytes, up: BranchDir, new_parent: DirNode, new_name: bytes, new_up: BranchDir
) -> None:
    """Move the node to its new name in the tables of known names."""
    if parent.children.get(name) is node:
        del parent.children[name]
    new_parent.children[new_name] = node
    if isinstance(node, DirNode):
        assert node.upper is not None
        node.parent, node.name = new_parent, new_name
        node.shown_as = None
        node.upper.parent, node.upper.name = new_up, new_name
        return
    if node.home is up and node.leaf == name:
        node.home, node.leaf = new_up, new_name
    if (node.parent, node.name) == (parent, name):
        node.parent, node.name = new_parent, new_name
    elif node.links is not None:
        node.links.others = [(new_parent, new_name) if pair == (parent, name) else pair for pair in node.links.others]


def _exchange(tree: UnionState, src: _End, dst: _End) -> None:
    _bring_up(tree, src)
    _bring_up(tree, dst)
    up = placement.ensure_dir(tree, src.parent)
    new_up = placement.ensure_dir(tree, dst.parent)
    _prepare(tree, src.node, dst.parent, dst.name)
    _prepare(tree, dst.node, src.parent, src.name)
    owner_override.rename(up, src.name, new_up, dst.name, files.RENAME_EXCHANGE)
    for end, other in ((src, dst), (dst, src)):
        kind = stat.S_IFMT(other.st.st_mode)
        assert end.parent.upper is not None
        new = os.stat(end.name, dir_fd=end.parent.upper.fd(), follow_symlinks=False)
        names.replaced(tree, end.parent, end.name, kind, new.st_ino)
        if end.parent.subdirs >= 0:
            end.parent.subdirs += (kind == stat.S_IFDIR) - stat.S_ISDIR(end.st.st_mode)
    _relocate(src.node, src.parent, src.name, up, dst.parent, dst.name, new_up)
    _relocate(dst.node, dst.parent, dst.name, new_up, src.parent, src.name, up)
    _has_moved(tree, src.node)
    _has_moved(tree, dst.node)


def _has_moved(tree: UnionState, node: Node) -> None:
    tree.nodes.renamed(node)
    tree.record_own_change(node)
    if tree.watcher is not None and isinstance(node, DirNode):
        tree.watcher.watch(node)
