"""How a layer is unpacked and what came of it; and owners, extended attributes, modes and times, put on in the order
that keeps them all.

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
from layers.fingerprint import Print, Recorder, xattrs_digest
from layers.limits import Limits
from layers.safe_open import Directories, Path
from unionfs import markers

AUFS: Final = "aufs"
OVERLAY: Final = "overlay"


_UNKNOWN: Final = Digest("")


@dataclass(frozen=True, slots=True)
class Options:
    """How a layer is unpacked."""

    owners: str = owners.MAPPED
    dialect: str = AUFS  # of the marks that whiteouts become
    limits: Limits = field(default_factory=Limits)
    tell: Callable[[int], None] | None = None  # is told of compressed bytes as they are read


class Left(NamedTuple):
    """What a layer leaves to those beneath it."""

    directories: dict[Path, int]  # passed through, not described -> the latest time of what was put in
    links: dict[Path, Path]  # further names of files that the layer does not have


@dataclass(slots=True)
class Unpacked:
    """What came out of a layer. Filled by `unpack` and `settle` only."""

    diff_id: Digest = _UNKNOWN
    tar_size: int = 0
    count: int = 0  # entries
    size: int = 0  # bytes of files
    open: Left = field(default_factory=lambda: Left({}, {}))
    dropped_xattrs: set[str] = field(default_factory=set)  # attributes that could not be, or must not be, kept


class Described(NamedTuple):
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
        recorder.add(path, Print("d", mode, uid, gid, described.mtime_ns, "", xattrs_digest(kept)))


def chown(where: int | str | bytes, uid: int, gid: int, dir_fd: int | None = None) -> None:
    try:
        os.chown(where, uid, gid, dir_fd=dir_fd, follow_symlinks=dir_fd is None)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        why = f"owner {uid}:{gid} is not among the ids that this user has (subuid(5))"
        raise OSError(errno.EINVAL, why) from None


def note(where: int | str, override: owners.Override) -> dict[str, bytes]:
    """Say beside a file or directory what it should be; what was set. Raises: OSError."""
    value = owners.write(override)
    os.setxattr(where, owners.XATTR, value)
    return {owners.XATTR: value}


def set_xattrs(
    where: int | str, xattrs: dict[str, bytes], dropped: set[str], *, every: bool = False
) -> dict[str, bytes]:
    """Set attributes; what was set. The union's own marks and other policies' labels are left out unless `every`."""
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
    """Whether an attribute from a tar is set: no mark of a union, no label of a security policy but capabilities."""
    if markers.is_private_xattr(name):
        return False
    return not name.startswith("security.") or name == "security.capability"


def write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]
