"""Pause a container: all its processes but the first are stopped, and its filesystem is synced.

The helper process that stops them is in the container's pid namespace. It continues them at the end of file of a pipe,
so also if the process that asked for the pause is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Final

from unionfs.containers import running
from unionfs.containers.complete import complete_upper
from unionfs.containers.errors import ContainerError
from unionfs.containers.record import Container
from unionfs.launcher import userns
from unionfs.launcher.namespace_socket import Namespaces
from unionfs.syscalls import files
from unionfs.syscalls.namespaces import set_command_line, set_dumpable, set_process_name

_SETTLING_S: Final = 2.0  # seconds for processes to stop; a process that hangs in the kernel does not write
_STILL: Final = (b"T", b"t", b"Z", b"X")


@contextlib.contextmanager
def paused(container: Container, what: str, *, stopped: bool) -> Iterator[None]:
    """Context in which the upper of a container, running or not, is complete and does not change. Raises:
    ContainerError, LaunchError."""
    if container.status != "running":
        complete_upper(container, what)
        yield
        return
    ready_read, ready_write = os.pipe()
    over_read, over_write = os.pipe()

    def help_pause(namespaces: Namespaces, firsts: list[int]) -> int:
        os.close(ready_read)
        os.close(over_write)
        return _help(namespaces, ready_write, over_read, firsts if stopped else [], stopped=stopped)

    helper = None
    try:
        try:
            helper = _fork_helper(container, what, help_pause)
        finally:
            os.close(ready_write)
            os.close(over_read)
        if not os.read(ready_read, 1):
            hint = "use --no-pause" if what == "commit" else ""
            raise ContainerError(what, container.name, "it cannot be paused", hint=hint)
        complete_upper(container, what)
        yield
    finally:
        os.close(over_write)
        os.close(ready_read)
        if helper is not None:
            os.waitpid(helper, 0)


def signal_all(container: Container, number: int) -> None:
    """Send a signal to all processes of a running container; to process 1 only if it is the command itself.

    For SIGCONT, and for SIGSTOP, which would else stop only process 1. Raises: ContainerError, LaunchError.
    """

    def help_signal(namespaces: Namespaces, firsts: list[int]) -> int:
        _enter(namespaces)
        _signal(firsts, number)
        child = os.fork()  # only a child is in the pid namespace
        if child:
            os.waitpid(child, 0)
            return 0
        try:
            if number == signal.SIGCONT:
                _wake(_processes(()))
            else:
                os.kill(-1, number)
        finally:
            os._exit(0)

    os.waitpid(_fork_helper(container, "sending a signal", help_signal), 0)


def _fork_helper(container: Container, what: str, body: Callable[[Namespaces, list[int]], int]) -> int:
    """Fork a process that calls `body` with the container's namespaces and `_first_of_runtime`. Returns its pid."""
    namespaces = running.enter(container, what)
    firsts: list[int] = []
    try:
        firsts = _first_of_runtime(container)
        return userns.fork(None, 0, lambda: body(namespaces, firsts))
    finally:
        namespaces.close()
        for fd in firsts:
            os.close(fd)


def _first_of_runtime(container: Container) -> list[int]:
    """A pidfd of process 1 of a container with an OCI runtime. It is the command itself, and no process
    in its pid namespace can stop it."""
    pid = container.state.pid
    if not container.config.runtime or pid is None:
        return []
    try:
        children = _children(pid)[:1]
        fds = [os.pidfd_open(child) for child in children]
        if _children(pid)[:1] == children and container.is_process_one():  # so their numbers were not reused
            return fds
    except OSError:
        return []  # it is ending
    for fd in fds:
        os.close(fd)
    return []


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


def _signal(fds: list[int], number: int) -> None:
    for fd in fds:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)


def _help(namespaces: Namespaces, ready_fd: int, over_fd: int, firsts: list[int], *, stopped: bool) -> int:
    _enter(namespaces)
    _signal(firsts, signal.SIGSTOP)
    child = os.fork()  # only a child is in the pid namespace
    if child:
        os.close(ready_fd)
        os.waitpid(child, 0)
        _signal(firsts, signal.SIGCONT)
        return 0
    asleep = _processes(_STILL)
    try:
        if stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGSTOP)  # kill(2): all but ourselves and process 1, at once
            deadline = time.monotonic() + _SETTLING_S
            while _processes(_STILL) != _processes(()) and time.monotonic() < deadline:
                time.sleep(0.01)
        root_fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        files.syncfs(root_fd)
        os.close(root_fd)
        os.write(ready_fd, b"r")
        os.read(over_fd, 1)
    finally:
        if stopped:
            _wake(_processes(()) - asleep)
        os._exit(0)


def _enter(namespaces: Namespaces) -> None:
    set_process_name("unionfs-pause")
    set_command_line("unionfs-pause")
    namespaces.enter()
    namespaces.close()
    set_dumpable(False)


def _wake(pids: set[int]) -> None:
    """Continue processes, children first: a shell that wakes up and finds its child stopped would report it."""
    for pid in sorted(pids, reverse=True):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)


def _processes(states: tuple[bytes, ...]) -> set[int]:
    """The processes of this pid namespace in one of the states, or in any; without process 1 and this process."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) not in (1, os.getpid()):
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                state = file.read().rpartition(b")")[2].split()[0]
                if not states or state in states:
                    found.add(int(name))
    return found
