"""The daemon: opens a union, mounts it, and serves it through a transport until it is unmounted.

Knows `core.union` and the transports by name. Does not know command lines or who starts it (`daemon.start`); prints
nothing and raises StartError.

Order: the branches are opened and checked, the union is mounted, the caller gets the pid, and only then the transport
is imported: requests wait in the kernel until the transport answers them.
"""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Final, NoReturn

from unionfs.control import listening
from unionfs.core.options import OptionError
from unionfs.core.union import Union
from unionfs.daemon import keeper_process, mounted_union
from unionfs.daemon.mounted_union import Service
from unionfs.daemon.options import BecomeParent, DaemonOptions, Forked, StartError
from unionfs.detach import above_stdio, detach
from unionfs.fuse import mounting
from unionfs.fuse.death_helper import DeathHelper
from unionfs.fuse.detachment import Mounted
from unionfs.fuse.mounting import MountError
from unionfs.fuse.options import DEFAULT_TRANSPORT, TRANSPORTS
from unionfs.fuse.shutdown import GracefulShutdown
from unionfs.fuse.traffic import Tally, Traffic
from unionfs.mount_parent.client import FAILED, READY

if TYPE_CHECKING:
    from logging import Logger

    from unionfs.fuse.keeper_channel import Channel
    from unionfs.fuse.watching import Notifier

_NEEDED: Final = {"pyfuse3": ("trio", "pyfuse3")}
"""Modules that a transport needs; they may be missing."""
_EXTRAS: Final = ("pyfuse3",)  # modules outside of the base install; each is in the extra of the same name
_UPPER_IN_USE: Final = (
    "another running daemon uses the same upper directory: each may not notice changes of the other "
    "unless both are mounted with --watch"
)

_DESCRIPTORS: Final = 20
"""For the connection, the record of nodes and its keeper, the control socket, threads, and a file of one request."""

IN_FOREGROUND: Final = "itself: in the foreground"

Warn = Callable[[str], None]


def fork(options: DaemonOptions, become_parent: BecomeParent | None = None) -> list[str]:
    """Fork the daemon, and return the fields of its report, as a parent of mounts replies; "" if it has ended before.

    The daemon is reparented, in a new session, in /, with the descriptors of `options` only.
    """
    read_fd, write_fd = map(above_stdio, os.pipe())
    child = os.fork()
    if child == 0:
        os.close(read_fd)
        _run_daemon(options, write_fd, become_parent)
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


def _run_daemon(options: DaemonOptions, write_fd: int, become_parent: BecomeParent | None) -> NoReturn:
    """Run the daemon in the forked child: detach, serve, exit."""
    report, status = _Report(write_fd), 1
    try:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)  # reparented, so that its starter need not reap it
        parent = None
        if become_parent is not None:
            with suppress(OSError):  # no process, no descriptor: the mount is an ordinary one
                parent = become_parent()

        def ready(warning: str) -> None:
            if parent is not None:
                parent.wait_until_listening()
            report.send(READY, str(os.getpid()), warning)

        _detach(options, write_fd, *(() if parent is None else (parent.fileno(),)))()
        _serve(options, ready, parent)
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


def become(options: DaemonOptions, warn: Warn, forked: Forked) -> NoReturn:
    """Serve in this process, which was forked to become the daemon, and end it. Raises StartError until the mount can
    be used."""
    replace_stdio = _detach(options, *forked.descriptors, forked.channel.fileno())
    is_reported, status = False, 1

    def ready(warning: str) -> None:
        nonlocal is_reported
        if warning:
            warn(warning)
        replace_stdio()
        is_reported = True  # the caller does not read the output of this process any more
        forked.tell(warning)

    try:
        _serve(options, ready, forked.channel)
        status = 0
    except BaseException as bug:
        if not is_reported:
            raise bug if isinstance(bug, StartError) else _internal_error(bug) from bug
        if not isinstance(bug, BrokenPipeError):
            _logger().exception("the daemon ends because of a bug")
    os._exit(status)


def _detach(options: DaemonOptions, *others: int) -> Callable[[], None]:
    keep = {*others, options.lifeline_fd, options.held_fd, mounting.inherited_fd(options.mountpoint)}
    if options.debug and options.log is None:
        keep.add(2)
    try:
        return detach(keep, options.log)
    except OSError as error:
        raise StartError(f"opening the log failed: {options.log}: {error.strerror}") from error


def _serve(options: DaemonOptions, ready: Warn, parent: Channel | None = None) -> None:
    """Open and mount the union, call `ready` with a warning or "", serve, close. `parent`: of mounts, which may keep
    it."""
    _check_transport(options.transport)
    _check_passthrough(options)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        mountpoint = mounting.check_mountpoint(options.mountpoint, may_cover_union=options.may_cover_union)
        union = Union(options.union)
        try:
            _check_descriptors()
        except OSError:
            union.close()
            raise
    except MountError as error:
        raise StartError(str(error), error.hint, error.errno or 0) from error
    except OptionError as error:
        raise StartError(f"mount failed: {options.mountpoint}: {error}", code=error.errno or 0) from error
    except OSError as error:
        why = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        raise StartError(f"mount failed: {options.mountpoint}: {why}", code=error.errno or 0) from error
    try:
        if options.exclusive and union.upper_in_use:
            why = f"another union has the upper {options.union.upper} for writing"
            raise StartError(f"mount failed: {options.mountpoint}: {why}", code=errno.EBUSY)
        _mount_and_serve(options, mountpoint, union, _notifier(options, union), ready, parent)
    finally:
        union.close()


def _check_descriptors() -> None:
    """Check that this process may open what a daemon opens after its branches: some of it only when the caller does not
    wait any more. Raises: OSError with EMFILE or ENFILE."""
    opened: list[int] = []
    try:
        opened.extend(os.eventfd(0) for _ in range(_DESCRIPTORS))
    finally:
        for fd in opened:
            os.close(fd)


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
    options: DaemonOptions,
    mountpoint: str,
    union: Union,
    notifier: Notifier | None,
    ready: Warn,
    parent: Channel | None,
) -> None:
    shutdown = GracefulShutdown()
    try:
        fd = mounting.mount_union(mountpoint, options.mount)
    except MountError as error:
        raise StartError(str(error), error.hint, error.errno or 0) from error
    mounted = Mounted(mountpoint)
    service = Service(options, union, mounted, fd, shutdown)
    service.notifier = notifier
    with service.until_its_end():
        os.chdir("/")
        traffic = service.traffic = _negotiate(options, union, fd)
        if mounted.connection is not None:
            mounting.set_read_ahead(mounted.connection)
        union.learn_mounts()
        is_kept = not mounted_union.why_not_kept(options, traffic)
        keeper_process.show_in_process_list(mounted.connection, keeper=is_kept)
        service.control_fd = None if mounted.connection is None else listening.open_listening(mounted.connection)
        ready(_warnings(union, notifier))
        service.helper = DeathHelper(mounted.connection if notifier is not None else None)
        mounted.leave_namespace()
        mounted_union.offer_view(service)
        mounted_union.prepare(options)
        if options.started_by != IN_FOREGROUND:
            _logger().info("started by %s", options.started_by)
        if options.no_view:
            _logger().info("not a view: %s", options.no_view)
        import_module(TRANSPORTS[options.transport])
        mounted_union.tune_garbage_collection()
        service.since = time.monotonic()
        if is_kept:
            traffic.death_helper = service.helper
            if notifier is not None:
                notifier.pause()
            keeper_process.start(service, parent)
        service.serve()


def _negotiate(options: DaemonOptions, union: Union, fd: int) -> Traffic:
    """Negotiate the protocol with the kernel. Done before the mount is reported as ready, so that it may fail."""
    if options.transport != "kernel":
        return Tally()
    from unionfs.fuse.kernel.device import Gone
    from unionfs.fuse.kernel.handshake import negotiate

    try:
        return negotiate(fd, options.serve, mounted_union.tuning(union))
    except OSError as error:
        raise StartError(f"mount failed: {options.mountpoint}: {error.strerror}") from error
    except Gone:
        raise StartError(f"mount failed: {options.mountpoint}: it was unmounted before the daemon was ready") from None


def _logger() -> Logger:
    import logging

    return logging.getLogger(__package__)


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
