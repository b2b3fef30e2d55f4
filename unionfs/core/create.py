"""Create: files of every kind, directories, symlinks, hard links, unnamed files.

An object that gets the right owner by itself is made in place, by one system call. One that needs another owner or an
opaque mark, or replaces a whiteout, is built in the staging directory and renamed. A whiteout file `.wh.NAME` beside
the new entry is removed last: the entry takes precedence, so a crash in between shows the new state.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import Final

from unionfs import markers
from unionfs.core import (
    acl,
    copyup,
    inode_flags,
    lookup,
    marks,
    names,
    owner_override,
    ownership,
    placement,
    sparse_copyup,
)
from unionfs.core.attrs import ATTRIBUTES, IFCHR, IFDIR, IFLNK, IFMT, IFREG, Caller
from unionfs.core.branch import BranchDir
from unionfs.core.fds import FileFd
from unionfs.core.lookup import Resolved
from unionfs.core.node import DirNode, FileNode
from unionfs.core.union_state import UnionState, refuse
from unionfs.syscalls import files

_PERM: Final = 0o7777
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_open: Final = os.open  # compiled code has no need to look it up at each call
_fstat: Final = os.fstat


def check_new_name(tree: UnionState, parent: DirNode, name: bytes) -> None:
    """Refuse a name that cannot be created. EROFS, ENAMETOOLONG, EINVAL for reserved names, ENOENT in a removed
    directory, EEXIST, EPERM in an immutable one."""
    lookup.check_name(name)
    placement.require_upper(tree)
    if markers.is_reserved(name):
        refuse(errno.EINVAL, name)
    if parent.dead:
        refuse(errno.ENOENT, name)
    if name in parent.children:
        refuse(errno.EEXIST, name)
    if lookup.is_visible(tree, parent, name):
        refuse(errno.EEXIST, name)
    inode_flags.refuse_new_entry(parent, name)


def make_file(tree: UnionState, parent: DirNode, name: bytes, mode: int, rdev: int, caller: Caller) -> Resolved:
    """Create anything but a directory or symlink (mknod(2)); a mode without a type makes a regular file. A device 0:0
    is refused with EPERM, since it would be a whiteout."""
    kind = mode & IFMT or IFREG
    check_new_name(tree, parent, name)
    if kind == IFCHR and rdev == 0:
        refuse(errno.EPERM, name)
    if kind in (IFDIR, IFLNK):
        refuse(errno.EINVAL, name)
    up = placement.ensure_dir(tree, parent)
    held: FileFd | None = None
    if _in_place(tree, up, caller):
        tree.set_umask(caller.umask)
        try:
            if kind == IFREG:
                held = FileFd(_create(tree, up.fd(), name, mode & _PERM), writable=True)
            else:
                os.mknod(name, kind | (mode & _PERM), rdev, dir_fd=up.fd())
        except FileExistsError:
            _require_whiteout(up, name)
        else:
            return _new_file_node(tree, parent, name, held)

    build = partial(_build_node, tree, kind, rdev)
    return _new_file_node(tree, parent, name, _stage(tree, up, name, mode & _PERM, caller, build))


def _build_node(tree: UnionState, kind: int, rdev: int, dir_fd: int, name: bytes) -> FileFd | None:
    if kind == IFREG:
        return FileFd(_create(tree, dir_fd, name, 0o600), writable=True)
    ownership.make_node(tree.staging.here, name, kind, rdev)
    return None


def _create(tree: UnionState, dir_fd: int, name: bytes, mode: int) -> int:
    return _open(name, _CREATE | tree.noatime_flag, mode, dir_fd=dir_fd)


def make_symlink(tree: UnionState, parent: DirNode, name: bytes, target: bytes, caller: Caller) -> Resolved:
    """Make a symlink (symlink(2)). ENAMETOOLONG for a target of PATH_MAX or more, ENOENT for an empty one."""
    check_new_name(tree, parent, name)
    up = placement.ensure_dir(tree, parent)
    if _in_place(tree, up, caller):
        try:
            os.symlink(target, name, dir_fd=up.fd())
            return _new_file_node(tree, parent, name, None)
        except FileExistsError:
            _require_whiteout(up, name)
    _stage(tree, up, name, None, caller, partial(_build_symlink, tree, target))
    return _new_file_node(tree, parent, name, None)


def _build_symlink(tree: UnionState, target: bytes, dir_fd: int, name: bytes) -> FileFd | None:
    ownership.make_symlink(tree.staging.here, name, target)
    return None


def make_directory(tree: UnionState, parent: DirNode, name: bytes, mode: int, caller: Caller) -> Resolved:
    """Create a directory (mkdir(2)). It is opaque if the lowers have its name and the upper hides that."""
    check_new_name(tree, parent, name)
    opaque = lookup.find_low(parent, name) is not None
    up = placement.ensure_dir(tree, parent)
    made = False
    if not opaque and _in_place(tree, up, caller):
        tree.set_umask(caller.umask)
        try:
            os.mkdir(name, mode & _PERM, dir_fd=up.fd())
            made = True
        except FileExistsError:
            _require_whiteout(up, name)
    if not made:
        _stage(tree, up, name, mode & _PERM, caller, partial(_build_directory, tree, opaque), is_dir=True)
    st = up.stat_entry(name)
    ino = tree.inodes.shown(up.branch.fs_index, st.st_ino)
    place = up.child(name)
    place.flags_mark = marks.NO_FLAGS
    node = DirNode(tree.nodes.new_id(), parent, name, place, None, ino)
    tree.nodes.add(node)
    _clear_whiteout(parent, name)
    names.added(tree, parent, name, stat.S_IFDIR, st.st_ino)
    names.learn_empty(tree, node)
    return Resolved(node, st)


def _build_directory(tree: UnionState, opaque: bool, dir_fd: int, name: bytes) -> FileFd | None:
    os.mkdir(name, 0o700, dir_fd=dir_fd)
    if opaque:
        place = tree.staging.here.child(name)
        marks.set_opaque(marks.proc_path(place.fd()), place.fd(), tree.options.whiteout)
        tree.fds.drop(place)
    return None


def make_link(tree: UnionState, node: FileNode, parent: DirNode, name: bytes) -> None:
    """Create a hard link to a file (link(2)). EMLINK as the branch limits it; a lower file is copied up first."""
    check_new_name(tree, parent, name)
    copyup.ensure(tree, node, need=ATTRIBUTES)
    sparse_copyup.keep_source(tree, node)
    up = placement.ensure_dir(tree, parent)
    staging = tree.staging
    try:
        os.link(node.leaf, name, src_dir_fd=node.home.fd(), dst_dir_fd=up.fd(), follow_symlinks=False)
    except FileExistsError:
        _require_whiteout(up, name)
        leaf = staging.new_name()
        os.link(node.leaf, leaf, src_dir_fd=node.home.fd(), dst_dir_fd=staging.fd(), follow_symlinks=False)
        os.rename(leaf, name, src_dir_fd=staging.fd(), dst_dir_fd=up.fd())
    _clear_whiteout(parent, name)
    st = up.stat_entry(name)
    names.added(tree, parent, name, stat.S_IFMT(st.st_mode), st.st_ino)
    tree.nodes.register_inode(node, (st.st_dev, st.st_ino))
    links = node.rare()
    orphan = None
    parent.children[name] = node
    if links.dead:
        links.dead = False
        node.parent, node.name = parent, name
        if node.home is staging.here:
            orphan = node.leaf
            node.home, node.leaf = up, name
    else:
        links.others.append((parent, name))
    tree.nodes.renamed(node)
    if orphan is not None:  # after the record has the name: the next daemon must find one of the two
        staging.dispose(orphan)
    tree.record_own_change(node)


def make_unnamed(tree: UnionState, parent: DirNode, mode: int, caller: Caller) -> FileNode:
    """Create a regular file without a name (open(2), O_TMPFILE), in the staging directory, where it stays until it is
    linked or forgotten."""
    placement.require_upper(tree)
    inode_flags.refuse_new_entry(parent, b"")
    up = placement.ensure_dir(tree, parent)
    staging = tree.staging
    nodeid = tree.nodes.new_id()
    leaf = staging.orphan_name(nodeid)
    with inode_flags.inherited(staging.here, up):
        held = FileFd(_create(tree, staging.fd(), leaf, 0o600), writable=True)
    _give_owner_and_mode(tree, up, leaf, mode & _PERM, caller, is_dir=False)
    st = os.stat(leaf, dir_fd=staging.fd(), follow_symlinks=False)
    ino = tree.inodes.shown(up.branch.fs_index, st.st_ino)
    node = FileNode(nodeid, parent, leaf, staging.here, leaf, ino, st.st_mode)
    node.rare().dead = True
    node.rare().large = True  # it may grow large before it is removed
    tree.nodes.add(node)
    tree.fds.keep(node, held)
    return node


# -- shared by the above ---------------------------------------------------------------------------------------------


def _in_place(tree: UnionState, up: BranchDir, caller: Caller) -> bool:
    """Whether an entry made in place by this process gets the owner and group that it must have."""
    if caller.uid != tree.euid or up.branch.overrides is not None:
        return False
    return caller.gid == tree.egid or bool(up.stat().st_mode & stat.S_ISGID)


def _require_whiteout(up: BranchDir, name: bytes) -> None:
    """Raise EEXIST unless the entry `name` is a whiteout, which it must be since the name is not visible."""
    st = up.stat_entry(name)
    if not marks.is_whiteout(up, name, st):
        refuse(errno.EEXIST, name)


def _stage(
    tree: UnionState,
    up: BranchDir,
    name: bytes,
    mode: int | None,
    caller: Caller,
    build: Callable[[int, bytes], FileFd | None],
    *,
    is_dir: bool = False,
) -> FileFd | None:
    """Build an object in the staging directory, set owner, mode and inherited ACL, and rename it into place."""
    staging = tree.staging
    leaf = staging.new_name()
    try:
        with inode_flags.inherited(staging.here, up):
            held = build(staging.fd(), leaf)
        _give_owner_and_mode(tree, up, leaf, mode, caller, is_dir=is_dir)
        place_over_whiteout(tree, leaf, up, name, is_dir=is_dir)
    except BaseException:
        staging.dispose(leaf)
        raise
    return held


def place_over_whiteout(tree: UnionState, leaf: bytes, up: BranchDir, name: bytes, *, is_dir: bool) -> None:
    """Rename `leaf` of the staging directory to `name`, where there is nothing or a whiteout."""
    staging = tree.staging
    try:
        owner_override.rename(staging.here, leaf, up, name, files.RENAME_NOREPLACE)
        return
    except OSError as exc:
        if exc.errno not in (errno.EEXIST, errno.EINVAL, errno.ENOSYS):
            raise
        if exc.errno == errno.EEXIST:
            _require_whiteout(up, name)
    if is_dir and _is_there(up, name):
        owner_override.rename(staging.here, leaf, up, name, files.RENAME_EXCHANGE)
        staging.dispose(leaf)
    else:
        owner_override.rename(staging.here, leaf, up, name)


def _is_there(up: BranchDir, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=up.fd(), follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _give_owner_and_mode(
    tree: UnionState, up: BranchDir, leaf: bytes, mode: int | None, caller: Caller, *, is_dir: bool
) -> None:
    """Set owner, group, mode and ACLs of a new object, by the rules of mkdir(2), open(2) and acl(5). `mode` None: a
    symlink."""
    parent = up.stat()
    inherits = bool(parent.st_mode & stat.S_ISGID)
    gid = parent.st_gid if inherits else caller.gid
    here = tree.staging.here
    if mode is None:
        if up.branch.overrides is not None or (caller.uid, gid) != (tree.euid, tree.egid):
            ownership.give(tree, here, leaf, caller.uid, gid)
        return
    default = acl.read_default(up)
    wanted = mode & ~caller.umask if default is None else mode
    if is_dir and inherits:
        wanted |= stat.S_ISGID
    if default is not None:
        wanted = acl.inherit(here, leaf, default, wanted, is_dir=is_dir)
    if up.branch.overrides is None and (caller.uid, gid) == (tree.euid, tree.egid):
        ownership.give(tree, here, leaf, mode=wanted)
    else:
        ownership.give(tree, here, leaf, caller.uid, gid, wanted)


def _clear_whiteout(parent: DirNode, name: bytes) -> None:
    """Remove `.wh.NAME`, unless it is known not to exist."""
    up = parent.upper
    assert up is not None
    if parent.low is None or (parent.up_names is not None and name not in parent.hidden):
        return
    marks.clear_aufs_whiteout(up, name)


def _new_file_node(tree: UnionState, parent: DirNode, name: bytes, held: FileFd | None) -> Resolved:
    """Make the node of the object just created at `name`, and remember the name."""
    _clear_whiteout(parent, name)
    up = parent.upper
    assert up is not None
    st = _fstat(held.fd) if held is not None and up.branch.overrides is None else up.stat_entry(name)
    ino = tree.inodes.shown(up.branch.fs_index, st.st_ino)
    node = FileNode(tree.nodes.new_id(), parent, name, up, name, ino, st.st_mode)
    tree.nodes.add(node)
    if held is not None:
        tree.fds.keep(node, held)
    names.added(tree, parent, name, st.st_mode & IFMT, st.st_ino)
    return Resolved(node, st)
