"""The daemon: open a union, mount it, and serve it through a transport until it is unmounted.

Knows `core.union` and the transports by name. Does not know command lines; prints nothing and raises StartError.

Order: branches are opened and checked, the mount is made, the caller gets the pid, and only then the transport is
imported: requests wait in the kernel until it answers them.
"""

from __future__ import annotations

import errno
import faulthandler
import fcntl
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Final, NoReturn

from unionfs import store_files
from unionfs.core.options import OptionError, Options
from unionfs.core.union import Union
from unionfs.fuse import control_socket, mounting
from unionfs.fuse.abort_on_death import ConnectionAborter
from unionfs.fuse.detachment import Mounted
from unionfs.fuse.mounting import MountError, MountOptions
from unionfs.fuse.options import DEFAULT_TRANSPORT, TRANSPORTS, ServeOptions
from unionfs.fuse.shutdown import GracefulShutdown
from unionfs.fuse.traffic import Tally, Traffic
from unionfs.mount_parent import client

if TYPE_CHECKING:
    from logging import Logger

    from unionfs.fuse.watching import Notifier

_NEEDED: Final = {"pyfuse3": ("trio", "pyfuse3")}
"""Modules that a transport needs and that may be missing."""
_EXTRAS: Final = ("pyfuse3",)  # modules outside of the base install; each is in the extra of the same name
_UPPER_IN_USE: Final = (
    "another running daemon uses the same upper directory: each may miss changes of the other "
    "unless both are mounted with --watch"
)

_FIRST_AFTER_STDIO: Final = 3
_FOREGROUND: Final = client.NoParentError("in the foreground")

MODULES: Final = (
    *("unionfs.fuse.kernel.handshake", "unionfs.fuse.kernel.server"),
    *("unionfs.fuse.reporting", "unionfs.fuse.view_offer", "unionfs.log_lines"),
)
"""What a daemon imports after its start, unless its options ask for other things: a parent of mounts has it loaded."""
_IMPORT_AFTER_MS: Final = 1000

Warn = Callable[[str], None]


class StartError(Exception):
    """The union could not be mounted; nothing is left mounted. `str()` is the message for users, `hint` says what to
    do, `code` is the nearest errno (0: none)."""

    def __init__(self, message: str, hint: str = "", code: int = 0) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """The options of a daemon. Immutable. Paths must be absolute: the daemon leaves the caller's working directory."""

    union: Options
    mountpoint: str  # or /dev/fd/N, a descriptor of /dev/fuse that another program has mounted
    transport: str = DEFAULT_TRANSPORT
    mount: MountOptions = field(default_factory=MountOptions)
    serve: ServeOptions = field(default_factory=ServeOptions)
    may_cover_union: bool = False  # mount also where a union is mounted already, as other mount programs do
    log: str | None = None  # file that log and stderr are appended to; None: discarded, except under debug
    watch: bool = False  # notice changes to the branches that are made outside of the union
    view: bool = False  # let read-only unions of the same lowers be views of this one; needs an upper
    no_view: str = ""  # why this read-only union is not a view of another one, if that was tried
    exclusive: bool = False  # refuse an upper that another running daemon writes to, instead of warning
    debug: bool = False  # log everything; without a log file, to the caller's stderr
    lifeline_fd: int | None = None  # the daemon unmounts and exits at its end of file


def start(options: DaemonOptions, *, warn: Warn = lambda _: None) -> int:
    """Mount in a new process that outlives this one, and return its pid as soon as the mount can be used.

    The parent of our mounts forks it, if there is one that can (mount_parent); in a process that it has forked for
    that, this does not return, and the process becomes the daemon. Else this process forks it.
    The new process is a daemon(7): reparented, in a new session, in /, with the descriptors of `options` only.
    Raises: StartError.
    """
    if _forked is not None:
        _become(options, warn, _forked)
    verdict, *fields = _ask_parent(options) or _fork(options)
    if verdict == client.READY:
        pid, warning = fields
        if warning:
            warn(warning)
        return int(pid)
    if verdict == client.FAILED:
        sentence, hint, code = fields
        raise StartError(sentence, hint, int(code))
    raise StartError(client.ENDED, client.ENDED_HINT)


def _ask_parent(options: DaemonOptions) -> list[str]:
    """Have the parent fork the daemon. Returns its reply; nothing where this process is to do it."""
    if client.refusal is None:
        fds = [] if options.lifeline_fd is None else [options.lifeline_fd]
        try:
            if mounting.inherited_fd(options.mountpoint) is not None:
                raise client.NoParentError("the mountpoint is a descriptor")
            return client.ask(client.OPTIONS, partial(_pickled, options), fds)
        except client.NoParentError as why:
            client.refusal = why
        except client.ParentEndedError:
            return [""]
    return []


def _pickled(options: DaemonOptions) -> bytes:
    import pickle

    return pickle.dumps(options)


def _fork(options: DaemonOptions) -> list[str]:
    """Fork the daemon, and return the fields of its report."""
    read_fd, write_fd = map(_above_stdio, os.pipe())
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
    client.refusal = _FOREGROUND
    _serve(options, lambda warning: warn(warning) if warning else None)


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
            os._exit(0)  # the daemon is reparented, so that its starter need not reap it
        _detach(options, report.fd)()
        _serve(options, lambda warning: report.send(client.READY, str(os.getpid()), warning))
        status = 0
    except BaseException as bug:  # noqa: BLE001 - the starter may wait for a report
        error = bug if isinstance(bug, StartError) else _internal_error(bug)
        report.send(client.FAILED, str(error), error.hint, str(error.code))
        if error is not bug:
            _logger().exception("the daemon ends because of a bug")
    finally:
        os._exit(status)


def _internal_error(bug: BaseException) -> StartError:
    return StartError(f"internal error: {type(bug).__name__}: {bug}", "--foreground --debug shows where")


@dataclass(frozen=True, slots=True)
class Forked:
    """The caller of a process that was forked to become a daemon, as that process knows it. Immutable."""

    parent: int  # pid of the process that has forked it
    report_fd: int  # kept open until the mount can be used
    tell: Callable[[str], None]  # called with a warning or "", once the mount can be used; OSError: the caller has gone


_forked: Forked | None = None  # set once, by `become_at_start`


def become_at_start(forked: Forked) -> None:
    """Let the first call of `start` make this process the daemon. Only in a process that was forked for that, alone and
    leading no process group."""
    global _forked  # noqa: PLW0603 - one process is one daemon
    _forked = forked


def _become(options: DaemonOptions, warn: Warn, forked: Forked) -> NoReturn:
    """Serve in this process, and end it. Raises StartError until the mount can be used."""
    replace_stdio = _detach(options, forked.report_fd)
    is_told, status = False, 1

    def ready(warning: str) -> None:
        nonlocal is_told
        if warning:
            warn(warning)
        replace_stdio()
        is_told = True  # the caller reads no more of what this process prints
        forked.tell(warning)

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
    return detach(keep, options.log)


def detach(keep: set[int | None], log: str | None = None) -> Callable[[], None]:
    """Detach this process from its starter: umask, descriptors but those to `keep`, signal dispositions.

    Returns what replaces the standard descriptors, by `log` or /dev/null: until then errors can be printed.
    """
    os.umask(0)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd >= _FIRST_AFTER_STDIO and fd not in keep:
            with suppress(OSError):  # the descriptor of the listing itself is closed already
                os.close(fd)
    null_fd = _above_stdio(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    out_fd = null_fd if log is None else _above_stdio(_open_log(log))
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # which Python ignores itself
        if signal.getsignal(number) == signal.SIG_IGN:  # by nohup, or `&` in a script: daemon(7) wants the defaults
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    return partial(_replace_stdio, null_fd, out_fd, keep)


def _replace_stdio(null_fd: int, out_fd: int, keep: set[int | None]) -> None:
    for fd, new_fd in ((0, null_fd), (1, null_fd), (2, out_fd)):
        if fd not in keep:
            os.dup2(new_fd, fd)
    for fd in {null_fd, out_fd}:
        os.close(fd)


def _above_stdio(fd: int) -> int:
    """Return `fd`, duplicated above 2 if it is one of 0 to 2, which happens when the caller has closed them."""
    if fd >= _FIRST_AFTER_STDIO:
        return fd
    moved: int = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_AFTER_STDIO)
    os.close(fd)
    return moved


def _open_log(path: str) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    try:
        if os.path.dirname(path) == "/dev":  # /dev/null, /dev/stderr
            return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o600)
        return store_files.open_file(path, flags)
    except OSError as error:
        raise StartError(f"opening the log failed: {path}: {error.strerror}") from error


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
    try:
        os.chdir("/")
        traffic = _negotiate(options, fd)
        if mounted.connection is not None:
            mounting.set_read_ahead(mounted.connection)
        union.learn_mounts()
        _show_in_process_list(mounted.connection)
        control_fd = None if mounted.connection is None else control_socket.open_listening(mounted.connection)
        ready(_warnings(union, notifier))
        aborter = ConnectionAborter(mounted.connection) if notifier is not None else None
        mounted.leave_namespace()
        _offer_view(options, union, traffic, mounted)
        if aborter is not None:
            aborter.start()
        shutdown.listen(mounted, options.lifeline_fd)
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)  # prints a stack trace; SIGUSR1 no longer kills
        _start_logging(debug=options.debug)
        if options.no_view:
            _logger().info("not a view: %s", options.no_view)
        transport = import_module(TRANSPORTS[options.transport])
        _tune_garbage_collection()
        if control_fd is not None and mounted.connection is not None:
            about = (union, traffic, options, mountpoint, time.monotonic(), control_fd, mounted.connection)
            threading.Thread(target=_report, args=about, name="reporting", daemon=True).start()
        serving = True
        transport.serve(fd, union, options=options.serve, traffic=traffic, notifier=notifier)
    except BaseException:
        if shutdown.has_interrupted:
            return
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


def _offer_view(options: DaemonOptions, union: Union, traffic: Traffic, mounted: Mounted) -> None:
    """Offer a view of the lowers, unless what others or the kernel change behind our back could make it wrong."""
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
) -> None:
    """In a thread: answer `unionfs stats`. What that imports is imported at the first question, or a moment after the
    start: not before the mount's first requests, and not so late that the files may be another version's."""
    asked = select.poll()
    asked.register(control_fd, select.POLLIN)
    asked.poll(_IMPORT_AFTER_MS)
    from unionfs.fuse.reporting import Reporter

    reporter = Reporter(union, traffic, options.transport, mountpoint, started_by(), since, options.no_view)
    reporter.serve(control_fd, connection)


def _tune_garbage_collection() -> None:
    """Make Python's cyclic garbage collection rare: each run visits all nodes, which are many, long-lived, and freed
    by reference counts. There is no garbage yet: to look for it would only delay the first requests, by 5 to 15 ms."""
    import gc

    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _start_logging(debug: bool) -> None:
    """Log to stderr from now on. Called late: importing the logging module takes as long as mounting."""
    from unionfs import log_lines

    log_lines.start(debug=debug)
    if client.refusal is not _FOREGROUND:
        _logger().info("started by %s", started_by())


def started_by() -> str:
    """Name the process that made this one the daemon: its parent, or itself and why."""
    if _forked is not None:
        return f"parent {_forked.parent}"
    return f"itself: {client.refusal}" if client.refusal is not None else "itself"


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


def _show_in_process_list(connection: int | None) -> None:
    """Name this process after its FUSE connection, so that `unionfs umount` finds it and `ps` shows which one it is."""
    if connection is not None:
        with suppress(OSError), open("/proc/self/comm", "w") as comm:
            comm.write(mounting.process_name(connection))
