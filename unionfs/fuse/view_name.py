"""The name under which the view of a union's lowers is found: a digest of all that the view's content depends on.

A daemon with a writable union and a command that is to mount a read-only one make the name by the same rules, each from
what it has opened itself. Where the names are equal, the union that the command would mount is the view.

A lower is known by its mount and its inode number: the same directory by another mount may have other owners
(id-mapped mounts). Lowers beneath the top that are empty and have no attributes are left out, since they show nothing:
podman adds one to the stack of a single layer.
"""

from __future__ import annotations

import os
from _blake2 import blake2b  # hashlib imports OpenSSL, which takes as long as mounting
from collections.abc import Iterable
from typing import Final

from unionfs.core.options import Options
from unionfs.fuse.mounting import FSTYPE, MountOptions
from unionfs.fuse.options import ServeOptions
from unionfs.syscalls import mountinfo

PREFIX: Final = b".unionfs-view-"
"""Prefix of the views' names, in the root directory of a union."""

ASKED: Final = b"user" + PREFIX
"""Prefix of an extended attribute of a union's root, followed by the rest of the view's name; no listing has it. Its
value: when the union was last asked for (fuse.view_offer), in nanoseconds of the monotonic clock."""

_RULES: Final = 1
"""Changes with the meaning of a view's content or of the digest: another version of this program may serve the
union."""


def view_name(root_fds: Iterable[int], union: Options, serve: ServeOptions, mount: MountOptions) -> bytes:
    """Return the name of the view of the lowers whose root directories are open as `root_fds`, top first, shown as the
    options say. Raises: OSError when a lower cannot be read."""
    lowers: list[tuple[int, int]] = []
    for fd in root_fds:
        if not lowers or not _is_empty(fd):
            lowers.append((mountinfo.fd_mount_id(fd), os.fstat(fd).st_ino))
    shown = (
        union.owners,
        union.unmapped_as_root,
        union.owners_kept,
        union.static_nlink,
        union.hidden,
        union.without_xattrs,
    )
    served = (
        union.skip_unreadable,
        serve.timeout_s,
        serve.acls,
        serve.xattrs,
        mount.source,
        mount.allow_other is not False,
    )
    text = repr((_RULES, lowers, shown, served))
    return PREFIX + blake2b(text.encode(errors="surrogateescape"), digest_size=20).hexdigest().encode()


def is_view(there: mountinfo.Mount) -> bool:
    """Whether a mount is a view: the mount table has the name as its root."""
    return there.fstype == FSTYPE and there.root.startswith(f"/{os.fsdecode(PREFIX)}")


def _is_empty(fd: int) -> bool:
    with os.scandir(f"/proc/self/fd/{fd}") as entries:
        if next(entries, None) is not None:
            return False
    return not [name for name in os.listxattr(f"/proc/self/fd/{fd}") if not name.startswith("security.")]
