"""Inode flags (ioctl_iflags(2), chattr(1)): changes that the flags of lowers forbid, and flags that a copy-up carries
over.

The upper's filesystem enforces the flags of files and directories that exist in the upper alone. A directory with lower
content must not have the flags immutable and append-only on disk, or nothing in it could be copied up: there the union
enforces the lower's flags, until a user sets other ones, which a mark on the upper's directory records. The flags of a
lower file count until it is copied up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import sys
from collections.abc import Iterator
from typing import Final

from unionfs import markers
from unionfs.core import marks
from unionfs.core.branch import Branch, BranchDir
from unionfs.core.fds import FileFd
from unionfs.core.node import DirNode, FileNode, Node
from unionfs.core.union_state import refuse
from unionfs.syscalls import files, statx

IMMUTABLE: Final = files.IMMUTABLE
APPEND: Final = files.APPEND
PROTECTED: Final = IMMUTABLE | APPEND

_CARRIED: Final = (0x1, 0x2, 0x4, 0x8, 0x40, 0x80, 0x400, 0x8000, 0x10000, 0x20000, 0x800000)
"""The flags s, u, c, S, d, A, m, t, D, T and C of chattr(1), which any owner may set where the filesystem has them."""
_OF_INTEREST: Final = PROTECTED | sum(_CARRIED)

_ioctl: Final = fcntl.ioctl  # compiled code has no need to look it up at each call
_flags_in: Final = struct.Struct("=I").unpack_from
_room: Final = bytearray(8)


def enforced(node: Node) -> int:
    """Return the PROTECTED flags that the union must enforce for a node, since no object of the upper has them."""
    if isinstance(node, FileNode):
        if node.home.branch.writable or not node.leaf:
            return 0
        return _protection(node.home, node.leaf)
    if node.upper is not None:
        marked = marks.flags_mark(node.upper)
        if marked is not None:
            return marked & PROTECTED
    low = node.low
    if low is None:
        return 0
    if low.protection < 0:
        place = low.stack[0]
        marked = None if place.sealed else marks.flags_mark(place)
        low.protection = 0 if place.sealed else _protection(place, b"") | (marked or 0) & PROTECTED
    return low.protection


def of_file(node: FileNode) -> int:
    """Return the PROTECTED flags of a file, wherever it is."""
    return _protection(node.home, node.leaf) if node.leaf else 0


def _protection(place: BranchDir, leaf: bytes) -> int:
    return statx.attributes(place.fd(), leaf) & PROTECTED if _has_flags(place.branch) else 0


def _has_flags(branch: Branch) -> bool:
    """Whether a branch's filesystem has inode flags. Erofs has none, and calls all files immutable in statx(2)."""
    if branch.has_flags is None:
        branch.has_flags = False
        try:
            fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=branch.root.fd())
        except OSError:
            return False
        try:
            files.inode_flags(fd)
            branch.has_flags = True
        except OSError:
            pass
        finally:
            os.close(fd)
    return branch.has_flags


def set_of_merged(up: BranchDir, fd: int, command: int, flags: bytes) -> None:
    """Set the flags of an open directory of the upper that has lower content, the PROTECTED ones by a mark. Raises as
    files.set_flags does."""
    files.set_flags(fd, command, _without_protection(command, flags))
    protection = files.protection_in(command, flags)
    os.setxattr(fd, markers.FLAGS_XATTR, b"%d" % protection)
    up.flags_mark = protection


def refuse_change(node: Node, despite: int = 0) -> None:
    """Refuse a change of a node's attributes. EPERM; flags in `despite` do not forbid it."""
    if enforced(node) & ~despite:
        refuse(errno.EPERM, node.name)


def refuse_new_entry(parent: DirNode, name: bytes) -> None:
    """Refuse a new name in a directory (EPERM)."""
    if enforced(parent) & IMMUTABLE:
        refuse(errno.EPERM, name)


def refuse_removal(parent: DirNode, name: bytes, node: Node) -> None:
    """Refuse to remove a name of `node` from a directory (EPERM). The upper's filesystem protects names that the upper
    has, but of a copied-up file with several names the upper may lack some."""
    if enforced(parent) or enforced(node):
        refuse(errno.EPERM, name)
    if isinstance(node, FileNode) and node.is_up and _is_indexed(node) and of_file(node):
        refuse(errno.EPERM, name)


def _is_indexed(node: FileNode) -> bool:
    return node.links is not None and node.links.key is not None


def refuse_open(node: FileNode, flags: int) -> bool:
    """Refuse an open(2) that a file's flags forbid, as the kernel does on other filesystems (EPERM). Returns whether it
    opens an append-only file for writing."""
    writes = flags & os.O_ACCMODE != os.O_RDONLY
    if not writes and not flags & os.O_TRUNC:
        return False
    found = of_file(node)
    if found & IMMUTABLE or (found & APPEND and (flags & os.O_TRUNC or not flags & os.O_APPEND)):
        refuse(errno.EPERM, node.name)
    return found != 0


def read(branch: Branch, fd: int) -> int:
    """Return the PROTECTED and the carried flags of an open file or directory; 0 where the filesystem has none."""
    if not _has_flags(branch):
        return 0
    try:
        _ioctl(fd, files.GETFLAGS, _room)  # as files.inode_flags, in a fifth of the time
    except OSError:
        return 0
    found: int = _flags_in(_room)[0]
    return found & _OF_INTEREST


def read_at(place: BranchDir, leaf: bytes) -> int:
    """As `read`, for a file or directory that is opened for it; if that is not permitted, the PROTECTED flags only."""
    if place.sealed or not _has_flags(place.branch):
        return 0
    try:
        with FileFd(
            os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place.fd())
        ) as held:
            return read(place.branch, held.fd)
    except PermissionError:
        return statx.attributes(place.fd(), leaf) & PROTECTED


def carry(fd: int, flags: int, wanted: int = 0) -> None:
    """Set those of `flags` that a copy keeps, and of the PROTECTED ones those in `wanted`, as far as the filesystem and
    the kernel let us."""
    kept = [bit for bit in _CARRIED if flags & bit] + [bit for bit in (IMMUTABLE, APPEND) if flags & wanted & bit]
    if kept and not _add(fd, sum(kept)):
        for bit in kept:
            _add(fd, bit)


def _add(fd: int, bits: int) -> bool:
    try:
        files.set_inode_flags(fd, files.inode_flags(fd) | bits)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def lifted(place: BranchDir, leaf: bytes) -> Iterator[None]:
    """Take the PROTECTED flags, with which link(2) is refused, from a file of the upper while it is given a name there.
    Raises OSError."""
    if not _protection(place, leaf):
        yield
        return
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with FileFd(os.open(leaf, flags, dir_fd=place.fd())) as held:
        before = files.inode_flags(held.fd)
        files.set_inode_flags(held.fd, before & ~PROTECTED)
        try:
            yield
        finally:
            files.set_inode_flags(held.fd, before)


@contextlib.contextmanager
def inherited(staging: BranchDir, up: BranchDir) -> Iterator[None]:
    """While this context lasts, give the staging directory the flags of `up`, so that objects made in it inherit the
    flags that they would inherit in `up`: only the filesystem knows which ones. Raises OSError."""
    if up.inheritable < 0:
        up.inheritable = read_at(up, b".") & ~PROTECTED
    if not up.inheritable:
        yield
        return
    with FileFd(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=staging.fd())) as held:
        before = files.inode_flags(held.fd)
        carry(held.fd, up.inheritable)
        try:
            yield
        finally:
            files.set_inode_flags(held.fd, before)


def read_command(command: int) -> int:
    """Return the ioctl(2) that reads what `command`, of files.FLAG_WRITES, sets."""
    return next(read for read, size in files.FLAG_READS.items() if size == files.FLAG_WRITES[command])


def are_equal(flags: bytes, others: bytes) -> bool:
    """Whether two arguments of one ioctl(2) set the same. The count of extents in struct fsxattr is read-only."""
    return flags[:8] == others[:8] and flags[12:] == others[12:]


def with_protection(command: int, flags: bytes, protection: int) -> bytes:
    """Return the result of an ioctl(2) with PROTECTED flags added."""
    if not protection:
        return flags
    if files.FLAG_READS[command] != 4:
        protection = (files.XFLAG_IMMUTABLE if protection & IMMUTABLE else 0) | (
            files.XFLAG_APPEND if protection & APPEND else 0
        )
    first = int.from_bytes(flags[:4], sys.byteorder) | protection
    return first.to_bytes(4, sys.byteorder) + flags[4:]


def _without_protection(command: int, flags: bytes) -> bytes:
    protection = PROTECTED if files.FLAG_WRITES[command] == 4 else files.XFLAG_IMMUTABLE | files.XFLAG_APPEND
    first = int.from_bytes(flags[:4], sys.byteorder) & ~protection
    return first.to_bytes(4, sys.byteorder) + flags[4:]
