"""What a new object inherits of its directory's default ACL, and ACLs kept aside that follow a changed mode.

On a branch with overrides an ACL is kept aside, and so is the mode, which the filesystem therefore does not keep in
step. The form of ACLs is `unionfs.posix_acl`'s.
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
    """The default ACL of a directory, or None if it has none or its filesystem knows none."""
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
    """Let the ACL of `leaf`, if it has one kept aside, agree with its new mode."""
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
    """Give `leaf` what `default` says and return the mode that results."""
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
