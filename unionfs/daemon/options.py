"""The options of a daemon, and its error. Imports neither the core's union nor a transport."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from unionfs.core.options import Options
from unionfs.fuse.mounting import MountOptions
from unionfs.fuse.options import DEFAULT_TRANSPORT, ServeOptions

if TYPE_CHECKING:
    from unionfs.fuse.keeper_channel import Channel


class StartError(Exception):
    """The union could not be mounted; nothing is left mounted. `str()` is the message for users, `hint` says what to
    do, `code` is the nearest errno (0: none)."""

    def __init__(self, message: str, hint: str = "", code: int = 0) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


class DaemonOptions(NamedTuple):
    """The options of a daemon. Immutable. Paths must be absolute: the daemon leaves the caller's working directory."""

    union: Options
    mountpoint: str  # or /dev/fd/N, a descriptor of /dev/fuse that another program has mounted
    transport: str = DEFAULT_TRANSPORT
    mount: MountOptions = MountOptions()
    serve: ServeOptions = ServeOptions()
    may_cover_union: bool = False  # mount also over a mounted union, as other mount programs do
    log: str | None = None  # file that log and stderr are appended to; None: discarded, except under debug
    watch: bool = False  # notice changes to the branches that are made outside of the union
    view: bool = False  # let read-only unions of the same lowers be views of this one; needs an upper
    no_view: str = ""  # why this read-only union is not a view, if a view was tried
    keeper: bool = True  # another daemon continues when this one dies, where the kernel and the options allow it
    exclusive: bool = False  # refuse an upper that another running daemon writes to, instead of warning
    debug: bool = False  # log everything; without a log file, to the caller's stderr
    lifeline_fd: int | None = None  # the daemon unmounts and exits at its end of file
    held_fd: int | None = None  # open while the mount is served, for a process that waits for its end
    started_by: str = "itself"  # text about the process that forked the daemon; set by daemon.start


BecomeParent = Callable[[], "Channel"]
"""Makes this process a parent of mounts, and returns in a process that it has forked for the first mount, with the
connection to it (mount_parent.leave). Raises: OSError."""


class Forked(NamedTuple):
    """The parent and the caller of a process that was forked to become a daemon. Immutable."""

    parent: int  # pid of the process that has forked it
    channel: Channel  # connection to that process, which can be the keeper
    descriptors: tuple[int, ...]  # that `tell` needs
    tell: Callable[[str], None]  # called with a warning or "", once the mount can be used; OSError: the caller has gone
