"""The marks that say "hidden from here down": whiteouts, opaque directories, redirects, in every dialect that is
read.

Pure names and values; imports nothing of ours and touches no file. The I/O side is `core.marks`.

Sources: OCI image specification, layer.md ("Whiteouts"); AUFS (`.wh.` names); Linux
Documentation/filesystems/overlayfs.rst ("whiteouts and opaque directories", "Nesting overlayfs mounts",
"redirect_dir", "Metadata only copy up"); fuse-overlayfs(1).
"""

from __future__ import annotations

import os
import stat
from typing import Final

NAME_MAX: Final = 255
"""Longest file name in bytes (limits.h). The kernel may hand longer ones to a FUSE daemon."""

WHITEOUT_PREFIX: Final = b".wh."
"""`.wh.NAME` hides NAME in every branch beneath. Every name with this prefix is reserved and never shown."""

OPAQUE_NAME: Final = b".wh..wh..opq"
"""A file of this name in a directory: nothing beneath this directory shows through."""

OPAQUE_XATTRS: Final = ("trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque")
"""Extended attributes that mark an opaque directory with value `y`; the value `x` only says that the directory may hold
whiteouts of the extended-attribute form."""

REDIRECT_XATTRS: Final = ("trusted.overlay.redirect", "user.overlay.redirect")
"""On a directory: where its lower content is: `/path` from the root of the branches beneath, or a sibling's name."""

WHITEOUT_XATTRS: Final = ("trusted.overlay.whiteout", "user.overlay.whiteout")
"""On an empty regular file in a directory whose opaque attribute is `x`: a whiteout of the file's own name."""

METACOPY_XATTRS: Final = ("trusted.overlay.metacopy", "user.overlay.metacopy")
"""On a regular file: only the attributes are here, the data are in a branch beneath."""

ORIGIN_XATTR: Final = "user.unionfs.origin"
"""On a copied-up file or directory: the lower object it came from, as `FSID-INO` in hexadecimal (see core.inodes)."""

PRIVATE_PREFIXES: Final = (
    "user.unionfs.",
    "trusted.unionfs.",
    "trusted.overlay.",
    "user.overlay.",
    "user.fuseoverlayfs.",
)
"""Extended attributes with these prefixes belong to the union itself and are never shown or set through it."""


def is_reserved(name: bytes) -> bool:
    """Whether `name` may only be used for marks."""
    return name.startswith(WHITEOUT_PREFIX)


def whiteout_name(name: bytes) -> bytes | None:
    """The AUFS whiteout of `name`, or None when it would be longer than NAME_MAX."""
    return WHITEOUT_PREFIX + name if len(name) <= NAME_MAX - len(WHITEOUT_PREFIX) else None


def hidden_name(mark: bytes) -> bytes | None:
    """The name that the AUFS whiteout `mark` hides; None for the nameless `.wh.` and for `.wh..wh.*`, which hide
    nothing.

    Preconditions: `is_reserved(mark)`.
    """
    name = mark[len(WHITEOUT_PREFIX) :]
    return name if name and not name.startswith(WHITEOUT_PREFIX) else None


def is_whiteout_device(st: os.stat_result) -> bool:
    """Whether `st` is overlayfs's whiteout, a character device 0:0."""
    return st.st_rdev == 0 and stat.S_ISCHR(st.st_mode)


def is_private_xattr(name: str) -> bool:
    """Whether the extended attribute belongs to the union itself."""
    return name.startswith(PRIVATE_PREFIXES)


def redirect_components(value: bytes) -> tuple[bytes, ...] | None:
    """The names of an absolute redirect, from the root down; None when `value` is a sibling's name or not a sane
    path."""
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
