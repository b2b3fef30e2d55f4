"""How a transport is to serve: the values that both transports understand."""

from __future__ import annotations

from dataclasses import dataclass

FOREVER_S = 1e9
"""The kernel may keep entries and attributes until we say otherwise: the branches are ours alone."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Immutable. Given to a transport's `serve(fd, union, options=...)`."""

    timeout_s: float = FOREVER_S  # how long the kernel may believe entries, missing names and attributes
    writeback: bool = False  # let the kernel collect small writes (fuse.rst, "writeback mode")
    read_only: bool = False  # the union has no upper: refuse to open for writing already
    acls: bool = True  # False: the kernel checks the mode alone, and ACLs are attributes that mean nothing to it
    xattrs: bool = True  # False: extended attributes are ENOSYS, which the kernel shows as EOPNOTSUPP from then on
    debug: bool = False  # log every request
