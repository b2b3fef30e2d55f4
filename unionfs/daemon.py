"""The daemon: open a union, mount it, and serve it through a transport until it is unmounted.

Knows `core.union` and the transports by name. Does not know command lines or who starts it (`daemon_start`); prints
nothing and raises StartError.

Order: branches are opened and checked, the mount is made, the caller gets the pid, and only then the transport is
imported: requests wait in the kernel until it answers them.
"""

from __future__ import annotations

import errno
import faulthandler
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Final, NoReturn

from unionfs.core import takeover
from unionfs.core.node_record import DamagedError, NodeRecord
from unionfs.core.options import OptionError
from unionfs.core.union import Union
from unionfs.daemon_options import DaemonOptions, StartError
from unionfs.detach import above_stdio, detach
from unionfs.fuse import control_socket, mounting
from unionfs.fuse.death_helper import DeathHelper
from unionfs.fuse.detachment import Mounted
from unionfs.fuse.keeper import DIED, Life, keep
from unionfs.fuse.mounting import MountError
from unionfs.fuse.options import DEFAULT_TRANSPORT, TRANSPORTS
from unionfs.fuse.shutdown import GracefulShutdown
from unionfs.fuse.traffic import Tally, Traffic
from unionfs.mount_parent.client import FAILED, READY

if TYPE_CHECKING:
    from logging import Logger

    from unionfs.fuse.watching import Notifier

_NEEDED: Final = {"pyfuse3": ("trio", "pyfuse3")}
"""Modules that a transport needs and that may not be installed."""
_EXTRAS: Final = ("pyfuse3",)  # modules outside of the base install; each is in the extra of the same name
_UPPER_IN_USE: Final = (
    "another running daemon uses the same upper directory: each may not notice changes of the other "
    "unless both are mounted with --watch"
)

IN_FOREGROUND: Final = "itself: in the foreground"

MODULES: Final = (
    *("unionfs.fuse.kernel.handshake", "unionfs.fuse.kernel.server"),
    *("unionfs.fuse.reporting", "unionfs.fuse.view_offer", "unionfs.log_lines"),
)
"""Modules that a daemon with default options imports after its start; a parent of mounts has imported them."""
_IMPORT_AFTER_MS: Final = 1000

Warn = Callable[[str], None]


def fork(options: DaemonOptions) -> list[str]:
    """Fork the daemon, and return the fields of its report, as a parent of mounts replies; "" if it has ended before.

    The daemon is reparented, in a new session, in /, with the descriptors of `options` only.
    """
    read_fd, write_fd = map(above_stdio, os.pipe())
    child = os.fork()
    if child == 0:
        os.close(read_fd)
        _run_daemon(options, _Report(write_fd))
    os.close(write_fd)
    with open(read_fd, "rb") as pipe:
        report = os.fsdecode(pipe.read())
    with suppress(ChildProcessError):
        os.waitpid(child, 0)
    return report.split("\0")


def serve(options: DaemonOptions, *, warn: Warn = lambda _: None) -> None:
    """Mount and serve in this process until the union is unmounted or a signal ends it (fuse.shutdown).

    Precondition: this is the only thread. Raises: StartError.
    """
    _serve(options._replace(started_by=IN_FOREGROUND), lambda warning: warn(warning) if warning else None)


class _Report:
    """Sends the daemon's start report: NUL-separated `ready, pid, warning` or `failed, message, hint, errno`."""

    def __init__(self, fd: int) -> None:
        self.fd: int | None = fd  # set once, to None, by `send`

    def send(self, *fields: str) -> None:
        """Send `fields`, unless a report was sent already. Raises: BrokenPipeError when the starter has ended."""
        if self.fd is not None:
            fd, self.fd = self.fd, None
            with open(fd, "wb", buffering=0) as pipe:
                pipe.write(os.fsencode("\0".join(fields)))


def _run_daemon(options: DaemonOptions, report: _Report) -> NoReturn:
    """Run the daemon in the forked child: detach, serve, exit."""
    status = 1
    try:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)  # reparented, so that its starter need not reap it
        _detach(options, report.fd)()
        _serve(options, lambda warning: report.send(READY, str(os.getpid()), warning))
        status = 0
    except BaseException as bug:  # noqa: BLE001 - the starter may wait for a report
        error = bug if isinstance(bug, StartError) else _internal_error(bug)
        report.send(FAILED, str(error), error.hint, str(error.code))
        if error is not bug:
            _logger().exception("the daemon ends because of a bug")
    finally:
        os._exit(status)


def _internal_error(bug: BaseException) -> StartError:
    return StartError(f"internal error: {type(bug).__name__}: {bug}", "--foreground --debug shows where")


def become(options: DaemonOptions, warn: Warn, report_fd: int, tell: Callable[[str], None]) -> NoReturn:
    """Serve in this process, which was forked for that, and end it. Raises StartError until the mount can be used.

    `tell` is called with a warning or "" once it can be; it raises OSError when the caller has gone. `report_fd` is
    kept open for it.
    """
    replace_stdio = _detach(options, report_fd)
    is_told, status = False, 1

    def ready(warning: str) -> None:
        nonlocal is_told
        if warning:
            warn(warning)
        replace_stdio()
        is_told = True  # the caller does not read the output of this process any more
        tell(warning)

    try:
        _serve(options, ready)
        status = 0
    except BaseException as bug:
        if not is_told:
            raise bug if isinstance(bug, StartError) else _internal_error(bug) from bug
        if not isinstance(bug, BrokenPipeError):
            _logger().exception("the daemon ends because of a bug")
    os._exit(status)


def _detach(options: DaemonOptions, report_fd: int | None) -> Callable[[], None]:
    keep = {report_fd, options.lifeline_fd, mounting.inherited_fd(options.mountpoint)}
    if options.debug and options.log is None:
        keep.add(2)
    try:
        return detach(keep, options.log)
    except OSError as error:
        raise StartError(f"opening the log failed: {options.log}: {error.strerror}") from error


def _serve(options: DaemonOptions, ready: Warn) -> None:
    """Open and mount the union, call `ready` with a warning or "", serve, close."""
    _check_transport(options.transport)
    _check_passthrough(options)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        mountpoint = mounting.check_mountpoint(options.mountpoint, may_cover_union=options.may_cover_union)
        union = Union(options.union)
    except MountError as error:
        raise StartError(str(error), error.hint, error.errno or 0) from error
    except OptionError as error:
        raise StartError(f"mount failed: {options.mountpoint}: {error}", code=error.errno or 0) from error
    except OSError as error:
        why = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise StartError(f"mount failed: {options.mountpoint}: {why}", code=error.errno or 0) from error
    try:
        if options.exclusive and union.upper_in_use:
            why = f"another union has the upper {options.union.upper} for writing"
            raise StartError(f"mount failed: {options.mountpoint}: {why}", code=errno.EBUSY)
        _mount_and_serve(options, mountpoint, union, _notifier(options, union), ready)
    finally:
        union.close()


def _notifier(options: DaemonOptions, union: Union) -> Notifier | None:
    if not options.watch:
        return None
    from unionfs.fuse.watching import Notifier

    try:
        return Notifier(union)
    except OSError as error:
        why = f"changes to the directories cannot be watched: {error.strerror}"
        hint = ""
        if error.errno == errno.EMFILE:
            hint = "allow more inotify instances, as root of the machine: sysctl fs.inotify.max_user_instances=1024"
        raise StartError(f"mount failed: {options.mountpoint}: {why}", hint) from error


def _warnings(union: Union, notifier: Notifier | None) -> str:
    warnings = [_UPPER_IN_USE] if union.upper_in_use else []
    if notifier is not None and notifier.limit:
        from unionfs.fuse.watching import limit_reached

        warnings.append(limit_reached(notifier.limit))
    return "; ".join(warnings)


def _mount_and_serve(
    options: DaemonOptions, mountpoint: str, union: Union, notifier: Notifier | None, ready: Warn
) -> None:
    shutdown = GracefulShutdown()
    try:
        fd = mounting.mount_union(mountpoint, options.mount)
    except MountError as error:
        raise StartError(str(error), error.hint, error.errno or 0) from error
    mounted = Mounted(mountpoint)
    serving = False
    life: Life | None = None
    try:
        os.chdir("/")
        traffic = _negotiate(options, fd)
        if mounted.connection is not None:
            mounting.set_read_ahead(mounted.connection)
        union.learn_mounts()
        is_kept = _has_keeper(options, traffic)
        _show_in_process_list(mounted.connection, keeper=is_kept)
        control_fd = None if mounted.connection is None else control_socket.open_listening(mounted.connection)
        ready(_warnings(union, notifier))
        helper = DeathHelper(mounted.connection if notifier is not None else None)
        mounted.leave_namespace()
        _offer_view(options, union, traffic, mounted)
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)  # prints a stack trace; SIGUSR1 no longer kills
        _start_logging(options)
        if options.no_view:
            _logger().info("not a view: %s", options.no_view)
        transport = import_module(TRANSPORTS[options.transport])
        _tune_garbage_collection()
        since = time.monotonic()
        if is_kept:
            traffic.death_helper = helper
            if notifier is not None:
                notifier.pause()
        life = _keep(union, traffic, mounted) if is_kept else None
        helper.keeper = life.keeper if life is not None else None
        if notifier is not None:
            helper.start()
        shutdown.listen(mounted, options.lifeline_fd)
        if control_fd is not None and mounted.connection is not None:
            about = (union, traffic, options, mountpoint, since, control_fd, mounted.connection, life)
            threading.Thread(target=_report, args=about, name="reporting", daemon=True).start()
        serving = True
        transport.serve(fd, union, options=options.serve, traffic=traffic, notifier=notifier)
    except BaseException:
        if shutdown.has_interrupted:
            return
        if life is not None and life.is_kept:
            _logger().exception("the daemon ends because of a bug")
            os._exit(DIED)
        if not serving:  # a transport closes it itself
            os.close(fd)
        mounted.unmount()  # does not wait for us: the connection has ended with its descriptor
        raise
    finally:
        shutdown.serving_ended()


def _negotiate(options: DaemonOptions, fd: int) -> Traffic:
    """Negotiate the protocol with the kernel. Done before the mount is reported as ready, so that it may fail."""
    if options.transport != "kernel":
        return Tally()
    from unionfs.fuse.kernel.device import Gone
    from unionfs.fuse.kernel.handshake import negotiate
    from unionfs.fuse.kernel.session import Tuning

    try:
        return negotiate(fd, options.serve, Tuning(handles=os.geteuid() == 0))
    except OSError as error:
        raise StartError(f"mount failed: {options.mountpoint}: {error.strerror}") from error
    except Gone:
        raise StartError(f"mount failed: {options.mountpoint}: it was unmounted before the daemon was ready") from None


def _has_keeper(options: DaemonOptions, traffic: Traffic) -> bool:
    return options.keeper and traffic.has_resend


def _keep(union: Union, traffic: Traffic, mounted: Mounted) -> Life | None:
    """Leave this process as the keeper, and go on in a daemon that it forks. Returns None if that is impossible.

    Raises: DamagedError, in a daemon that cannot continue.
    """
    from unionfs.fuse.kernel.session import Kept, Session

    assert isinstance(traffic, Session)
    try:
        view_record = NodeRecord() if traffic.view_offer is not None else None
        kept = Kept(NodeRecord(), view_record)
    except (OSError, ValueError) as error:  # no memory, or a limit
        _logger().warning("without a keeper: no shared memory: %s", error)
        _show_in_process_list(mounted.connection)
        return None
    takeover.keep_record(union, kept.record)
    traffic.keep(kept)

    def give_up(why: str) -> None:
        _logger().error("no daemon can continue (%s): the union is unmounted", why)
        mounted.unmount()

    life = keep(kept.record, give_up)
    _show_in_process_list(mounted.connection)
    if life.deaths:
        began = time.perf_counter()
        try:
            kept.changes, kept.refused, kept.continues = takeover.take_over(union), life.refused, True
            kept.unanswered = takeover.unanswered(union)
        except DamagedError:
            raise
        except Exception:  # noqa: BLE001 - the keeper tries again
            _logger().exception("the takeover fails")
            os._exit(DIED)
        took_ms = (time.perf_counter() - began) * 1e3
        _logger().warning("the daemon before was %s; this one continues after %.1f ms", life.reason, took_ms)
    life.begin(kept.record)
    life.watch(_logger().warning)
    return life


def _offer_view(options: DaemonOptions, union: Union, traffic: Traffic, mounted: Mounted) -> None:
    """Offer a view of the lowers, unless changes that the daemon does not notice at once could make it wrong."""
    serve = options.serve
    offers = options.view and options.union.upper is not None and mounted.connection is not None
    if not offers or serve.read_only or serve.writeback or options.watch or options.transport != "kernel":
        return
    from unionfs.fuse.view_offer import ViewOffer

    traffic.view_offer = ViewOffer(union, options.serve, options.mount, mounted)


def _report(
    union: Union,
    traffic: Traffic,
    options: DaemonOptions,
    mountpoint: str,
    since: float,
    control_fd: int,
    connection: int,
    life: Life | None,
) -> None:
    """In a thread: answer `unionfs stats`. Its modules are imported at the first question, or a moment after the
    start: not before the mount's first requests, and not so late that another version may be installed."""
    asked = select.poll()
    asked.register(control_fd, select.POLLIN)
    asked.poll(_IMPORT_AFTER_MS)
    from unionfs.fuse.branch_control import BranchControl
    from unionfs.fuse.reporting import Reporter

    branches = BranchControl(union, traffic, connection, life.record if life is not None else None)
    reporter = Reporter(
        union, traffic, options.transport, mountpoint, options.started_by, since, options.no_view, life, branches
    )
    reporter.serve(control_fd, connection)


def _tune_garbage_collection() -> None:
    """Make Python's cyclic garbage collection rare: each run visits all nodes, which are many, long-lived, and freed
    by reference counts. A collection now would find nothing and delay the first requests by 5 to 15 ms."""
    import gc

    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _start_logging(options: DaemonOptions) -> None:
    """Log to stderr from now on. Called late: importing the logging module takes as long as mounting."""
    from unionfs import log_lines

    log_lines.start(debug=options.debug)
    if options.started_by != IN_FOREGROUND:
        _logger().info("started by %s", options.started_by)


def _logger() -> Logger:
    import logging

    return logging.getLogger(__name__)


def _check_transport(name: str) -> None:
    """Check that the transport can be imported, while the caller still waits for the report.

    Raises: StartError.
    """
    if name not in TRANSPORTS:
        raise StartError(f"unknown transport {name!r}", f"choose one of {', '.join(TRANSPORTS)}")
    for module in _NEEDED.get(name, ()):
        try:
            import_module(module)
            continue
        except ModuleNotFoundError as error:
            why = f"no Python module {module}" if error.name == module else str(error)
        except ImportError as error:
            why = str(error)
        package = f"'unionfs[{module}]'" if module in _EXTRAS else module
        hint = f"pip install {package}, or choose another --transport"
        raise StartError(f"transport {name} cannot be used: {why}", hint)


def _check_passthrough(options: DaemonOptions) -> None:
    """Raises: StartError for options that passthrough cannot be combined with, or without the privilege."""
    if not options.serve.passthrough:
        return
    if options.transport != DEFAULT_TRANSPORT:
        raise StartError(f"passthrough needs the {DEFAULT_TRANSPORT} transport, not {options.transport}")
    if options.serve.writeback:
        raise StartError("passthrough and writeback exclude each other: data does not go through the page cache")
    if os.geteuid() != 0:
        raise StartError("passthrough needs root of the machine", code=errno.EPERM)


def _show_in_process_list(connection: int | None, *, keeper: bool = False) -> None:
    """Name this process after its FUSE connection, so that `unionfs umount` finds it and `ps` shows which one it is."""
    if connection is not None:
        name = mounting.keeper_name(connection) if keeper else mounting.process_name(connection)
        with suppress(OSError), open("/proc/self/comm", "w") as comm:
            comm.write(name)
