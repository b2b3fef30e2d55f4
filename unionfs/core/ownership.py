"""Set the owner, group and mode of upper objects, on disk or as an override.

Knows places and overrides; does not know nodes. Ids are those that the upper stores. Callers need not know how a branch
keeps them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from unionfs.core import acl
from unionfs.core.branch import BranchDir, Stat
from unionfs.core.ledger import NO_CAUSE
from unionfs.core.overrides import Overrides
from unionfs.core.union_state import UnionState
from unionfs.markers import Override
from unionfs.syscalls import files
from unionfs.syscalls.status import groups_of


def give(
    tree: UnionState,
    place: BranchDir,
    leaf: bytes,
    uid: int = -1,
    gid: int = -1,
    mode: int | None = None,
    fd: int | None = None,
) -> None:
    """Change owner (-1: not), group (-1: not) and mode of the object `leaf` in `place`; `fd` if it is an open file.

    Raises: EPERM, EINVAL for an owner that this process may not set, ENOSPC, EDQUOT.
    """
    overrides = place.branch.overrides
    if overrides is not None and _note(overrides, place, leaf, uid, gid, mode):
        return
    if (uid, gid) != (-1, -1):
        tree.chown(place.fd(), leaf, uid, gid)
    if mode is None:
        return
    if fd is not None:
        os.fchmod(fd, mode)
    else:
        files.chmod_nofollow(place.fd(), leaf, mode)


def _note(overrides: Overrides, place: BranchDir, leaf: bytes, uid: int, gid: int, mode: int | None) -> bool:
    """Change owner, group and mode by an override; False for objects that cannot have one."""
    on_disk = os.stat(leaf, dir_fd=place.fd(), follow_symlinks=False)
    if not stat.S_ISREG(on_disk.st_mode) and not stat.S_ISDIR(on_disk.st_mode):
        return False
    st = overrides.shown_stat(place, leaf, on_disk)
    kind = stat.S_IFMT(st.st_mode)
    device = (os.major(st.st_rdev), os.minor(st.st_rdev)) if kind in (stat.S_IFCHR, stat.S_IFBLK) else (0, 0)
    overrides.write(
        place,
        leaf,
        Override(
            st.st_uid if uid == -1 else uid,
            st.st_gid if gid == -1 else gid,
            stat.S_IMODE(st.st_mode if mode is None else mode),
            kind,
            device,
        ),
    )
    if mode is not None and kind != stat.S_IFLNK:
        acl.follow_mode(overrides, place, leaf, mode)
    return True


def clear_privileges(tree: UnionState, place: BranchDir, leaf: bytes, st: Stat, *, is_written: bool = False) -> None:
    """Clear set-user-id, set-group-id (of a group-executable file) and file capabilities of a file that has `st`, as
    chown(2) does, and a write by a process without CAP_FSETID (write(2), capabilities(7)). `is_written`: by such a
    write, which also clears set-group-id of a file without group execution, unless the process is in the group."""
    mode = stat.S_IMODE(st.st_mode)
    cleared = mode & ~stat.S_ISUID
    if mode & stat.S_ISGID and (mode & stat.S_IXGRP or (is_written and st.st_gid not in _writers_groups(tree))):
        cleared &= ~stat.S_ISGID
    if cleared != mode:
        give(tree, place, leaf, mode=cleared)
    if stat.S_ISREG(st.st_mode):
        overrides = place.branch.overrides
        name = "security.capability"
        for stored in (name,) if overrides is None else {name, overrides.stored_xattr(name)}:
            with contextlib.suppress(OSError):
                os.removexattr(b"/proc/self/fd/%d/%s" % (place.fd(), leaf), stored, follow_symlinks=False)


def _writers_groups(tree: UnionState) -> frozenset[int]:
    """The groups of the process whose request is served; of this one, which writes itself, when there is no request."""
    cause = tree.ledger.current_cause()
    return groups_of(os.getpid() if cause is NO_CAUSE else cause.pid)


def make_node(place: BranchDir, leaf: bytes, kind: int, rdev: int = 0) -> None:
    """Create a fifo, socket or device; a stand-in file if it cannot be made, or not be chowned. EPERM."""
    overrides = place.branch.overrides
    if overrides is None or not overrides.stands_in:
        try:
            os.mknod(leaf, kind | 0o600, rdev, dir_fd=place.fd())
            return
        except OSError as exc:
            if overrides is None or exc.errno != errno.EPERM:
                raise
    overrides.stand_in(place, leaf, kind, rdev)


def make_symlink(place: BranchDir, leaf: bytes, target: bytes) -> None:
    """Create a symlink, or a stand-in file that can have an owner. ENAMETOOLONG, ENOENT for an empty target."""
    overrides = place.branch.overrides
    if overrides is None or not overrides.stands_in:
        os.symlink(target, leaf, dir_fd=place.fd())
        return
    if not target or len(target) > 4095:
        code = errno.ENAMETOOLONG if target else errno.ENOENT
        raise OSError(code, os.strerror(code), os.fsdecode(leaf))
    overrides.stand_in(place, leaf, stat.S_IFLNK, target=target)
