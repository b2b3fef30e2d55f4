"""A process that the parent has forked: it takes over the caller's properties, and carries out the request.

For a container it does the work of `unionfs run`, and is killed if the caller ends.

A forked process must have the properties of a process that the caller starts. Ids, namespaces and some others are equal
already (identity). This module takes over the rest: namespaces that the caller has entered since, working directory,
environment, limits, priorities, processors. If that fails, the request is refused, and the caller makes an ordinary
mount. This process has the caller's own rights, so it cannot enter a namespace that the caller could not enter.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Final, NamedTuple, NoReturn

from unionfs import process_properties
from unionfs.daemon import start
from unionfs.daemon.options import DaemonOptions, Forked, StartError
from unionfs.fuse import keeper_channel
from unionfs.fuse.keeper_channel import Channel
from unionfs.mount_parent import client, messages
from unionfs.process_properties import UnableError
from unionfs.syscalls.namespaces import set_command_line, set_process_name

RunCommand = Callable[[list[str]], int]

_PATIENCE_S: Final = 10.0
"""Time limit for the request of an accepted caller."""
OF_RUN: Final = (
    "unionfs.cli.run",
    *("layers.store", "layers.lookup", "unionfs.containers.images", "unionfs.containers.image_mount"),
    *("unionfs.containers.scratch", "unionfs.launcher.namespace_socket", "unionfs.launcher.supervisor"),
)
"""Modules of `unionfs run`: they take a third of the memory of a parent, so it imports them after its first client that
needs them."""
_F_SETSIG: Final = 10  # fcntl(2)
_FDS: Final = len(client.NAMESPACES) + 2  # namespaces, root, working directory; then those of the request


class Request(NamedTuple):
    """The caller's request. Immutable."""

    kind: str
    subject: Any
    environment: list[tuple[bytes, bytes]]
    places: list[int]  # descriptors: client.NAMESPACES, root, working directory
    descriptors: list[int]  # descriptors of the request itself


class Origin(NamedTuple):
    """Values that a forked process gets from its parent. Immutable."""

    pid: int
    code: str  # identity.code of the process that left it
    run_command: RunCommand  # runs a command line without the program's name, and returns its exit code


def run(end: socket.socket, caller: int, origin: Origin, channel: Channel) -> NoReturn:
    """Carry out the request of the caller, the process at the other end of `end`, and end this process. `channel`: to
    the parent, which may keep the mount."""
    status = 1
    try:
        end.settimeout(_PATIENCE_S)
        request = _receive(end, origin.code)
        end.settimeout(None)
        os.setsid()
        ended, held = os.pipe()  # before the caller's limits are taken over
        _take_over(request, caller)
        if request.kind == client.RUN:
            channel.send(keeper_channel.RUNS)
            channel.close()
            _run_container(end, request, origin.run_command)
            os._exit(0)
        teller = _Teller(end, request.kind, ended)
        start.become_at_start(Forked(origin.pid, channel, (end.fileno(), ended), teller))
        if request.kind == client.COMMAND:
            os.close(held)
            _reply(end, client.EXIT, str(_run_command(request, origin.run_command)))
        else:
            _start(end, request, held)
        status = 0
    except UnableError as why:
        _reply(end, client.UNABLE, str(why))
    except (OSError, EOFError):
        pass  # the caller has ended
    finally:
        os._exit(status)


def _receive(end: socket.socket, own_code: str) -> Request:
    message, fds = messages.receive(end)
    code, kind, subject, environment = marshal.loads(message)
    if code != own_code:
        raise UnableError("it runs other code")
    if len(fds) < _FDS:
        raise UnableError("no descriptors are left")
    return Request(kind, subject, environment, fds[:_FDS], fds[_FDS:])


def _reply(end: socket.socket, *fields: str, descriptors: Sequence[int] = ()) -> None:
    messages.send(end, os.fsencode("\0".join(fields)), descriptors)


class _Teller:
    """Reports to the caller that the mount can be used."""

    def __init__(self, end: socket.socket, kind: str, ended: int) -> None:
        self._end = end  # immutable
        self._kind = kind  # immutable
        self._ended = ended  # immutable: see start.Started

    def __call__(self, warning: str) -> None:
        """Raises: OSError if the caller has ended."""
        if self._kind == client.COMMAND:
            _reply(self._end, client.EXIT, "0")
        else:
            pidfd = os.pidfd_open(os.getpid())  # the caller is not our parent, so our pid may be reused
            _reply(self._end, client.READY, str(os.getpid()), warning, descriptors=[pidfd, self._ended])
            os.close(pidfd)
        os.close(self._ended)
        self._end.close()


def _run_command(request: Request, run_command: RunCommand) -> int:
    sys.argv = [os.fsdecode(word) for word in request.subject]
    for fd, given in enumerate(request.descriptors):
        os.dup2(given, fd)
        os.close(given)
    _show(["unionfs", *sys.argv[1:]])
    try:
        return run_command(sys.argv[1:])
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()


def _run_container(end: socket.socket, request: Request, run_command: RunCommand) -> None:
    """Run a command line of `unionfs run`. Raises: UnableError; OSError if the caller has ended."""
    if os.access("/proc/self/exe", os.W_OK):
        raise UnableError("its interpreter can be written to")  # see launcher.own_executable
    command_line, ignored, blocked = request.subject
    _end_with(end)
    _take_signals(ignored, blocked)
    for fd in (int(name) for name in os.listdir("/proc/self/fd")):
        if fd > 2 and fd != end.fileno() and fd not in request.descriptors:
            with suppress(OSError):  # the one of the listing itself
                os.close(fd)
    client.refusal, client.may_leave_parent = None, False
    set_process_name("unionfs")
    import_present(OF_RUN)  # before the caller forwards signals
    pidfd = os.pidfd_open(os.getpid())
    try:
        _reply(end, client.BEGUN, descriptors=[pidfd])
        os.close(pidfd)
        status = _run_command(request._replace(subject=command_line), run_command)
    except KeyboardInterrupt:  # forwarded by the caller, before or after the command line handles it
        status = 128 + signal.SIGINT
    _reply(end, client.EXIT, str(status))


def import_present(modules: Sequence[str]) -> None:
    """Import the modules that are installed."""
    for module in modules:
        with suppress(ImportError):
            import_module(module)


def _end_with(end: socket.socket) -> None:
    """Have the kernel kill this process when the other end is closed, so when the caller ends: the caller sends nothing
    more.

    Raises: OSError if it is closed already.
    """
    fcntl.fcntl(end, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(end, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_ASYNC)
    try:
        if not end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            raise BrokenPipeError
    except BlockingIOError:
        pass


def _take_signals(ignored: Sequence[int], blocked: Sequence[int]) -> None:
    """Ignore and block signals as the caller does."""
    for number in signal.valid_signals() - client.IGNORED_BY_PYTHON:
        is_ignored = signal.getsignal(number) == signal.SIG_IGN
        if number in ignored and not is_ignored:
            signal.signal(number, signal.SIG_IGN)
        elif is_ignored and number not in ignored:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _start(end: socket.socket, request: Request, held_fd: int) -> None:
    options: DaemonOptions = pickle.loads(request.subject)._replace(held_fd=held_fd)
    if options.lifeline_fd is not None:
        options = options._replace(lifeline_fd=request.descriptors[0])
    _show(["unionfs", "mount", options.mountpoint])
    try:
        start.start(options)
    except StartError as error:
        _reply(end, client.FAILED, str(error), error.hint, str(error.code))


def _show(argv: list[str]) -> None:
    """Change our command line in /proc/PID/cmdline."""
    try:
        set_command_line(" ".join(argv))
    except (OSError, ValueError):
        pass  # without /proc


def _take_over(request: Request, caller: int) -> None:
    """Raises: UnableError."""
    step = "its namespaces"
    try:
        *namespaces, root, here = request.places
        process_properties.enter(namespaces)
        if _place_of_root() != _place(root):
            raise UnableError("it has another root directory")
        step = "its working directory"
        os.fchdir(here)
        step = "its inherited properties"
        wanted = process_properties.read(caller)
    except (OSError, ValueError) as error:
        raise UnableError(f"{step} cannot be taken over: {error}") from error
    process_properties.take(wanted)
    os.environb.clear()
    os.environb.update(request.environment)
    time.tzset()


def _place_of_root() -> tuple[int, int, bytes]:
    fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        return _place(fd)
    finally:
        os.close(fd)


def _place(fd: int) -> tuple[int, int, bytes]:
    """Identify a directory and the mount by which it is reached: a bind mount shows the same directory elsewhere."""
    status = os.fstat(fd)
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        mount = next(line for line in info if line.startswith(b"mnt_id:"))
    return status.st_dev, status.st_ino, mount
