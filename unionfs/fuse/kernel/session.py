"""The protocol state of one mount: negotiated features, counters, requests that wait for a copy-up; pure.

Knows the protocol. Does not know the union, and has no descriptor: INIT comes in and its answer goes out as bytes.

States: fresh, then negotiated (by INIT, once), then over (by DESTROY). Before INIT no other request is answered.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from unionfs.core.node_record import NodeRecord
from unionfs.core.recorded_node import Notes
from unionfs.fuse.kernel import abi, encode
from unionfs.fuse.kernel.abi import Init, Op
from unionfs.fuse.kernel.decode import BODY, MalformedError
from unionfs.fuse.options import ServeOptions

if TYPE_CHECKING:
    from unionfs.core.union import Union
    from unionfs.fuse.calls import Calls
    from unionfs.fuse.death_helper import DeathHelper
    from unionfs.fuse.kernel.activity import Activity
    from unionfs.fuse.kernel.opens import Opens
    from unionfs.fuse.view_offer import ViewOffer

MAX_WRITE: Final = 1 << 20
"""One MiB a request: the most the kernel grants without a sysctl (fs.fuse.max_pages_limit = 256)."""

PAGE: Final = 4096
MAX_PAGES: Final = MAX_WRITE // PAGE
REQUEST_ROOM: Final = MAX_WRITE + PAGE
"""The read buffer: the largest WRITE and its headers."""

_OPS: Final = 64
"""Opcodes are counted in a list; the newest is 53."""

_ALWAYS: Final = (
    Init.ASYNC_READ  # several READs of one file at once: read-ahead overlaps with the reader
    | Init.BIG_WRITES
    | Init.MAX_PAGES
    | Init.DONT_MASK  # the core applies the umask, or the parent's default ACL instead of it
    | Init.PARALLEL_DIROPS  # lookups and listings of one directory need not wait for each other in the kernel
    | Init.NO_OPEN_SUPPORT  # ENOSYS to OPEN and OPENDIR ends them, and implies KEEP_CACHE and CACHE_DIR
    | Init.NO_OPENDIR_SUPPORT
    | Init.HANDLE_KILLPRIV_V2  # saves a GETXATTR security.capability before every write
    | Init.SETXATTR_EXT
    | Init.CACHE_SYMLINKS
    | Init.EXPLICIT_INVAL_DATA  # AUTO_INVAL_DATA would drop a file's pages when our own write has changed its mtime
    | Init.ABORT_ERROR
    | Init.HAS_IOCTL_DIR
    | Init.DIRECT_IO_ALLOW_MMAP
    | Init.HAS_RESEND
    | Init.INIT_EXT
)
"""Asked for whenever offered. Left out on purpose: ATOMIC_O_TRUNC (the truncation would be lost with the OPEN),
POSIX_LOCKS and FLOCK_LOCKS (the kernel's own locks serve one machine), SPLICE_* (replies are written, not spliced),
SECURITY_CTX, CREATE_SUPP_GROUP, ALLOW_IDMAP, SUBMOUNTS, MAP_ALIGNMENT and HAS_INODE_DAX (virtiofs), OVER_IO_URING,
REQUEST_TIMEOUT."""

_PASSTHROUGH: Final = Init.PASSTHROUGH | Init.ATOMIC_O_TRUNC
"""Requested only with an option, since opens are messages then. The OPEN must contain O_TRUNC: otherwise a lower file
would be copied up and then truncated."""

_STACK_DEPTH: Final = 1
"""Branches are on filesystems that are not stacked themselves, so that another filesystem can be stacked on the
mount."""

READDIRPLUS: Final = {
    "always": Init.DO_READDIRPLUS,
    "auto": Init.DO_READDIRPLUS | Init.READDIRPLUS_AUTO,
    "never": Init(0),
}


@dataclass(frozen=True, slots=True)
class Tuning:
    """Options that only this engine has. The defaults are the fastest in the benchmarks."""

    readdirplus: str = "always"
    """`always`: listings include all attributes; `auto`: when the kernel expects them to be used; `never`."""
    handles: bool = False
    """Support open_by_handle_at(2), which needs privilege, also for nodes that the kernel has forgotten."""
    max_background: int = 64
    """Concurrent requests of read-ahead and direct I/O; the kernel's own default is 12."""


class UnsupportedError(OSError):
    """The kernel and this engine have no protocol in common. The message says what to do instead."""


@dataclass(slots=True)
class Waiting:
    """Requests that wait for the copy-up of one file."""

    nodeid: int  # immutable
    cancel: Callable[[], None]  # immutable; ends the copying, from any thread
    requests: dict[int, bytes] = field(default_factory=dict)  # unique -> request; Session only
    given_up: int = 0  # unique of the last waiting request, once it is interrupted; Session.interrupt only


@dataclass(slots=True)
class Kept:
    """The state of a daemon that another one can continue, or that continues from another one."""

    record: NodeRecord  # immutable
    view_record: NodeRecord | None  # immutable: the nodes of the view, if one is offered
    continues: bool = False  # set once: this is not the first daemon
    changes: dict[int, bool] = field(default_factory=dict)
    """Requests that the daemon before has begun, by unique: whether they are known to be done."""
    unanswered: Notes = field(default_factory=Notes)  # set once: the counts of its last request
    refused: int = 0  # set once: unique of a request that is answered EIO; 0: none
    is_left: bool = False  # set once, by another thread: the next daemon answers open requests


class Session:
    """One mount's connection to the kernel."""

    def __init__(self, options: ServeOptions, tuning: Tuning) -> None:
        self.options = options  # immutable
        self.tuning = tuning  # immutable
        self.encoder = encode.Encoder(options.timeout_s)  # immutable
        self.minor = 0  # set once, by init
        self.flags = 0  # of Init; set once, by init
        self.over = False  # set once, by DESTROY
        self.counts = [0] * _OPS  # requests by opcode; changed by `init` and Dispatcher
        self.recorded_counts: Any = None  # the same in the record, which takes longer to read; set once, by `keep`
        self.has_resend = False  # set once, by init: whether the kernel sends requests again
        self.view_generation = int.from_bytes(os.urandom(4), "little") | 1  # immutable
        self.kept: Kept | None = None  # set once, by the daemon, where another one is to continue
        self.opens: Opens | None = None  # set once, by Dispatcher.pass_through
        self.view_offer: ViewOffer | None = None  # see fuse.traffic
        self.calls: Calls | None = None  # see fuse.traffic
        self.death_helper: DeathHelper | None = None  # likewise
        self.observers: tuple[Activity, ...] = ()  # replaced as a whole, between two turns; see `observe`
        self.waiting: dict[int, Waiting] = {}  # by node id; changed by hold and release only

    def keep(self, kept: Kept) -> None:
        """Record counts and requests from now on, so that another daemon can continue."""
        self.recorded_counts = kept.record.counts
        for code, count in enumerate(self.counts):
            if count:  # else nothing is written: another daemon may still write to the record
                self.recorded_counts[code] += count
        self.kept = kept

    def continue_counting(self) -> None:
        """Continue from the recorded counts. Before the first request: another daemon may have served meanwhile."""
        if self.recorded_counts is not None:
            self.counts[:] = self.recorded_counts

    def state(self) -> dict[str, int]:
        """Return the values with which another process continues the connection, for `continued`."""
        return {
            "minor": self.minor,
            "flags": self.flags,
            "max_write": MAX_WRITE,
            "generation": self.encoder.generation,
            "view_generation": self.view_generation,
        }

    @classmethod
    def continued(cls, options: ServeOptions, tuning: Tuning, state: dict[str, int]) -> Session:
        """Make the session of a connection that another version has negotiated. Raises: UnsupportedError."""
        made = cls(options, tuning)
        made.minor, made.flags, made.has_resend = state["minor"], state["flags"], True
        if state["minor"] > abi.MINOR:
            raise UnsupportedError(
                errno.EPROTONOSUPPORT, f"the mount speaks FUSE {made.protocol}, this program {abi.VERSION}.{abi.MINOR}"
            )
        if (unknown := made.flags & ~made._wanted()) or state["max_write"] > MAX_WRITE:
            what = f"flags {int(unknown):#x}" if unknown else f"requests of {state['max_write']} bytes"
            raise UnsupportedError(
                errno.EPROTONOSUPPORT, f"the mount has negotiated {what}, which this program does not have"
            )
        made.encoder.set_generation(state["generation"])
        made.view_generation = state["view_generation"]
        return made

    @property
    def negotiated(self) -> bool:
        """Whether INIT has been answered."""
        return self.minor != 0

    @property
    def has_epochs(self) -> bool:
        """Whether the kernel has NOTIFY_INC_EPOCH, which invalidates all names."""
        return self.minor >= abi.EPOCHS_SINCE

    @property
    def protocol(self) -> str:
        """The negotiated version, as "7.45"."""
        return f"{abi.VERSION}.{self.minor}"

    @property
    def messages(self) -> dict[str, int]:
        """The number of requests by opcode name without FUSE_; opcodes that never came are absent."""
        return {Op(code).name: count for code, count in enumerate(self.counts) if count}

    @property
    def passthrough(self) -> dict[str, int] | None:
        """See Traffic."""
        opens = self.opens
        return None if opens is None else {"open": len(opens), "plain": opens.plain_opens}

    def observe(self, union: Union) -> Activity:
        """See Traffic."""
        from unionfs.fuse.kernel.activity import Activity

        return Activity(self, union)

    def init(self, unique: int, request: memoryview, end: int) -> bytes:
        """Answer INIT (the comment "Version negotiation" in <linux/fuse.h>).

        Raises: UnsupportedError for a kernel older than 7.31, or of another major version.
        """
        if end < BODY + abi.INIT_IN_COMPAT.size:
            raise MalformedError("INIT is too short")
        major, minor, max_readahead, offered = abi.INIT_IN_COMPAT.unpack_from(request, BODY)
        if major > abi.VERSION:
            return encode.data(
                unique, encode.init_out(abi.MINOR, max_readahead=0, flags=0, max_background=0, max_write=0, max_pages=0)
            )
        if major < abi.VERSION or minor < abi.MIN_MINOR:
            raise UnsupportedError(
                errno.EPROTONOSUPPORT,
                f"the kernel speaks FUSE {major}.{minor}, the least served here is {abi.VERSION}.{abi.MIN_MINOR} "
                "(Linux 5.4); --transport pyfuse3 serves older ones",
            )
        if offered & Init.INIT_EXT and end >= BODY + abi.INIT_IN.size:
            offered |= abi.INIT_IN.unpack_from(request, BODY)[4] << 32
        if not (offered & Init.NO_OPEN_SUPPORT and offered & Init.NO_OPENDIR_SUPPORT):
            raise UnsupportedError(
                errno.EPROTONOSUPPORT,
                "the kernel cannot open files without OPEN requests; --transport pyfuse3 serves such kernels",
            )
        if self.options.passthrough and not offered & Init.PASSTHROUGH:
            raise UnsupportedError(
                errno.EOPNOTSUPP, "the kernel has no passthrough (Linux 6.9 with CONFIG_FUSE_PASSTHROUGH has)"
            )
        self.minor = min(minor, abi.MINOR)
        self.has_resend = bool(offered & Init.HAS_RESEND)
        self.flags = int(Init(offered) & self._wanted())
        if self.flags & Init.EXPORT_SUPPORT:  # a handle of an earlier mount must not lead to another file of this one
            self.encoder.set_generation(int.from_bytes(os.urandom(4), "little") | 1)
        return encode.data(
            unique,
            encode.init_out(
                self.minor,
                max_readahead=min(max_readahead, MAX_WRITE),
                flags=self.flags,
                max_background=self.tuning.max_background,
                max_write=MAX_WRITE,
                max_pages=MAX_PAGES,
                max_stack_depth=_STACK_DEPTH if self.options.passthrough else 0,
            ),
        )

    def _wanted(self) -> Init:
        wanted = _ALWAYS | READDIRPLUS[self.tuning.readdirplus]
        if self.options.acls:
            wanted |= Init.POSIX_ACL
        if self.tuning.handles:
            wanted |= Init.EXPORT_SUPPORT
        if self.options.passthrough:
            wanted |= _PASSTHROUGH
        if self.options.writeback and not self.options.read_only:
            wanted |= Init.WRITEBACK_CACHE
        if self.options.read_only:
            # The kernel's FUSE drops cached pages before an asynchronous direct write only, not after it: a page that
            # is read meanwhile stays stale. Without ASYNC_DIO such writes are synchronous, and drop them after it too.
            wanted |= Init.ASYNC_DIO
        return wanted

    def hold(self, nodeid: int, cancel: Callable[[], None]) -> Waiting:
        """Start to collect the requests that wait for the copy-up of `nodeid`."""
        waiting = self.waiting[nodeid] = Waiting(nodeid, cancel)
        return waiting

    def release(self, waiting: Waiting) -> dict[int, bytes]:
        """End the wait. Returns the requests to serve now, by unique."""
        del self.waiting[waiting.nodeid]
        return waiting.requests

    @property
    def locked(self) -> set[int]:
        """Nodes whose inode locks in the kernel may be held by programs that wait for a copy-up."""
        nodes = set(self.waiting)
        for waiting in self.waiting.values():
            for request in waiting.requests.values():
                opcode, _unique, nodeid = abi.IN_HEADER.unpack_from(request)[1:4]
                nodes.add(nodeid)
                if opcode in (Op.RENAME, Op.RENAME2):
                    nodes.add(abi.RENAME_IN.unpack_from(request, BODY)[0])
        return nodes

    def interrupt(self, unique: int) -> bool:
        """Handle INTERRUPT: the caller of `unique` got a signal. Returns whether to answer it with EINTR now.

        The interrupt of the last request that waits for a copy-up cancels the copy; that request is answered once the
        copy is removed. Other interrupts come too late or concern quick requests: the protocol allows to ignore them.
        """
        for waiting in self.waiting.values():
            if unique in waiting.requests:
                if len(waiting.requests) > 1:
                    del waiting.requests[unique]
                    return True
                waiting.given_up = unique
                waiting.cancel()
        return False
