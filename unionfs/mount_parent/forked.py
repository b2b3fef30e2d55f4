"""A process that the parent has forked: it takes over what the caller has, and does what the caller asked for.

A forked process is to be the same as one that the caller starts. Ids, namespaces and the like are equal (identity).
What remains is taken over here: mount namespace, working directory, environment, limits, priorities, processors. What
cannot be taken over is refused, and the caller makes an ordinary mount.
"""

from __future__ import annotations

import marshal
import os
import pickle
import resource
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from unionfs import daemon
from unionfs.mount_parent import client, messages
from unionfs.syscalls.namespaces import CLONE_NEWNS, io_priority, set_command_line, set_io_priority, setns

RunCommand = Callable[[list[str]], int]

_PATIENCE_S: Final = 10.0
"""For the caller to send its request: it has been accepted already."""
_FDS: Final = 3  # mount namespace, root, working directory; then those of the request


class UnableError(Exception):
    """Something of the caller cannot be taken over. Nothing was done."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the caller sent. Immutable."""

    kind: str
    subject: Any
    environment: list[tuple[bytes, bytes]]
    paths: list[int]  # descriptors: mount namespace, root, working directory
    descriptors: list[int]  # those of the request itself


@dataclass(frozen=True, slots=True)
class Origin:
    """What a forked process knows of its parent. Immutable."""

    pid: int
    code: str  # identity.code of the process that left it
    run_command: RunCommand  # runs a command line without the program's name, and returns its exit code


def run(end: socket.socket, caller: int, origin: Origin) -> NoReturn:
    """Do what the caller, a process at the other end of `end`, asks for, and end this process."""
    status = 1
    try:
        end.settimeout(_PATIENCE_S)
        request = _receive(end, origin.code)
        end.settimeout(None)
        os.setsid()
        _take_over(request, caller)
        daemon.become_at_start(daemon.Forked(origin.pid, end.fileno(), _Teller(end, request.kind)))
        if request.kind == client.COMMAND:
            _reply(end, client.EXIT, str(_run_command(request, origin.run_command)))
        else:
            _start(end, request)
        status = 0
    except UnableError as why:
        _reply(end, client.UNABLE, str(why))
    except (OSError, EOFError):
        pass  # the caller has gone
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


def _reply(end: socket.socket, *fields: str) -> None:
    messages.send(end, os.fsencode("\0".join(fields)))


class _Teller:
    """Tells the caller that the mount can be used."""

    def __init__(self, end: socket.socket, kind: str) -> None:
        self._end = end  # immutable
        self._kind = kind  # immutable

    def __call__(self, warning: str) -> None:
        """Raises: OSError when the caller has gone."""
        if self._kind == client.COMMAND:
            _reply(self._end, client.EXIT, "0")
        else:
            _reply(self._end, client.READY, str(os.getpid()), warning)
        self._end.close()


def _run_command(request: Request, run_command: RunCommand) -> int:
    sys.argv = [os.fsdecode(word) for word in request.subject]
    for fd, given in enumerate(request.descriptors):
        os.dup2(given, fd)
    _show(["unionfs", *sys.argv[1:]])
    try:
        return run_command(sys.argv[1:])
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()


def _start(end: socket.socket, request: Request) -> None:
    options: daemon.DaemonOptions = pickle.loads(request.subject)
    if options.lifeline_fd is not None:
        options = replace(options, lifeline_fd=request.descriptors[0])
    _show(["unionfs", "mount", options.mountpoint])
    try:
        daemon.start(options)
    except daemon.StartError as error:
        _reply(end, client.FAILED, str(error), error.hint, str(error.code))


def _show(argv: list[str]) -> None:
    """Show a command line of our own in /proc/PID/cmdline."""
    try:
        set_command_line(" ".join(argv))
    except (OSError, ValueError):
        pass  # without /proc


def _take_over(request: Request, caller: int) -> None:
    """Raises: UnableError."""
    step = "its mount namespace"
    try:
        namespace, root, here = request.paths
        if os.fstat(namespace).st_ino != os.stat("/proc/self/ns/mnt").st_ino:
            setns(namespace, CLONE_NEWNS)
        if _place_of_root() != _place(root):
            raise UnableError("it has another root directory")
        step = "its working directory"
        os.fchdir(here)
        step = "its priority"
        _take_priority(caller)
        step = "its processors"
        processors = os.sched_getaffinity(caller)
        if processors != os.sched_getaffinity(0):
            os.sched_setaffinity(0, processors)
        step = "its oom_score_adj"
        _take_oom_score(caller)
        step = "its limits"
        for limit in _LIMITS:
            wanted = resource.prlimit(caller, limit)
            if wanted != resource.getrlimit(limit):
                resource.setrlimit(limit, wanted)
        step = "its umask"
        os.umask(_umask_of(caller))
    except (OSError, ValueError) as error:
        raise UnableError(f"{step} cannot be taken over: {error}") from error
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


_LIMITS: Final = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})


def _take_priority(caller: int) -> None:
    policy, parameters = os.sched_getscheduler(caller), os.sched_getparam(caller)
    if (policy, parameters) != (os.sched_getscheduler(0), os.sched_getparam(0)):
        os.sched_setscheduler(0, policy, parameters)
    nice = os.getpriority(os.PRIO_PROCESS, caller)
    if nice != os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    for_io = io_priority(caller)
    if for_io != io_priority(0):
        set_io_priority(for_io)


def _take_oom_score(caller: int) -> None:
    with open(f"/proc/{caller}/oom_score_adj", "rb") as theirs, open("/proc/self/oom_score_adj", "r+b", 0) as ours:
        wanted = theirs.read()
        if wanted != ours.read():
            ours.seek(0)
            ours.write(wanted)


def _umask_of(pid: int) -> int:
    with open(f"/proc/{pid}/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    raise ValueError("/proc/PID/status has no Umask")
