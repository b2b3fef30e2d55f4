"""A mounted union with all objects that serving it needs, in a keeper and in each of its daemons.

Does not know how it was mounted, or that another daemon has served it before.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Final

from unionfs.control import listening
from unionfs.core import takeover
from unionfs.core.union import Union
from unionfs.daemon.options import DaemonOptions
from unionfs.fuse import mounting
from unionfs.fuse.daemon_history import DIED, LEFT, DaemonHistory
from unionfs.fuse.death_helper import DeathHelper
from unionfs.fuse.detachment import Mounted
from unionfs.fuse.options import DEFAULT_TRANSPORT, TRANSPORTS
from unionfs.fuse.shutdown import GracefulShutdown
from unionfs.fuse.traffic import Tally, Traffic
from unionfs.syscalls import files

if TYPE_CHECKING:
    from logging import Logger

    from unionfs.core.attrs import Invalidation
    from unionfs.fuse.kernel.session import Kept, Tuning
    from unionfs.fuse.watching import Notifier

MODULES: Final = (
    *("unionfs.fuse.kernel.handshake", "unionfs.fuse.kernel.server"),
    *("unionfs.control.server", "unionfs.fuse.upgrade", "unionfs.fuse.view_offer", "unionfs.log_lines"),
)
"""Modules that a daemon with usual options imports after its start; a parent of mounts has imported them before."""
LATE_MODULES: Final = ("unionfs.core.handles", "unionfs.control.server", "unionfs.syscalls.file_handles")
"""Modules that a daemon imports a moment after its start: after the mount's first requests, and before the files may be
replaced by another version's."""
_IMPORT_AFTER_MS: Final = 1000
_DESCRIPTOR_TABLE: Final = 4096
"""Entries of the table of descriptors from the start on, 32 KiB in the kernel: enough for some thousand directories."""
_TRY_AGAIN_S: Final = 1.0
_STARTS_S: Final = 0.002


class Service:
    """A mounted union with all objects that serving it needs. In a keeper and in each of its daemons."""

    def __init__(
        self, options: DaemonOptions, union: Union, mounted: Mounted, fd: int, shutdown: GracefulShutdown
    ) -> None:
        self.options = options  # immutable
        self.union = union  # replaced by a keeper, when the branches have changed
        self.mounted = mounted  # immutable
        self.fd = fd  # immutable: of /dev/fuse
        self.shutdown = shutdown  # immutable
        self.traffic: Traffic = Tally()  # replaced once, when the protocol is negotiated
        self.helper = DeathHelper(None)  # replaced once
        self.control_fd: int | None = None  # set once
        self.notifier: Notifier | None = None  # with --watch; set once
        self.since = time.monotonic()  # of the mount; set once
        self.kept: Kept | None = None  # set once, where there is a keeper
        self.history: DaemonHistory | None = None  # set once, in a daemon that has a keeper
        self.tell_keeper: Callable[[], bool] | None = None
        """Sends the keeper the mount's present state, and returns whether the keeper has acknowledged it; set once, if
        the keeper can learn it."""
        self.version: str | None = None  # of this code; set once, soon: later the files may be another version's
        self.unfinished: list[Invalidation] | None = None
        """Set once, if the daemon before has died while the lowers changed: see core.unfinished_change.finish."""
        self.is_serving = False  # set once

    @contextmanager
    def until_its_end(self) -> Iterator[None]:
        """End the mount when the body ends, also by an exception. Does not return in a daemon that another one
        replaces."""
        try:
            yield
        except BaseException:
            history = self.history
            if self.shutdown.is_leaving:
                os._exit(LEFT)
            if self.shutdown.has_interrupted:
                return
            if history is not None and history.is_kept:
                _logger().exception("the daemon ends because of a bug")
                os._exit(DIED)
            if not self.is_serving:  # a transport closes it itself
                os.close(self.fd)
            self.mounted.unmount()  # it does not wait for this process: closing the descriptor has ended the connection
            raise
        finally:
            if self.control_fd is not None:
                listening.stop(self.control_fd)
            if self.history is not None:
                self.history.over()
            self.shutdown.serving_ended()

    def serve(self) -> None:
        """Serve until the mount ends, or until the daemon is asked to end."""
        notifier = self.notifier
        _enlarge_descriptor_table()
        transport = import_module(TRANSPORTS[self.options.transport])
        if self.history is not None:
            self.helper.keeper = self.history.keeper
            self.helper.parent = self.history.channel if self.history.is_parent else None
            self.history.watch(_logger().warning)
        if notifier is not None:
            self.helper.start()
        self.shutdown.listen(self.mounted, self.options.lifeline_fd)
        if self.control_fd is not None and self.mounted.connection is not None:
            about = (self, self.control_fd, self.mounted.connection)
            try:
                threading.Thread(target=_report, args=about, name="reporting", daemon=True).start()
            except RuntimeError as error:  # RLIMIT_NPROC, memory
                _logger().error("`unionfs stats`, `upgrade` and changes of branches get no answer: %s", error)
        self.is_serving = True
        transport.serve(self.fd, self.union, options=self.options.serve, traffic=self.traffic, notifier=notifier)

    def leave(self) -> None:
        """Leave the mount to the daemon that continues. From any thread but the one that serves."""
        assert self.kept is not None
        self.kept.is_left = True
        self.shutdown.leave()


def prepare(options: DaemonOptions) -> None:
    """Start the diagnostics that the options ask for: stack traces, the log."""
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)  # prints a stack trace; SIGUSR1 no longer kills
    _start_logging(options)


def why_not_kept(options: DaemonOptions, traffic: Traffic) -> str:
    """Return why the mount has no keeper; "" if it can have one."""
    if not options.keeper:
        return "it was mounted with --no-keeper"
    if options.transport != DEFAULT_TRANSPORT:
        return f"it has the {options.transport} transport"
    return "" if traffic.has_resend else "the kernel is older than Linux 6.9"


def why_not_upgraded(options: DaemonOptions, traffic: Traffic) -> str:
    """Return why no other version can continue the mount; "" if one can, where there is a keeper."""
    why = why_not_kept(options, traffic)
    return f"it has no keeper: {why}" if why else ""


def tuning(union: Union) -> Tuning:
    """Return how our engine is to serve.

    If a lower is on FUSE, the attributes of each name are a message to its daemon. A listing then leaves them out: most
    programs need those of few names, for which the kernel asks.
    """
    from unionfs.fuse.kernel.session import Tuning

    is_on_fuse = any(files.filesystem_type(lower.fd) == files.FUSE for lower in takeover.opened(union).lowers)
    return Tuning(readdirplus="never" if is_on_fuse else "always", handles=os.geteuid() == 0)


def offer_view(service: Service) -> None:
    """Offer a view of the lowers, unless changes by other programs, or by the kernel without a request, could make it
    wrong."""
    options, serve, mounted = service.options, service.options.serve, service.mounted
    offers = options.view and options.union.upper is not None and mounted.connection is not None
    if not offers or serve.read_only or serve.writeback or options.watch or options.transport != "kernel":
        return
    from unionfs.fuse.view_offer import ViewOffer

    service.traffic.view_offer = ViewOffer(service.union, options.serve, options.mount, mounted)


def _report(service: Service, control_fd: int, connection: int) -> None:
    """In a thread: answer `unionfs stats` and `upgrade`."""
    asked = select.poll()
    asked.register(control_fd, select.POLLIN)
    asked.poll(_IMPORT_AFTER_MS if service.unfinished is None else 0)
    _import_patiently(service)
    from unionfs.control.branch_server import BranchControl
    from unionfs.control.server import Reporter

    if service.history is not None:
        service.history.wait_for_keeper()
    while service.options.transport == DEFAULT_TRANSPORT and service.traffic.calls is None:  # it is starting
        time.sleep(_STARTS_S)
    options, traffic, history = service.options, service.traffic, service.history
    branches = BranchControl(service.union, traffic, connection, history, service.tell_keeper)
    if service.unfinished is not None:
        branches.lock.acquire()
        threading.Thread(target=branches.finish, args=[service.unfinished], name="branches", daemon=True).start()
    reporter = Reporter(
        union=service.union,
        traffic=traffic,
        transport=options.transport,
        mountpoint=service.mounted.mountpoint,
        started_by=options.started_by,
        since=service.since,
        version=service.version or "",
        no_view=options.no_view,
        history=history,
        branches=branches,
        no_upgrade=why_not_upgraded(options, traffic),
        leave=service.leave,
        has_ended=partial(mounting.has_ended, service.fd),
    )
    reporter.serve(control_fd, connection)


def _import_patiently(service: Service) -> None:
    """Import what answers requests, as soon as there are descriptors and memory for that."""
    reasons: set[str] = set()
    while True:
        try:
            import_late_modules(service)
            import_module("unionfs.control.branch_server")
        except (ImportError, OSError) as error:
            if str(error) not in reasons:
                _logger().warning("`unionfs stats` and `upgrade` get no answer yet: %s", error)
            reasons.add(str(error))
            time.sleep(_TRY_AGAIN_S)
        else:
            return


def import_late_modules(service: Service) -> None:
    """Import the LATE modules, and note the version of this code if it is not known yet."""
    from unionfs import version

    for module in LATE_MODULES:
        import_module(module)
    if service.options.transport == "kernel":
        import_module("unionfs.fuse.kernel.activity")
    if service.version is None:
        service.version = version.installed()


def tune_garbage_collection() -> None:
    """Make Python's cyclic garbage collection rare: each run visits all nodes, which are many, long-lived, and freed
    by reference counts. There is no garbage yet: a search for it would delay the first requests by 5 to 15 ms."""
    import gc

    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _start_logging(options: DaemonOptions) -> None:
    """Log to stderr from now on. Called late: importing the logging module takes as long as mounting."""
    from unionfs import log_lines

    log_lines.start(debug=options.debug)


def _enlarge_descriptor_table() -> None:
    """Make the kernel's table of this process's descriptors large. Precondition: this is the only thread.

    The table doubles when it is full. In a process with several threads the open(2) that needs it then waits until no
    processor can still use the old table: 5 to 25 ms (expand_fdtable in Linux's fs/file.c calls synchronize_rcu).
    """
    with suppress(OSError):  # RLIMIT_NOFILE
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, _DESCRIPTOR_TABLE - 1))


def _logger() -> Logger:
    import logging

    return logging.getLogger(__name__)
