"""Whiteouts and opaque marks on a branch: find them, place them, clear them. The I/O side of `unionfs.markers`.

Knows branches. Does not know nodes or which branch hides which. Reads every dialect; writes
the one given.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final, NamedTuple

from unionfs import markers
from unionfs.core.branch import BranchDir, Stat
from unionfs.core.fds import FileFd
from unionfs.core.owner_override import OwnerOverride, read_xattr_as_owner

_listxattr: Final = os.listxattr  # compiled code has no need to look it up at each call

AUFS = "aufs"
OVERLAY = "overlay"
FUSE_OVERLAYFS = "fuse-overlayfs"  # overlay's, plus the opaque file beside each opaque attribute


class DirMarks(NamedTuple):
    """The marks of a directory. `redirect` is None or a sane redirect value."""

    opaque: bool
    redirect: bytes | None


NO_MARKS = DirMarks(False, None)
NO_FLAGS: Final = -2
"""Of BranchDir.flags_mark: the directory has no such mark."""


def proc_path(fd: int) -> str:
    """Return a path to the object behind an O_PATH descriptor, for calls without an *at form (open(2), O_PATH)."""
    return f"/proc/self/fd/{fd}"


def path_at(place: BranchDir, leaf: bytes) -> bytes:
    """Return a path to `leaf` in `place`, for calls without an *at form that do not follow symlinks."""
    return b"/proc/self/fd/%d/%s" % (place.fd(), leaf)


def read_dir_marks(place: BranchDir, *, bottom: bool = False) -> DirMarks:
    """Read the marks on and in the directory `place`; `bottom`: no branch beneath has its name, so an opaque file
    matters only to its redirect."""
    if place.sealed:
        return NO_MARKS
    if place.recorded is not None and not place.recorded.has_marks:
        place.flags_mark = NO_FLAGS
        return DirMarks(markers.OPAQUE_NAME in place.recorded.names, None)
    fd = place.fd()
    opaque = False
    redirect = None
    path = proc_path(fd)
    try:
        names = os.listxattr(path) if place.branch.has_xattrs else []
        place.flags_mark = NO_FLAGS if markers.FLAGS_XATTR not in names else -1
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EACCES, errno.EPERM):
            raise
        names = []
    for name in names:
        if name in markers.OPAQUE_XATTRS:
            value = private_xattr(path, name, on_upper=place.branch.writable)
            if value == b"y":
                opaque = True
            elif value == b"x":
                place.has_xattr_whiteouts = True
        elif name in markers.REDIRECT_XATTRS:
            value = private_xattr(path, name, on_upper=place.branch.writable)
            is_better = redirect is None or name == markers.REDIRECT_XATTRS[0]  # whatever order they are listed in
            if is_better and value is not None and markers.is_sane_redirect(value):
                redirect = value
    if not opaque and (redirect is not None or not bottom):
        with OwnerOverride(place):
            opaque = _exists(fd, markers.OPAQUE_NAME)
    return DirMarks(opaque, redirect)


def flags_mark(place: BranchDir) -> int | None:
    """Return the inode flags that a directory's mark says; None without one."""
    if place.flags_mark == -1:
        value = private_xattr(proc_path(place.fd()), markers.FLAGS_XATTR, on_upper=place.branch.writable)
        place.flags_mark = NO_FLAGS if value is None else int(value) if value.isdigit() else 0
    return None if place.flags_mark == NO_FLAGS else place.flags_mark


def private_xattr(path: str, name: str, *, on_upper: bool) -> bytes | None:
    """Read one of the union's own attributes, or return None. `on_upper`: in the upper, where an attribute that the
    object's mode makes unreadable is read as its owner."""
    try:
        try:
            return os.getxattr(path, name)
        except PermissionError:
            if not on_upper:
                raise
            return read_xattr_as_owner(path, name)
    except OSError as exc:
        if exc.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM):
            return None
        raise


def _exists(dir_fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except (FileNotFoundError, PermissionError):
        return False
    return True


def has_aufs_whiteout(place: BranchDir, name: bytes) -> bool:
    """Whether `.wh.NAME` stands beside `name` in `place`."""
    mark = markers.whiteout_name(name)
    return mark is not None and not place.sealed and not place.lacks(mark) and _exists(place.fd(), mark)


def is_whiteout(place: BranchDir, name: bytes, st: Stat) -> bool:
    """Whether the entry `name` of `place` is itself a whiteout (device or attribute form)."""
    if markers.is_whiteout_device(st):
        return True
    if place.has_xattr_whiteouts and st.st_size == 0 and stat.S_ISREG(st.st_mode):
        return _has_any_xattr(place, name, markers.WHITEOUT_XATTRS)
    return False


def _has_any_xattr(place: BranchDir, name: bytes, wanted: tuple[str, ...]) -> bool:
    if not place.branch.has_xattrs:
        return False
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.fd())
    try:
        return any(present in wanted for present in xattr_names(fd))
    finally:
        os.close(fd)


def xattr_names(fd: int) -> list[str]:
    """List the extended attributes of the object behind an O_PATH descriptor; none where they are not supported."""
    try:
        return os.listxattr(proc_path(fd))
    except OSError:
        return []


def is_metacopy(place: BranchDir, name: bytes) -> bool:
    """Whether a regular file has only its attributes here and its data in a branch beneath."""
    return _has_any_xattr(place, name, markers.METACOPY_XATTRS)


def is_partial(place: BranchDir, name: bytes) -> bool:
    """Whether a metacopy file has some data of its own (see core.partial): only the union that wrote it can read it."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.fd())
    try:
        return any(
            private_xattr(proc_path(fd), mark, on_upper=place.branch.writable) == markers.METACOPY_PARTIAL
            for mark in markers.METACOPY_XATTRS
        )
    finally:
        os.close(fd)


def is_metacopy_fd(held: FileFd) -> bool:
    """As `is_metacopy`, for an open file of a lower. Stores its attribute names in `held.xattrs`."""
    try:
        listed = held.xattrs = _listxattr(held.fd)
    except OSError:
        return False
    if not listed:  # as most
        return False
    return any(present in markers.METACOPY_XATTRS for present in listed)


def metacopy_redirect(place: BranchDir, name: bytes) -> bytes | None:
    """Return the redirect of a metacopy file; None: its data are at the same path beneath."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.fd())
    try:
        for xattr in markers.REDIRECT_XATTRS:
            value = private_xattr(proc_path(fd), xattr, on_upper=place.branch.writable)
            if value is not None and markers.is_sane_redirect(value):
                return value
    finally:
        os.close(fd)
    return None


def place_aufs_whiteout(place: BranchDir, name: bytes) -> bool:
    """Create `.wh.NAME` in `place`; False if that name is too long. An entry `name` beside it stays visible."""
    mark = markers.whiteout_name(name)
    if mark is None:
        return False
    with contextlib.suppress(FileExistsError):
        os.mknod(mark, stat.S_IFREG | 0o444, dir_fd=place.fd())
    return True


def clear_aufs_whiteout(place: BranchDir, name: bytes) -> None:
    """Remove `.wh.NAME` from `place` if it exists. Never raises: the new entry beside it takes precedence anyway."""
    mark = markers.whiteout_name(name)
    if mark is not None:
        with contextlib.suppress(OSError):
            os.unlink(mark, dir_fd=place.fd())


def make_node_whiteout(dir_fd: int, name: bytes) -> bool:
    """Create the whiteout device `name`. False if the filesystem, the user (mknod(2): EPERM) or a seccomp filter does
    not allow it."""
    try:
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=dir_fd)
    except OSError as exc:
        if exc.errno in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            return False
        raise
    return True


def set_opaque(path: str, dir_fd: int, dialect: str) -> None:
    """Mark the directory opaque; `path` and `dir_fd` name the same directory, the latter may be O_PATH."""
    if dialect != OVERLAY:
        with contextlib.suppress(FileExistsError):
            os.mknod(markers.OPAQUE_NAME, stat.S_IFREG | 0o444, dir_fd=dir_fd)
    if dialect != AUFS:
        set_opaque_xattr(path)


def set_opaque_xattr(path: str) -> None:
    """Mark the directory opaque by attribute: trusted.* if permitted, as the kernel's overlay reads it, else user.*."""
    set_trusted_or_user(path, "overlay.opaque", b"y")


def set_trusted_or_user(path: str, suffix: str, value: bytes) -> None:
    """Set `trusted.SUFFIX`, or `user.SUFFIX` without the privilege, and remove `user.SUFFIX` in the first case."""
    try:
        os.setxattr(path, "trusted." + suffix, value)
    except PermissionError:
        os.setxattr(path, "user." + suffix, value)
        return
    with contextlib.suppress(OSError):
        os.removexattr(path, "user." + suffix)


def clear_marks(dir_fd: int) -> None:
    """Remove every mark from the directory `dir_fd` (not O_PATH), so that rmdir can succeed. Real entries are left
    alone."""
    with os.scandir(dir_fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if markers.is_reserved(name) or _is_mark(entry):
                os.unlink(name, dir_fd=dir_fd)


def _is_mark(entry: os.DirEntry[str]) -> bool:
    if entry.is_symlink() or entry.is_dir(follow_symlinks=False):
        return False
    st = entry.stat(follow_symlinks=False)
    return markers.is_whiteout_device(st) or (stat.S_ISREG(st.st_mode) and st.st_size == 0)
