"""The supervisor of a container with one id: it answers system calls about owners, devices and users.

The kernel refuses chown(2), setuid(2) and the like for ids that the container's user namespace does not map, and
mknod(2) of devices altogether. A filter (syscalls.seccomp) intercepts these calls, and the supervisor, a process
outside of the container's pid namespace, emulates them (file_owners, process_identities). stat(2) and getuid(2) return
the emulated values.

This protects nothing: for the kernel, all processes of the container have the same uid. Calls that cannot be emulated
are left to the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Final, NoReturn

from unionfs.launcher import file_owners, process_identities
from unionfs.launcher.caller import Caller, CallerGoneError, LeaveToKernelError
from unionfs.launcher.file_owners import FileOwners
from unionfs.launcher.process_identities import BY_ARGUMENT, ProcessIdentities
from unionfs.syscalls import seccomp
from unionfs.syscalls.namespaces import set_parent_death_signal, set_process_name
from unionfs.syscalls.seccomp import Call

NAME: Final = "unionfs-ids"
"""The name of the process in `ps`."""

INTERCEPTED: Final = (*file_owners.CALLS, *process_identities.CALLS)

_COUNT: Final = struct.Struct("I")


def start(prepare: Callable[[], None] = lambda: None) -> tuple[int, socket.socket]:
    """Fork a supervisor. Return its pid and the socket for `install_filter`. It ends with the last process that has the
    filter, or with this process.

    Preconditions: after `prepare`, it is root of the container's user namespace; our /proc shows the container's
    processes.
    """
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _run_supervisor(theirs, parent, prepare)
    theirs.close()
    return pid, ours


def install_filter(supervisor_socket: socket.socket, groups: tuple[int, ...] = ()) -> None:
    """Install the filter for this process and its descendants, and send the listener to the supervisor.

    `groups` are the supplementary groups that this process then has. It cannot set them itself: setgroups(2) passes
    them in memory, which the supervisor cannot read before execve(2), since the process is not dumpable.
    Raises: OSError when the kernel refuses a filter with a listener.
    """
    listener = seccomp.install_filter(INTERCEPTED, BY_ARGUMENT)
    socket.send_fds(supervisor_socket, [struct.pack(f"I{len(groups)}I", len(groups), *groups)], [listener])
    os.close(listener)
    supervisor_socket.close()


def _run_supervisor(supervisor_socket: socket.socket, parent: int, prepare: Callable[[], None]) -> NoReturn:
    status = 1
    try:
        prepare()
        set_parent_death_signal(9)
        if os.getppid() != parent:
            os._exit(0)
        set_process_name(NAME)
        proc_fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        _close_others({supervisor_socket.fileno(), proc_fd, 2})
        count, (listener,), _, _ = socket.recv_fds(supervisor_socket, _COUNT.size, 1, socket.MSG_CMSG_CLOEXEC)
        groups = supervisor_socket.recv(_COUNT.size * _COUNT.unpack(count)[0], socket.MSG_WAITALL)
        supervisor_socket.close()
        Supervisor(listener, proc_fd, struct.unpack(f"{len(groups) // _COUNT.size}I", groups)).run()
        status = 0
    except ValueError:
        status = 0  # the socket was closed without a listener: there is no command
    finally:
        os._exit(status)


def _close_others(kept: set[int]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


class Supervisor:
    """Answers one container's calls, one after the other."""

    def __init__(self, listener: int, proc_fd: int, groups: tuple[int, ...] = ()) -> None:
        self._listener: Final = listener
        self._proc_fd: Final = proc_fd  # the host's /proc; also our working directory, for paths like self/fd/N
        machine = seccomp.machine()
        assert machine is not None
        identities = ProcessIdentities(groups)
        self._owners: Final = FileOwners(identities, proc_fd, machine.stat_ids)
        self._answers: Final[dict[int, Callable[[Caller], int]]] = {
            machine.numbers[name]: getattr(served, name)
            for served, names in ((identities, process_identities.CALLS), (self._owners, file_owners.CALLS))
            for name in names
            if name in machine.numbers
        }

    def run(self) -> None:
        """Answer calls until the last process with the filter has ended."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        os.fchdir(self._proc_fd)
        while True:
            ((_, events),) = poll.poll()
            if not events & select.POLLIN:
                return
            try:
                call = seccomp.receive(self._listener)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue  # the caller was interrupted or has ended
                raise
            with contextlib.suppress(FileNotFoundError):  # the call was interrupted before the answer
                self._answer(call)

    def _answer(self, call: Call) -> None:
        with contextlib.closing(Caller(self._listener, self._proc_fd, call)) as caller:
            try:
                value = self._answers[call.number](caller)
            except CallerGoneError:
                return
            except LeaveToKernelError:
                seccomp.answer(self._listener, call, flags=seccomp.CONTINUE)
            except OSError as error:
                seccomp.answer(self._listener, call, code=error.errno or errno.EIO)
            except Exception:  # a bug here must not hang the container
                seccomp.answer(self._listener, call, flags=seccomp.CONTINUE)
                raise
            else:
                seccomp.answer(self._listener, call, value)
