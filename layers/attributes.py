"""Options and result of unpacking a layer; setting owner, extended attributes, mode and time in an order in which none
undoes another.

Knows system calls, noted owners and fingerprints. Does not know tars.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from layers import owners
from layers.digest import Digest
from layers.entry import DIRECTORY
from layers.fingerprint import Fingerprint, Recorder, xattrs_digest
from layers.limits import Limits
from layers.safe_open import Directories, Path
from unionfs import markers

AUFS: Final = "aufs"
OVERLAY: Final = "overlay"


_UNKNOWN: Final = Digest("")


@dataclass(frozen=True, slots=True)
class Options:
    """Options of unpacking a layer."""

    owners: str = owners.MAPPED
    dialect: str = AUFS  # of the marks that whiteouts become
    limits: Limits = field(default_factory=Limits)
    on_read: Callable[[int], None] | None = None  # called with the number of compressed bytes of each read


class Unresolved(NamedTuple):
    """The parts of a layer that can be completed only when the layers beneath are known."""

    directories: dict[Path, int]  # without an entry of their own -> the latest mtime_ns of the entries in them
    links: dict[Path, Path]  # hard links to files that the layer does not have: link -> target


@dataclass(slots=True)
class Unpacked:
    """The result of unpacking a layer. Filled by `unpack` and `resolve_parents` only."""

    diff_id: Digest = _UNKNOWN
    tar_size: int = 0
    count: int = 0  # entries
    size: int = 0  # bytes of files
    unresolved: Unresolved = field(default_factory=lambda: Unresolved({}, {}))
    dropped_xattrs: set[str] = field(default_factory=set)  # names of attributes that could not, or must not, be set


class Described(NamedTuple):
    """The metadata that an entry gives a directory."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: tuple[tuple[str, bytes], ...]


def finish_directory(
    tree: Directories,
    path: Path,
    described: Described,
    options: Options,
    recorder: Recorder | None,
    dropped: set[str],
) -> None:
    """Set the metadata of a directory, after everything in it was made, and record its fingerprint."""
    fd = tree.fd(path)
    mode, uid, gid = described.mode, described.uid, described.gid
    xattrs = dict(described.xattrs)
    noted = {}
    if options.owners == owners.NOTED:
        noted = note(fd, owners.Override(uid, gid, mode, DIRECTORY))
        mode = mode & 0o777 | 0o700
        uid, gid = os.geteuid(), os.getegid()
    else:
        chown(fd, uid, gid)
    kept = set_xattrs(fd, xattrs, dropped) | noted
    os.fchmod(fd, mode)
    os.utime(fd, ns=(described.mtime_ns, described.mtime_ns))
    if recorder is not None:
        recorder.add(path, Fingerprint("d", mode, uid, gid, described.mtime_ns, "", xattrs_digest(kept)))


def chown(where: int | str | bytes, uid: int, gid: int, dir_fd: int | None = None) -> None:
    """Like os.chown; with `dir_fd` no symlink is followed. EINVAL says which ids are not mapped."""
    try:
        os.chown(where, uid, gid, dir_fd=dir_fd, follow_symlinks=dir_fd is None)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        why = f"owner {uid}:{gid} is not among the ids that this user has (subuid(5))"  # EINVAL: no such id here
        raise OSError(errno.EINVAL, why) from None


def note(where: int | str, override: owners.Override) -> dict[str, bytes]:
    """Record owner, mode, type and device of a file in its attribute; returns the attribute. Raises: OSError."""
    value = owners.write(override)
    os.setxattr(where, owners.XATTR, value)
    return {owners.XATTR: value}


def set_xattrs(
    where: int | str, xattrs: dict[str, bytes], dropped: set[str], *, every: bool = False
) -> dict[str, bytes]:
    """Set extended attributes; returns those that were set, and adds the names of the others to `dropped`.

    Without `every` the marks of unions and the labels of security policies are dropped.
    """
    kept = {}
    for name, value in xattrs.items():
        if not every and not _may_be_kept(name):
            dropped.add(name)
            continue
        try:
            os.setxattr(where, name, value)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            dropped.add(name)
        else:
            kept[name] = value
    return kept


def _may_be_kept(name: str) -> bool:
    """Whether an attribute of a tar is set: not if it is a union's mark or a security label, but for capabilities."""
    if markers.is_private_xattr(name):
        return False
    return not name.startswith("security.") or name == "security.capability"
