"""The transports by name, and the options that both understand."""

from __future__ import annotations

from typing import Final, NamedTuple

TRANSPORTS: Final = {"kernel": "unionfs.fuse.kernel.server", "pyfuse3": "unionfs.fuse.via_pyfuse3"}
"""Name -> module with `serve(fd, union, *, options, traffic, notifier)`."""
DEFAULT_TRANSPORT: Final = "kernel"

FOREVER_S = 1e9
"""The kernel may cache entries and attributes until they are invalidated: only the daemon changes the branches."""

BUSY_POLL_AUTO: Final = "auto"
BUSY_POLL_OFF: Final = "off"
BUSY_POLL_MODES: Final = (BUSY_POLL_AUTO, "on", BUSY_POLL_OFF)
"""When the kernel transport polls for the next request instead of sleeping; see `fuse.kernel.busy_poll`."""


class ServeOptions(NamedTuple):
    """Immutable. Given to a transport's `serve(fd, union, options=...)`."""

    timeout_s: float = FOREVER_S  # how long the kernel may cache entries, missing names and attributes
    writeback: bool = False  # let the kernel collect small writes (fuse.rst, "writeback mode")
    passthrough: bool = False  # the kernel reads and writes the branches' files itself; not with writeback
    read_only: bool = False  # the union has no upper: refuse to open for writing already
    acls: bool = True  # False: the kernel checks the mode alone, and ACLs are attributes that mean nothing to it
    xattrs: bool = True  # False: extended attributes are ENOSYS, which the kernel shows as EOPNOTSUPP from then on
    busy_poll: str = BUSY_POLL_AUTO  # one of BUSY_POLL_MODES; means nothing to pyfuse3
    debug: bool = False  # log every request
