"""Names and encodings of marks in every supported dialect: whiteouts, opaque directories, redirects, and overrides.

An override holds the owner, mode and type that a file has in the union where the branch cannot store them. Pure names
and values; imports no other module of the project and touches no file. `core.marks` reads and writes the marks.

Sources: OCI image specification, layer.md ("Whiteouts"); AUFS (`.wh.` names); Linux
Documentation/filesystems/overlayfs.rst ("whiteouts and opaque directories", "Nesting overlayfs mounts",
"redirect_dir", "Metadata only copy up"); fuse-overlayfs(1), `xattr_permissions`; containers/storage, `override_stat`.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

NAME_MAX: Final = 255
"""Longest file name in bytes (limits.h). The kernel may send longer ones to a FUSE daemon."""

WHITEOUT_PREFIX: Final = b".wh."
"""`.wh.NAME` hides NAME in all branches below. Names with this prefix are reserved and never shown."""

OPAQUE_NAME: Final = b".wh..wh..opq"
"""A file of this name makes its directory opaque: directories below it are not merged with it."""

OPAQUE_XATTRS: Final = ("trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque")
"""Extended attributes that mark an opaque directory with the value `y`. The value `x` only announces that the directory
may contain WHITEOUT_XATTRS."""

REDIRECT_XATTRS: Final = ("trusted.overlay.redirect", "user.overlay.redirect")
"""On a directory: the location of its lower content, as `/path` from the root of the lower branches or as the name of
a sibling."""

WHITEOUT_XATTRS: Final = ("trusted.overlay.whiteout", "user.overlay.whiteout")
"""On an empty regular file in a directory whose opaque attribute is `x`: a whiteout of the file's own name."""

METACOPY_XATTRS: Final = ("trusted.overlay.metacopy", "user.overlay.metacopy")
"""On a regular file: this file has the attributes only, the data are in a branch below."""

METACOPY_PARTIAL: Final = b"\x01"
"""Value of the metacopy attribute of a file that has a part of its data (core.partial). The kernel's are empty, or 4
bytes and more."""

ORIGIN_XATTR: Final = "user.unionfs.origin"
"""On a copied-up file or directory: the lower object it came from, as `FSID-INO` in hexadecimal (see core.inodes)."""

PARTIAL_XATTR: Final = "user.unionfs.partial"
"""On a file of the upper whose data are, in whole or in part, still a lower file's (see core.partial)."""

NAMES_XATTR: Final = "user.unionfs.names"
"""On the root of a frozen branch of a container: the names in it (core.frozen_names)."""

FLAGS_XATTR: Final = "user.unionfs.flags"
"""On a directory of the upper with lower content whose inode flags a user has set, so that the lower's flags no longer
count: which of immutable and append-only the union enforces, as a decimal number (core.inode_flags)."""

OVERRIDE_XATTR: Final = "user.containers.override_stat"
"""Owner, mode, type and device that a file has in the union, as containers/storage and fuse-overlayfs
(xattr_permissions=2) store them."""

OVERRIDE_OLD_XATTR: Final = "user.fuseoverlayfs.override_stat"
"""The same, as fuse-overlayfs before 1.12 wrote it."""

OVERRIDE_PRIVILEGED_XATTR: Final = "security.fuseoverlayfs.override_stat"
"""The same, where only privileged users may write it (xattr_permissions=1)."""

OVERRIDE_PREFIX: Final = "user.containers.override_"
"""Prefix under which users' attributes are stored that the branch cannot store, or must not, by their own names
(`set_aside`)."""

OWNER_XATTR: Final = b"security.unionfs.owner"
"""In a union that shows one owner for all files but stores the real ones: `UID:GID` as stored; setting it changes the
stored owner, as chown(2)."""

DEVICE_XATTR: Final = b"security.unionfs.device"
"""Setting it on a directory of such a union makes a device in it, as mknod(2): `UID:GID:MODE:TYPE/NAME`."""

IDENTITY_LIMIT: Final = 10
"""RLIMIT_LOCKS (getrlimit(2): "not used since Linux 2.4"). With one id, its soft value encodes the emulated
uid and gid of a process (`pack_identity`): it is inherited as ids are, and the supervisor can set it."""

PRIVATE_PREFIXES: Final = (
    "user.unionfs.",
    "trusted.unionfs.",
    "trusted.overlay.",
    "user.overlay.",
    "user.fuseoverlayfs.",
    OVERRIDE_PREFIX,
    "security.fuseoverlayfs.",
    "security.unionfs.",
)
"""Prefixes of extended attributes that belong to the union itself and are never shown or set through it."""


def is_reserved(name: bytes) -> bool:
    """Whether `name` is reserved for marks."""
    return name.startswith(WHITEOUT_PREFIX)


def whiteout_name(name: bytes) -> bytes | None:
    """Return the AUFS whiteout of `name`, or None if that would be longer than NAME_MAX."""
    return WHITEOUT_PREFIX + name if len(name) <= NAME_MAX - len(WHITEOUT_PREFIX) else None


def hidden_name(mark: bytes) -> bytes | None:
    """Return the name that the AUFS whiteout `mark` hides; None for the bare `.wh.` and for `.wh..wh.*`, which hide
    nothing.

    Preconditions: `is_reserved(mark)`.
    """
    name = mark[len(WHITEOUT_PREFIX) :]
    return name if name and not name.startswith(WHITEOUT_PREFIX) else None


class _StatResult(Protocol):
    """The parts of os.stat_result that are needed here."""

    @property
    def st_mode(self) -> int: ...

    @property
    def st_rdev(self) -> int: ...


def is_whiteout_device(st: _StatResult) -> bool:
    """Whether `st` is overlayfs's whiteout, a character device 0:0."""
    return st.st_rdev == 0 and stat.S_ISCHR(st.st_mode)


def is_private_xattr(name: str) -> bool:
    """Whether the extended attribute `name` belongs to the union itself."""
    return name.startswith(PRIVATE_PREFIXES)


def is_partial(xattrs: Mapping[str, bytes]) -> bool:
    """Whether a file with these attributes has only a part of its data (core.partial). Only its union knows which
    part."""
    return any(xattrs.get(name) == METACOPY_PARTIAL for name in METACOPY_XATTRS)


def redirect_components(value: bytes) -> tuple[bytes, ...] | None:
    """Return the path components of an absolute redirect, from the root down; None when `value` is a sibling's name."""
    if not value.startswith(b"/"):
        return None
    return tuple(part for part in value.split(b"/") if part)


def is_sane_redirect(value: bytes) -> bool:
    """Whether a redirect read from a layer may be followed: no `..`, no empty or overlong name, no mark, no NUL."""
    parts = [value] if not value.startswith(b"/") else value[1:].split(b"/")
    if value == b"/" or not value:
        return False
    return all(
        part not in (b"", b".", b"..")
        and len(part) <= NAME_MAX
        and b"\0" not in part
        and b"/" not in part
        and not is_reserved(part)
        for part in parts
    )


def sane_redirect(xattrs: Mapping[str, bytes]) -> bytes | None:
    """Return the redirect among the attributes of a directory or metacopy file; None if there is no valid one."""
    for name in REDIRECT_XATTRS:
        value = xattrs.get(name)
        if value is not None and is_sane_redirect(value):
            return value
    return None


# -- overrides --------------------------------------------------------------------------------------------------------

_ID_END: Final = (1 << 32) - 1
_OVERFLOW: Final = 65534
_SHAPE: Final = re.compile(
    rb"(-1|[0-9]{1,10}):(-1|[0-9]{1,10}):([0-7]{1,7})"
    rb"(?::(file|dir|symlink|pipe|socket|(block|char)[-:]?([0-9]{1,8})[-:]([0-9]{1,8})))?"
)
_TYPES: Final = {
    stat.S_IFREG: b"file",
    stat.S_IFDIR: b"dir",
    stat.S_IFLNK: b"symlink",
    stat.S_IFIFO: b"pipe",
    stat.S_IFSOCK: b"socket",
}
_KINDS: Final = {name: kind for kind, name in _TYPES.items()} | {b"block": stat.S_IFBLK, b"char": stat.S_IFCHR}


class Override(NamedTuple):
    """Attributes of a file in the union. `kind` has S_IFMT bits, 0: the type on disk; `device` is (major, minor)."""

    uid: int
    gid: int
    mode: int
    kind: int = 0
    device: tuple[int, int] = (0, 0)


def write_override(override: Override) -> bytes:
    """Encode an override as the value of OVERRIDE_XATTR."""
    kind = _TYPES.get(override.kind, b"file")
    if override.kind in (stat.S_IFBLK, stat.S_IFCHR):
        kind = b"%s-%d-%d" % (b"block" if override.kind == stat.S_IFBLK else b"char", *override.device)
    return b"%d:%d:%04o:%s" % (override.uid, override.gid, override.mode, kind)


def read_override(value: bytes) -> Override | None:
    """Decode the value of OVERRIDE_XATTR; None when it is malformed.

    Accepts variants: the type within the mode and an id of -1 (fuse-overlayfs 1.10), a device as `block8:0` (2.0).
    """
    match = _SHAPE.fullmatch(value)
    if match is None:
        return None
    mode = int(match[3], 8)
    kind = _KINDS.get(match[5] or match[4] or b"", 0)
    device = (int(match[6]), int(match[7])) if match[5] else (0, 0)
    within = stat.S_IFMT(mode)
    if mode >> 16 or (within and kind and within != kind) or (within and within not in _KINDS.values()):
        return None
    kind = kind or within
    uid, gid = (_OVERFLOW if number == b"-1" else int(number) for number in (match[1], match[2]))
    return Override(uid, gid, mode & 0o7777, kind, device) if uid < _ID_END and gid < _ID_END else None


def set_aside(name: str) -> str | None:
    """Return the name under which a branch with overrides stores the users' attribute `name`; None: its own name.

    Attributes are renamed if they would take effect on the branch itself, or if our user may not set them.
    """
    if name.startswith((*PRIVATE_PREFIXES, "security.", "system.posix_acl_")):
        return OVERRIDE_PREFIX + name
    return None


def shown_xattr(name: str) -> str | None:
    """Return the name that users see for the attribute `name` of a branch with overrides; None if it is hidden."""
    if name.startswith(OVERRIDE_PREFIX) and name != OVERRIDE_XATTR:
        return name.removeprefix(OVERRIDE_PREFIX)
    return None if is_private_xattr(name) else name


_IDENTITY: Final = 1 << 62
_ID_BITS: Final = 31
_UNSET: Final = -1  # RLIM_INFINITY


def pack_identity(uid: int, gid: int) -> int:
    """Encode the owner of files that a process creates as one value of a resource limit."""
    if (uid, gid) == (0, 0):
        return _UNSET
    uid, gid = (number if number >> _ID_BITS == 0 else _OVERFLOW for number in (uid, gid))
    return _IDENTITY | uid << _ID_BITS | gid


def unpack_identity(limit: int) -> tuple[int, int]:
    """Decode a value of `pack_identity`; any other value means root."""
    if limit < _IDENTITY:
        return 0, 0
    return limit >> _ID_BITS & ((1 << _ID_BITS) - 1), limit & ((1 << _ID_BITS) - 1)
