"""Overrides: owner, mode and type that a file cannot have on disk, kept in an extended attribute.

On disk everything belongs to the daemon's user, who can read it; owner, mode and type are in the attribute
(`markers.Override`). Devices, fifos, sockets and symlinks cannot carry one: if they cannot be chowned either, ordinary
files stand in for them, an empty one for a device, fifo or socket, one that holds the target for a symlink.

The root of a branch says whether it has overrides. Knows branches, not nodes. Not called for branches without them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

from unionfs import markers
from unionfs.core.branch import Branch, BranchDir, MadeStat, Stat
from unionfs.markers import Override
from unionfs.syscalls import files

PRIVILEGED: Final = (markers.OVERRIDE_PRIVILEGED_XATTR,)
"""The attributes of xattr_permissions=1: the first is written, all are read."""
USER: Final = (markers.OVERRIDE_XATTR, markers.OVERRIDE_OLD_XATTR)
"""Those of xattr_permissions=2."""

SHARED: Final = 0o755
"""The least mode on disk, as in fuse-overlayfs: other users can read the branch."""
PRIVATE: Final = 0o700
"""The least mode on disk when only the daemon's user may read the branch."""

_ROOT: Final = b"0:0:555"  # on the root of an upper without lowers that have overrides; as fuse-overlayfs writes it
_HAVE_ONE: Final = (stat.S_IFREG, stat.S_IFDIR)
_ABSENT: Final = (errno.ENODATA, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM)
_ACL: Final = "system.posix_acl_"
_TARGET_MAX: Final = 4095  # bytes of a symlink (symlink(2), PATH_MAX)


class Overrides:
    """The overrides of one branch, or of an upper and its work directory."""

    def __init__(self, xattrs: tuple[str, ...], floor: int = SHARED) -> None:
        self.xattrs = xattrs  # immutable: the attributes that may hold them; the first is written
        self.floor = floor  # immutable: the least mode on disk
        # Set once by core.union_state: files cannot be chowned, so devices, symlinks ... are made as stand-in files.
        self.stands_in = False

    # -- reading ---------------------------------------------------------------------------------------------------

    def of(self, place: BranchDir, name: bytes) -> Override | None:
        """Read the override of the entry `name` of `place`; None if it has none or a malformed one."""
        return self._of(b"/proc/self/fd/%d/%s" % (place.fd(), name), follow=False)

    def _of(self, path: bytes, *, follow: bool) -> Override | None:
        for xattr in self.xattrs:
            value = _get(path, xattr, follow=follow)
            if value is not None:
                return markers.read_override(value)
        return None

    @staticmethod
    def may_cover(st: os.stat_result) -> bool:
        """Whether an object with `st` on disk can have an override."""
        return stat.S_IFMT(st.st_mode) in _HAVE_ONE

    def shown_stat(self, place: BranchDir, name: bytes, st: os.stat_result) -> Stat:
        """Return the attributes of the entry `name` of `place`, which has `st` on disk, with its override applied."""
        if stat.S_IFMT(st.st_mode) not in _HAVE_ONE:
            return st
        override = self.of(place, name)
        return st if override is None else _changed(st, override)

    def shown_stat_of_fd(self, fd: int) -> Stat:
        """Return the attributes of the file or directory behind a descriptor, with its override applied."""
        st = os.fstat(fd)
        override = self._of(_proc(fd), follow=True)
        return st if override is None else _changed(st, override)

    def kind_of(self, place: BranchDir, name: bytes) -> int:
        """Return the S_IFMT bits of an entry that is an ordinary file on disk, with its override applied."""
        override = self.of(place, name)
        return stat.S_IFREG if override is None or override.kind in (0, stat.S_IFDIR) else override.kind

    def readlink(self, place: BranchDir, leaf: bytes) -> bytes:
        """Read the target of a symlink or of its stand-in file. EINVAL for anything else."""
        try:
            return os.readlink(leaf, dir_fd=place.fd())
        except OSError as exc:
            if exc.errno != errno.EINVAL or self.kind_of(place, leaf) != stat.S_IFLNK:
                raise
        fd = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place.fd())
        try:
            return os.read(fd, _TARGET_MAX)
        finally:
            os.close(fd)

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, place: BranchDir, name: bytes, override: Override) -> None:
        """Write the override of the entry `name` of `place`, an ordinary file or a directory, and set its mode on disk
        to the same without set-id bits, plus `floor`. ENOSPC, EDQUOT."""
        path = b"/proc/self/fd/%d/%s" % (place.fd(), name)
        xattr, *older = self.xattrs
        os.setxattr(path, xattr, markers.write_override(override), follow_symlinks=False)
        for other in older:
            with contextlib.suppress(OSError):
                os.removexattr(path, other, follow_symlinks=False)
        files.chmod_nofollow(place.fd(), name, override.mode & 0o777 | self.floor)

    def stand_in(self, place: BranchDir, leaf: bytes, kind: int, rdev: int = 0, target: bytes = b"") -> None:
        """Create a stand-in file for a symlink, fifo, socket or device. The caller then sets its owner."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(leaf, flags, 0o600, dir_fd=place.fd())
        try:
            while target:
                target = target[os.write(fd, target) :]
            override = Override(0, 0, 0o777, kind, (os.major(rdev), os.minor(rdev)))
            os.setxattr(fd, self.xattrs[0], markers.write_override(override))
        finally:
            os.close(fd)

    # -- other attributes ------------------------------------------------------------------------------------------

    def stored_xattr(self, name: str) -> str:
        """Return the name under which the branch stores an attribute that users call `name`."""
        if self.xattrs == USER or name.startswith(_ACL):
            return markers.set_aside(name) or name
        return name

    def shown_xattr(self, name: str) -> str | None:
        """Return the users' name of the attribute that the branch stores as `name`; None: it is hidden from them."""
        if self.xattrs == USER or name.startswith(markers.OVERRIDE_PREFIX + _ACL):
            return markers.shown_xattr(name)
        return None if markers.is_private_xattr(name) else name


def detect(branch: Branch) -> bytes | None:
    """Detect whether a branch has overrides. Returns the one of its root; None: it has none."""
    if not branch.has_xattrs:
        return None
    path = _proc(branch.root.fd())
    for xattrs in (PRIVILEGED, USER):
        for xattr in xattrs:
            value = _get(path, xattr, follow=True)
            if value is not None:
                branch.overrides = Overrides(xattrs)
                return value
    return None


def mark(upper: Branch, xattrs: tuple[str, ...], floor: int, value: bytes | None) -> Overrides:
    """Enable overrides in `xattrs` for an upper; `value` is written to its root if that has none yet.

    Raises: OSError as setxattr(2) does, EPERM for PRIVILEGED without the privilege.
    """
    path = _proc(upper.root.fd())
    if all(_get(path, xattr, follow=True) is None for xattr in xattrs):
        if value is None:
            st = os.fstat(upper.root.fd())
            as_it_is = Override(st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode), stat.S_IFDIR)
            value = _ROOT if floor == SHARED else markers.write_override(as_it_is)
        os.setxattr(path, xattrs[0], value)
    upper.overrides = Overrides(xattrs, floor)
    return upper.overrides


def can_give_away(place: BranchDir, leaf: bytes) -> bool:
    """Whether this process may chown files to other users. `leaf` is a free name in `place` for a test directory."""
    os.mkdir(leaf, 0o700, dir_fd=place.fd())  # even a full disk usually has room for an empty directory
    try:
        os.chown(leaf, 1, 1, dir_fd=place.fd(), follow_symlinks=False)
    except OSError:
        return False
    finally:
        os.rmdir(leaf, dir_fd=place.fd())
    return True


def _changed(st: os.stat_result, override: Override) -> Stat:
    kind, rdev, size = stat.S_IFMT(st.st_mode), st.st_rdev, st.st_size
    if kind == stat.S_IFREG and override.kind not in (0, stat.S_IFDIR, stat.S_IFREG):
        kind = override.kind
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            rdev = os.makedev(*override.device)
        if kind != stat.S_IFLNK:
            size = 0
    return MadeStat(
        kind | override.mode, st.st_ino, st.st_dev, st.st_nlink, override.uid, override.gid, rdev, size,
        st.st_blocks, st.st_blksize, st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns,
    )  # fmt: skip


def _get(path: bytes, name: str, *, follow: bool) -> bytes | None:
    """Read an attribute; None if it is missing. `follow` only for a descriptor's own path (proc(5)), not below it."""
    try:
        return os.getxattr(path, name, follow_symlinks=follow)
    except OSError as exc:
        if exc.errno in _ABSENT:
            return None
        raise


def _proc(fd: int) -> bytes:
    return b"/proc/self/fd/%d" % fd
