"""Place a copy in the upper: made in the staging directory, renamed into place, entered in the ledger.

The directories above it are brought up before, without their content. The mtime of the directory it is placed in is put
back, since users changed nothing there. Knows nodes and branches.
"""

from __future__ import annotations

import errno
import os
import stat
from time import perf_counter
from typing import Final

from unionfs.core import copy_metadata, inode_flags, inodes, names
from unionfs.core.attrs import IFMT, IFREG
from unionfs.core.branch import Branch, BranchDir, Stat
from unionfs.core.fds import FileFd
from unionfs.core.ledger import DIRECTORY, Cause, CopiedUp
from unionfs.core.marks import NO_FLAGS, path_at
from unionfs.core.node import DirNode, FileNode, Node
from unionfs.core.union_state import UnionState, refuse

_open: Final = os.open  # compiled code has no need to look these up at each call
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


def make_copy(tree: UnionState, st: Stat, wanted: int | None) -> tuple[bytes, FileFd, int]:
    """An empty file for the copy of one with attributes `st`: its name in the staging directory, a descriptor, and the
    permissions that it was made with and is to keep, -1 for none."""
    staging = tree.staging
    leaf = staging.new_name()
    mode = st.st_mode & 0o7777 if wanted is None else wanted
    if not _may_have_at_once(staging.here.branch, mode) or not tree.clear_umask(mode):
        mode = -1
    fd = _open(leaf, _CREATE | tree.noatime_flag, mode if mode >= 0 else 0o600, dir_fd=staging.fd())
    return leaf, FileFd(fd, True), mode


def _may_have_at_once(branch: Branch, mode: int) -> bool:
    """Whether a copy can be made with its permissions. Not with those that chown(2) clears, nor with those that keep
    its owner from setting attributes (xattr(7)). Others do not see it: the work directory is private."""
    return branch.overrides is None and not mode & ~0o777 and mode & 0o600 == 0o600


def enter(
    tree: UnionState,
    node: Node,
    lower: str,
    kind: str,
    since: float,
    size: int = 0,
    copied: int = 0,
    reflinked: bool = False,
    cause: Cause | None = None,
) -> None:
    """Enter a copy-up in the ledger; without a `cause` it is the current request. Path and cause are looked up for
    listeners only, since a node may lie below many directories."""
    tree.record_own_change(node)
    ledger = tree.ledger
    seconds = perf_counter() - since
    ledger.count(kind, copied, seconds, reflinked)
    if ledger.listeners:
        asker = cause if cause is not None else ledger.current_cause()
        ledger.notify(CopiedUp(path_of(node), lower, kind, size, copied, reflinked, seconds, asker))


def path_of(node: Node) -> bytes:
    """One of the paths of a node in the union, or the last it had; not limited to PATH_MAX."""
    parts = []
    at: Node | None = node
    while at is not None and at.parent is not None:
        parts.append(at.name)
        at = at.parent
    return b"/".join(reversed(parts))


def publish_file(tree: UnionState, node: FileNode, leaf: bytes, st: Stat) -> None:
    """Rename the finished copy into place, or into the staging directory if the file was removed meanwhile, and let the
    node point to it."""
    staging = tree.staging
    key = node.links.key if node.links is not None else None
    if node.is_dead and key is not None and tree.links.remaining(key, 0) > 0:
        # names not looked up yet must lead to the same inode: the index keeps it for them
        new = os.stat(leaf, dir_fd=staging.fd(), follow_symlinks=False)
        tree.links.add(key, staging.fd(), leaf, new.st_ino)
        staging.dispose(leaf)
        _moved(tree, node, tree.links.place, key)
        tree.nodes.register_inode(node, (new.st_dev, new.st_ino))
        return
    if node.is_dead:
        orphan = staging.orphan_name(node.nodeid)
        os.rename(leaf, orphan, src_dir_fd=staging.fd(), dst_dir_fd=staging.fd())
        _moved(tree, node, staging.here, orphan)
        return
    parent = node.parent
    ensure_dir(tree, parent)
    up = parent.upper
    assert up is not None
    kind = st.st_mode & IFMT
    key = inodes.link_key(node.home.branch, st) if st.st_nlink > 1 or kind != IFREG else None
    before = up.stat()
    new_ino = 0  # a listing shows the origin's number anyway
    if key is not None:
        new = os.stat(leaf, dir_fd=staging.fd(), follow_symlinks=False)
        new_ino = new.st_ino
        if st.st_nlink > 1:
            tree.links.announce(key, st.st_nlink, 2)
        tree.links.add(key, staging.fd(), leaf, new_ino)
        node.rare().key = key
    try:
        tree.hold_times(parent, before)
        staging.publish(leaf, up, node.name)
    except OSError:
        if key is not None:
            tree.links.withdraw(key)
        raise
    _moved(tree, node, up, node.name)
    tree.restore_times(up.fd(), before)
    names.copied_up(tree, parent, node.name, kind, new_ino, before)
    if key is not None:
        tree.nodes.register_inode(node, (up.branch.dev, new_ino))
        if st.st_nlink > 1:
            tree.links.cover(key, st.st_nlink)
    if tree.is_strict:
        _sync_dir(up)


def _moved(tree: UnionState, node: FileNode, home: BranchDir, leaf: bytes) -> None:
    node.home, node.leaf = home, leaf
    node.held = None  # it leads to the lower file; opened anew at the next use, so every user sees the same data
    node.no_xattrs = False  # a security module may have given the copy a label
    if node.links is not None:
        node.links.data = node.links.partial = None


def ensure_dir(tree: UnionState, directory: DirNode) -> BranchDir:
    """Bring a directory and all above it to the upper, and say where it is there. Raises EROFS, ENOSPC ..."""
    up = directory.upper
    if up is not None:
        return up
    missing: list[DirNode] = []
    at: DirNode | None = directory
    while at is not None and at.upper is None:
        missing.append(at)
        at = at.parent if not at.dead else None
    for each in reversed(missing):
        up = _copy_dir(tree, each)
    assert up is not None
    return up


def _copy_dir(tree: UnionState, node: DirNode) -> BranchDir:
    staging = tree.staging
    assert node.low is not None
    since = perf_counter()
    st = node.low.stat()
    leaf = staging.new_name()
    mode = stat.S_IMODE(st.st_mode)
    at_once = _may_have_at_once(staging.here.branch, mode) and bool(mode & stat.S_IXUSR) and tree.clear_umask(mode)
    os.mkdir(leaf, mode if at_once else 0o700, dir_fd=staging.fd())
    try:
        lower = node.low.stack[0]
        source = path_at(lower, b".") if not lower.sealed else -1
        copy_metadata.give(tree, source, lower, st, staging.here, leaf, has_mode=mode if at_once else -1)
        flags = inode_flags.read_at(lower, b".")
        if flags:
            with FileFd(os.open(leaf, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=staging.fd())) as held:
                inode_flags.carry(held.fd, flags)
        if node.dead:
            up, name = staging.here, staging.orphan_name(node.nodeid)
        else:
            assert node.parent is not None
            assert node.parent.upper is not None
            up, name = node.parent.upper, node.name
        before = up.stat()
        new = os.stat(leaf, dir_fd=staging.fd(), follow_symlinks=False)
        if not node.dead and node.parent is not None:
            tree.hold_times(node.parent, before)
        staging.publish(leaf, up, name)
    except BaseException:
        staging.dispose(leaf)
        raise
    node.upper = up.child(name)
    node.upper.flags_mark = NO_FLAGS
    names.show(tree, node, st)
    node.no_xattrs = False  # as in _moved
    names.learn_empty(tree, node)
    enter(tree, node, lower.branch.path, DIRECTORY, since)
    if node.dead or node.parent is None:
        return node.upper
    tree.restore_times(up.fd(), before)
    names.copied_up(tree, node.parent, node.name, stat.S_IFDIR, new.st_ino, before)
    if tree.is_strict:
        _sync_dir(up)
    return node.upper


def _sync_dir(place: BranchDir) -> None:
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place.fd())
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def require_upper(tree: UnionState) -> None:
    """Raise EROFS without an upper."""
    if tree.upper is None:
        refuse(errno.EROFS)
