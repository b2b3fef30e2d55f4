"""Apply a directory's default ACL to new objects, and a changed mode to ACLs in override attributes.

On a branch with overrides both ACL and mode are in override attributes, so the filesystem does not keep them in step.
The format of ACLs is in `unionfs.posix_acl`.
"""

from __future__ import annotations

import errno
import os

from unionfs.core.branch import BranchDir
from unionfs.core.marks import proc_path
from unionfs.core.overrides import Overrides
from unionfs.posix_acl import ACCESS, DEFAULT, apply_mode, says_more, with_mode
from unionfs.syscalls import files


def read_default(place: BranchDir) -> bytes | None:
    """Read the default ACL of a directory; None if it has none or its filesystem does not support ACLs."""
    overrides = place.branch.overrides
    path = os.fsencode(proc_path(place.fd()))
    for name in (DEFAULT,) if overrides is None else (overrides.stored_xattr(DEFAULT), DEFAULT):
        try:
            value = files.find_xattr(path, os.fsencode(name), follow=True)
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            value = None
        if value is not None:
            return value
    return None


def follow_mode(overrides: Overrides, place: BranchDir, leaf: bytes, mode: int) -> None:
    """Adapt the ACL of `leaf` in its override attribute, if it has one, to its new mode."""
    path, name = b"/proc/self/fd/%d/%s" % (place.fd(), leaf), overrides.stored_xattr(ACCESS)
    if name == ACCESS:
        return
    try:
        before = os.getxattr(path, name, follow_symlinks=False)
    except OSError as exc:
        if exc.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return
        raise
    after = with_mode(before, mode)
    if after != before:
        os.setxattr(path, name, after, follow_symlinks=False)


def inherit(place: BranchDir, leaf: bytes, default: bytes, mode: int, *, is_dir: bool) -> int:
    """Set the ACLs of `leaf` from the default ACL of its directory, `default`. Returns the resulting mode."""
    access, kept = apply_mode(default, mode)
    overrides = place.branch.overrides
    fd = os.open(leaf, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.fd())
    try:
        if is_dir:
            os.setxattr(proc_path(fd), DEFAULT if overrides is None else overrides.stored_xattr(DEFAULT), default)
        if overrides is None or not overrides.may_cover(os.fstat(fd)):
            os.setxattr(proc_path(fd), ACCESS, access)
        elif says_more(access):
            os.setxattr(proc_path(fd), overrides.stored_xattr(ACCESS), access)
    finally:
        os.close(fd)
    return kept
