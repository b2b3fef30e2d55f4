"""Copy the metadata of an object to its copy: extended attributes, owner, mode, ACLs, capabilities, times.

Knows places, not nodes and not content. Metadata that the user may not set, or that the filesystem does not support,
are left out, as by `cp -a`.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from unionfs import markers, posix_acl
from unionfs.core import inodes, ownership
from unionfs.core.attrs import IFDIR, IFLNK, IFMT, IFREG
from unionfs.core.branch import Branch, BranchDir, MadeStat, Stat
from unionfs.core.marks import path_at
from unionfs.core.union_state import UnionState

_LATE_XATTRS: Final = (posix_acl.ACCESS, posix_acl.DEFAULT, "security.capability")
"""Set after owner and mode, which would change or clear them (chown(2), chmod(2), capabilities(7))."""


def give(
    tree: UnionState,
    source: bytes | int,
    lower: BranchDir,
    st: Stat,
    place: BranchDir,
    leaf: bytes,
    fd: int | None = None,
    listed: list[str] | None = None,
    has_mode: int = -1,
) -> bool:
    """Give the new object `leaf` in `place` the metadata of the one with attributes `st` (in or at `lower`): extended
    attributes, owner, mode, ACLs, capabilities, times. `source`: the old object for the xattr calls (a descriptor, or
    the result of `path_at`); `listed`: the names of its attributes if they are known; `fd`: the new one if it is open.

    `has_mode`: the permissions with which it was made, to be kept unless there are ACLs. Returns whether they were
    kept.
    """
    target = fd if fd is not None else path_at(place, leaf)
    kind = st.st_mode & IFMT
    sealed = isinstance(st, MadeStat) and st.sealed
    late = []
    if listed is None:
        listed = list_xattrs(source) if lower.branch.has_xattrs else []
    for name in [] if sealed else listed:
        stored = _kept_as(lower.branch, place.branch, name)
        if stored is None:
            continue
        if stored in _LATE_XATTRS:
            late.append((name, stored))
        else:
            _copy_xattr(source, target, name, stored)
    if kind in (IFREG, IFDIR) and not sealed and not lower.branch.writable:
        _set_xattr(target, markers.ORIGIN_XATTR, inodes.origin_of(lower.branch, st))
    uid, gid = tree.owner(st, lower=True)
    keeps_mode = has_mode >= 0 and not late
    mode = None if keeps_mode or kind == IFLNK else st.st_mode & 0o7777
    if place.branch.overrides is None and uid == tree.euid and gid == tree.egid:
        uid = gid = -1
    if mode is not None or uid != -1 or gid != -1:
        ownership.give(tree, place, leaf, uid, gid, mode, fd)
    for name, stored in late:
        _copy_xattr(source, target, name, stored)
    times = (st.st_atime_ns, st.st_mtime_ns)
    if fd is not None:
        os.utime(fd, ns=times)
    else:
        os.utime(leaf, ns=times, dir_fd=place.fd(), follow_symlinks=False)
    return keeps_mode


def _set_xattr(target: bytes | int, name: str, value: bytes) -> None:
    if isinstance(target, int):
        os.setxattr(target, name, value)
    else:
        os.setxattr(target, name, value, follow_symlinks=False)


def list_xattrs(source: bytes | int) -> list[str]:
    """List the names of an object's extended attributes; none where they are not supported or may not be read."""
    try:
        return os.listxattr(source) if isinstance(source, int) else os.listxattr(source, follow_symlinks=False)
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.EACCES, errno.EPERM):
            return []
        raise


def _kept_as(source: Branch, target: Branch, name: str) -> str | None:
    """The name under which `target` stores the attribute `name` of `source`; None if it is not for users."""
    if source.overrides is not None:
        shown = source.overrides.shown_xattr(name)
    elif target.overrides is None and name == markers.OVERRIDE_XATTR:
        return name  # an override of a single file in an ordinary branch: the copy needs it, too
    else:
        shown = None if markers.is_private_xattr(name) else name
    if shown is None:
        return None
    if target.overrides is not None:
        return target.overrides.stored_xattr(shown)
    return None if markers.is_private_xattr(shown) else shown


def _copy_xattr(source: bytes | int, target: bytes | int, name: str, stored: str) -> None:
    """Copy one extended attribute, `stored` being its name at the target."""
    try:
        is_fd = isinstance(source, int)
        value = os.getxattr(source, name) if is_fd else os.getxattr(source, name, follow_symlinks=False)
    except OSError as exc:
        if exc.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM):
            return
        raise
    try:
        _set_xattr(target, stored, value)
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            raise
