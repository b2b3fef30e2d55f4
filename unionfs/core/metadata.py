"""Attributes: mode, owner, size, times, and extended attributes, of which the union's own are hidden."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import NamedTuple

from unionfs import markers, posix_acl
from unionfs.core import copyup, fill, inode_flags, names, ownership, placement
from unionfs.core.attrs import ATTRIBUTES, DATA, NOW, WHOLE, AttrChange
from unionfs.core.branch import Branch, BranchDir
from unionfs.core.fds import FileFd
from unionfs.core.marks import path_at
from unionfs.core.node import DirNode, FileNode, Node
from unionfs.core.owners import OwnerTranslation
from unionfs.core.union_state import UnionState, refuse
from unionfs.syscalls import files, statx
from unionfs.syscalls.statx import ExtendedStat

_NS = 1_000_000_000
_AS_STORED = OwnerTranslation()
_ACLS = (os.fsencode(posix_acl.ACCESS), os.fsencode(posix_acl.DEFAULT))
_LISTED = (b"user.", b"trusted.", b"security.capability", *_ACLS)
"""Prefixes of attributes that listxattr(2) lists on every filesystem; others, such as a label, may exist without being
listed."""


def setattr_node(tree: UnionState, node: Node, change: AttrChange) -> None:
    """Change attributes (chmod(2), chown(2), truncate(2), utimensat(2)). EROFS, EPERM, EISDIR, EINVAL, ENOSPC,
    EFBIG."""
    placement.require_upper(tree)
    if change.size is not None:
        if isinstance(node, DirNode):
            refuse(errno.EISDIR)
        _truncate(tree, node, change.size, kill_priv=change.kill_priv)
    has_mode = False
    despite = inode_flags.APPEND if _is_touch(change) else 0
    if isinstance(node, DirNode):
        inode_flags.refuse_change(node, despite)
        up = placement.ensure_dir(tree, node)
        names.show(tree, node, None)
        place, name = (up.parent, up.name) if up.parent is not None else (up, b".")
    else:
        owner_stays = change.uid is None and change.gid is None  # else it is changed first, and clears set-id bits
        wanted = change.mode & 0o7777 if change.mode is not None and owner_stays else None
        has_mode = copyup.ensure(tree, node, None, wanted, despite, ATTRIBUTES)
        place, name = node.home, node.leaf
    if change.uid is not None or change.gid is not None:
        owners = tree.owners or _AS_STORED
        uid = owners.users.stored(change.uid) if change.uid is not None else -1
        gid = owners.groups.stored(change.gid) if change.gid is not None else -1
        give_away(tree, node, uid, gid)
    elif change.kill_priv and isinstance(node, FileNode) and change.size is None:
        drop_privileges(tree, node)
    if change.mode is not None and not has_mode:
        held = node.held if isinstance(node, FileNode) and (node.links is None or node.links.data is None) else None
        ownership.give(tree, place, name, mode=stat.S_IMODE(change.mode), fd=held.fd if held is not None else None)
    if change.atime_ns is not None or change.mtime_ns is not None:
        files.set_times(place.fd(), name, _timespec(change.atime_ns), _timespec(change.mtime_ns))
    tree.record_own_change(node)


def _is_touch(change: AttrChange) -> bool:
    """Whether append-only files allow the change: it sets times to now (utimensat(2)) or drops privileges."""
    return (
        change.mode is None and change.uid is None and change.gid is None and change.size is None
        and change.atime_ns in (None, NOW) and change.mtime_ns in (None, NOW)
    )  # fmt: skip


def give_away(tree: UnionState, node: Node, uid: int, gid: int) -> None:
    """Change owner and group, in ids as stored, -1: unchanged (chown(2)). EPERM, EINVAL. Preconditions: the node is
    copied up."""
    if isinstance(node, DirNode):
        up = node.upper
        assert up is not None
        place, name = (up.parent, up.name) if up.parent is not None else (up, b".")
    else:
        place, name = node.home, node.leaf
    ownership.give(tree, place, name, uid, gid)
    if place.branch.overrides is not None and isinstance(node, FileNode):
        # The filesystem does this itself only when the owner on disk changes.
        ownership.clear_privileges(tree, node.home, node.leaf, tree.stat(node))


def _timespec(time_ns: int | None) -> tuple[int, int]:
    if time_ns is None:
        return 0, files.UTIME_OMIT
    if time_ns == NOW:
        return 0, files.UTIME_NOW
    return divmod(time_ns, _NS)


def _truncate(tree: UnionState, node: FileNode, size: int, *, kill_priv: bool) -> None:
    st = tree.stat(node)
    if size < 0 or not stat.S_ISREG(st.st_mode):
        refuse(errno.EINVAL)
    is_truncated = not node.is_up and size < st.st_size  # only the truncated part is copied up
    copyup.ensure(tree, node, size, need=DATA)
    if node.links is not None and node.links.partial is not None:
        fill.truncate(tree, node, size)
    elif not is_truncated:
        os.ftruncate(tree.write_fd(node).fd, size)
    if kill_priv:
        drop_privileges(tree, node)


def drop_privileges(tree: UnionState, node: FileNode) -> None:
    """Clear set-user-id, set-group-id (of a group-executable file) and file capabilities, as a write by a
    process without CAP_FSETID does (chmod(2), write(2), capabilities(7)). Preconditions: the node is copied up."""
    ownership.clear_privileges(tree, node.home, node.leaf, tree.stat(node), is_written=True)


def _xattr_path(node: Node) -> tuple[bytes, bool]:
    """Return a path to the object for the xattr calls, which have no *at form, and whether its last part is to be
    followed: true for a descriptor's own path (proc(5)), false for a name below one."""
    if isinstance(node, FileNode):
        if not node.leaf:  # removed externally
            refuse(errno.ESTALE, node.name)
        return path_at(node.home, node.leaf), False
    return b"/proc/self/fd/%d" % _place_of(node).fd(), True


def _place_of(node: DirNode) -> BranchDir:
    """Return the branch directory whose attributes the merged directory shows."""
    place = node.upper if node.upper is not None else node.low.stack[0] if node.low is not None else None
    assert place is not None
    return place


def _is_sealed(node: Node) -> bool:
    return isinstance(node, DirNode) and node.upper is None and node.low is not None and node.low.stack[0].sealed


def _branch(node: Node) -> Branch:
    """Return the branch that holds the node's attributes."""
    return node.home.branch if isinstance(node, FileNode) else _place_of(node).branch


class Place(NamedTuple):
    """Where a node is."""

    path: bytes  # in the union, from its root, without a slash before it: one of its paths, or the last it had
    branch: str  # the directory, as the options name it, of the branch that holds it; of a directory, the topmost
    is_directory: bool
    is_up: bool  # whether that branch is the upper


def place_of(tree: UnionState, node: Node) -> Place:
    """Where a node is now. Hard links in the index are in the upper."""
    branch = _branch(node)
    is_up = branch.writable and tree.upper is not None
    path = tree.upper.path if is_up and tree.upper is not None else branch.path
    return Place(placement.path_of(node), path, isinstance(node, DirNode), is_up)


def _is_covered(node: FileNode) -> bool:
    """Whether the object on disk can carry override attributes."""
    overrides = node.home.branch.overrides
    return overrides is not None and overrides.may_cover(
        os.stat(node.leaf, dir_fd=node.home.fd(), follow_symlinks=False)
    )


def _stored(branch: Branch, name: bytes, code: int) -> str:
    """Return the name under which the branch stores an attribute of users. Raises `code` for the union's own names."""
    text = os.fsdecode(name)
    overrides = branch.overrides
    stored = text if overrides is None or text.startswith(markers.OVERRIDE_PREFIX) else overrides.stored_xattr(text)
    if stored == text and markers.is_private_xattr(text):
        refuse(code, name)
    return stored


def _refuse_as_special(tree: UnionState, node: Node, name: bytes, code: int) -> None:
    """Refuse attributes that special files and symlinks cannot have (xattr(7)), for stand-in files, and for objects
    that become such when copied up: `user.` attributes (`code`), ACLs of symlinks (EOPNOTSUPP)."""
    if isinstance(node, DirNode):
        return
    if _branch(node).overrides is None and (tree.upper is None or tree.upper.overrides is None):
        return
    kind = stat.S_IFMT(tree.stat(node).st_mode)
    if kind != stat.S_IFREG and name.startswith(b"user."):
        refuse(code, name)
    if kind == stat.S_IFLNK and name in _ACLS:
        refuse(errno.EOPNOTSUPP, name)


def getxattr(tree: UnionState, node: Node, name: bytes) -> bytes:
    """Return the value of an extended attribute (getxattr(2)). ENODATA, EOPNOTSUPP."""
    value = find_xattr(tree, node, name)
    if value is None:
        refuse(errno.ENODATA, name)
    return value


def find_xattr(tree: UnionState, node: Node, name: bytes) -> bytes | None:
    """As `getxattr`, but None for a missing attribute."""
    stored = _stored(_branch(node), name, errno.ENODATA)
    _refuse_as_special(tree, node, name, errno.ENODATA)
    if _is_sealed(node) or (node.no_xattrs and name.startswith(_LISTED) and _may_have_user_xattrs(node)):
        return None
    value = _read_xattr(tree, node, os.fsencode(stored))
    if value is None:
        text = os.fsdecode(name)
        if stored == text or markers.is_private_xattr(text):
            return None
        value = _read_xattr(tree, node, name)  # stored on the branch under its own name
    if value is not None and tree.owners is not None and name in _ACLS:
        return posix_acl.translated(value, tree.owners.users.shown, tree.owners.groups.shown)
    return value


def _may_have_user_xattrs(node: Node) -> bool:
    """Whether the node is a regular file or a directory (xattr(7)): symlinks and special files have errors of their
    own."""
    return not isinstance(node, FileNode) or node.has_data


def _read_xattr(tree: UnionState, node: Node, name: bytes) -> bytes | None:
    try:
        return _read_xattr_of_branch(node, name)
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:
            raise
        # A filesystem without such attributes has none: the same answer as after a list. For an ACL the kernel asks
        # before each access and refuses it on any error.
        if name.startswith(_LISTED) and _may_have_user_xattrs(node):
            return None
        if name in _ACLS and not stat.S_ISLNK(tree.stat(node).st_mode):
            return None
        raise


def _read_xattr_of_branch(node: Node, name: bytes) -> bytes | None:
    if not _branch(node).has_xattrs:
        return None
    if isinstance(node, FileNode) and node.held is not None and (node.links is None or node.links.data is None):
        return files.find_xattr(node.held.fd, name)
    path, follow = _xattr_path(node)
    return files.find_xattr(path, name, follow=follow)


def listxattr(node: Node) -> list[bytes]:
    """List the names of the extended attributes that users may see (listxattr(2)).

    A node without any remembers it until it changes or its attributes are given out again: programs that copy ask
    several times, and then for attributes by name.
    """
    if node.no_xattrs or _is_sealed(node) or not _branch(node).has_xattrs:
        return []
    path, follow = _xattr_path(node)
    try:
        listed = os.listxattr(path, follow_symlinks=follow)
    except OSError as exc:
        if exc.errno == errno.EOPNOTSUPP:
            return []
        raise
    overrides = _branch(node).overrides
    if overrides is None:
        found = [os.fsencode(name) for name in listed if not markers.is_private_xattr(name)]
    else:
        shown = map(overrides.shown_xattr, listed)
        found = [os.fsencode(name) for name in dict.fromkeys(shown) if name is not None]
    node.no_xattrs = not found
    return found


def setxattr(tree: UnionState, node: Node, name: bytes, value: bytes, flags: int) -> None:
    """Set an extended attribute (setxattr(2)); `flags` may be XATTR_CREATE or XATTR_REPLACE. EEXIST, ENODATA, ENOSPC,
    EPERM for the union's own names."""
    if tree.owners is not None and name in _ACLS:
        value = posix_acl.translated(value, tree.owners.users.stored, tree.owners.groups.stored)
    placement.require_upper(tree)
    stored = _stored(tree.staging.branch, name, errno.EPERM)
    _refuse_as_special(tree, node, name, errno.EPERM)
    _bring_up(tree, node)
    node.no_xattrs = False
    path, follow = _xattr_path(node)
    if stored != os.fsdecode(name) and name in _ACLS:
        if isinstance(node, FileNode) and not _is_covered(node):
            stored = os.fsdecode(name)
        elif value:
            posix_acl.check(value)
            if name == _ACLS[1] and isinstance(node, FileNode):
                refuse(errno.EACCES, name)
    if stored != os.fsdecode(name) and name == _ACLS[0]:
        mode = stat.S_IMODE(tree.stat(node).st_mode)
        wanted = posix_acl.mode_of(value, mode)
        if wanted != mode:
            setattr_node(tree, node, AttrChange(mode=wanted))
        if not posix_acl.says_more(value):
            with contextlib.suppress(OSError):
                os.removexattr(path, stored, follow_symlinks=follow)
            tree.record_own_change(node)
            return
    os.setxattr(path, stored, value, flags, follow_symlinks=follow)
    tree.record_own_change(node)


def removexattr(tree: UnionState, node: Node, name: bytes) -> None:
    """Remove an extended attribute (removexattr(2)). ENODATA, EPERM for the union's own names."""
    text = os.fsdecode(name)
    if tree.upper is None or tree.upper.overrides is None:
        _stored(_branch(node), name, errno.EPERM)
    placement.require_upper(tree)
    _refuse_as_special(tree, node, name, errno.EPERM)
    inode_flags.refuse_change(node)
    is_acl = text.startswith("system.posix_acl_")
    if not is_acl:  # removing a missing ACL succeeds
        if text.startswith("user.") and isinstance(node, FileNode) and not stat.S_ISREG(tree.stat(node).st_mode):
            refuse(errno.EPERM, name)
        if not _branch(node).writable:  # nothing is copied up for a missing one
            getxattr(tree, node, name)
    _bring_up(tree, node)
    path, follow = _xattr_path(node)
    stored = _stored(_branch(node), name, errno.EPERM)
    if stored == text or (is_acl and isinstance(node, FileNode) and not _is_covered(node)):
        os.removexattr(path, name, follow_symlinks=follow)
        tree.record_own_change(node)
        return
    gone = False
    for each in (stored, text):
        try:
            if each == text and markers.is_private_xattr(text):
                continue
            os.removexattr(path, each, follow_symlinks=follow)
            gone = True
        except OSError as exc:
            if exc.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise
    if not gone and not is_acl:
        refuse(errno.ENODATA, name)
    tree.record_own_change(node)


def _bring_up(tree: UnionState, node: Node, despite: int = 0, need: int = ATTRIBUTES) -> None:
    placement.require_upper(tree)
    if isinstance(node, DirNode):
        inode_flags.refuse_change(node, despite)
        placement.ensure_dir(tree, node)
        names.show(tree, node, None)
    else:
        copyup.ensure(tree, node, despite=despite, need=need)


def extended_stat(node: Node) -> ExtendedStat:
    """Return the birth time and attributes of the node's present object (statx(2)). For a copied-up file that is the
    time of the copy-up."""
    if _is_sealed(node):
        return ExtendedStat(None, 0, 0)
    if isinstance(node, FileNode):
        found = statx.extended_stat(node.home.fd(), node.leaf) if node.leaf else ExtendedStat(None, 0, 0)
    else:
        found = statx.extended_stat(_place_of(node).fd(), b"")
        found = found._replace(attributes=found.attributes | inode_flags.enforced(node))
    return found._replace(attributes=found.attributes & statx.ATTR_OF_FILES, known=found.known & statx.ATTR_OF_FILES)


def get_flags(tree: UnionState, node: Node, command: int) -> bytes:
    """Return the inode's flags (ioctl_iflags(2)); `command` is in files.FLAG_READS. ENOTTY for anything but files and
    directories, or where there are no flags."""
    with _flags_fd(tree, node) as held:
        return inode_flags.with_protection(command, files.get_flags(held.fd, command), inode_flags.enforced(node))


def set_flags(tree: UnionState, node: Node, command: int, flags: bytes) -> None:
    """Set the inode's flags; `command` is in files.FLAG_WRITES. The kernel has checked the caller. ENOTTY, EOPNOTSUPP,
    EPERM, EROFS."""
    protection = inode_flags.enforced(node)
    if protection & inode_flags.IMMUTABLE and files.protection_in(command, flags) & inode_flags.IMMUTABLE:
        if inode_flags.are_equal(flags, get_flags(tree, node, inode_flags.read_command(command))):
            return
        refuse(errno.EPERM, node.name)  # as ext4 and xfs do: what stays immutable cannot be changed
    _bring_up(tree, node, inode_flags.PROTECTED, WHOLE)  # filling it later might be refused
    with _flags_fd(tree, node) as held:
        if isinstance(node, DirNode) and node.upper is not None and node.low is not None:
            inode_flags.set_of_merged(node.upper, held.fd, command, flags)
        else:
            files.set_flags(held.fd, command, flags)
    if isinstance(node, FileNode):
        node.held = None  # opened anew at the next use: the new flags may forbid writing
    elif node.upper is not None:
        node.upper.inheritable = -1
    tree.record_own_change(node)


def _flags_fd(tree: UnionState, node: Node) -> FileFd:
    if isinstance(node, FileNode):
        if not stat.S_ISREG(tree.stat(node).st_mode):
            refuse(errno.ENOTTY)
        return tree.upper_fd(node) if node.is_up else tree.read_fd(node)
    if _is_sealed(node):
        refuse(errno.ENOTTY)
    return FileFd(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=_place_of(node).fd()))
