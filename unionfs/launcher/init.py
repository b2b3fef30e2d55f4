"""Process 1 of a container: sets up its root, starts the command, reaps, forwards signals, ends with the command.

When process 1 ends, the kernel kills all other processes of the container.

It runs in the container but has the host's interpreter in memory, so it hides the host: it is not dumpable, its
arguments and environment are overwritten, and it drops all capabilities except the one to signal the command.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from unionfs import store_files
from unionfs.launcher import capabilities, command, steps
from unionfs.launcher.channel import Sender
from unionfs.launcher.errors import OWN_FAILURE, LaunchError
from unionfs.launcher.plan import Plan
from unionfs.launcher.spec import Spec
from unionfs.launcher.userns import reset_signals
from unionfs.syscalls.mounts import MS_PRIVATE, MS_REC, mount
from unionfs.syscalls.namespaces import (
    CLONE_NEWNS,
    Capabilities,
    capset,
    set_command_line,
    set_dumpable,
    set_parent_death_signal,
    set_process_name,
    unshare,
)

if TYPE_CHECKING:
    import socket

    from unionfs.launcher.capture import Capture
    from unionfs.launcher.hook_process import HookProcess
    from unionfs.launcher.namespace_socket import NamespaceServer
    from unionfs.launcher.terminal import ConsoleSocket

NAME: Final = "unionfs-init"
_UNSTARTED: Final = b"x"
_APPENDED: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND
_KEY_SIGNALS: Final = {signal.SIGINT, signal.SIGQUIT}


class InitContext(NamedTuple):
    """Descriptors and helpers that init gets from the monitor."""

    sender: Sender
    alive_fd: int  # a pipe that is at its end once the parent has ended
    exec_status_fd: int  # a pipe: gets a byte if the command could not be executed, is closed by exec otherwise
    console: ConsoleSocket | None  # sends out the command's terminal; None: no terminal
    capture: Capture | None = None  # the command's output; None: our own descriptors
    namespace_server: NamespaceServer | None = None  # gets the mount namespace and the root
    supervisor: socket.socket | None = None  # to the supervisor of a container with one id
    own_ids_fd: int = -1  # the user namespace of a command that keeps its user's ids (own_ids); -1: none
    hooks: HookProcess | None = None  # runs the container's hooks; None: there are none
    reported_fd: int = -1  # a pipe that is at its end once the launching process was told of init's pid; -1: no pipe

    def wait_until_reported(self) -> None:
        """Wait until the launching process can forward signals to init. Otherwise the first signal after the command's
        start would be treated as one before its start, and end the container."""
        os.read(self.reported_fd, 1)
        os.close(self.reported_fd)


def run(spec: Spec, plan: Plan, context: InitContext) -> NoReturn:
    """Run as the container's init, and exit with the command's exit code.

    Preconditions: process 1 of a new pid namespace, all signals blocked.
    """
    status = OWN_FAILURE
    try:
        die_with_parent(context.alive_fd)
        hide_host_details()
        os.umask(0o022)  # for files that init makes, whatever our caller's umask is
        unshare(CLONE_NEWNS)
        mount(None, "/", None, MS_REC | MS_PRIVATE)
        mountpoints_fd = store_files.open_file(spec.mountpoints, _APPENDED, 0o644) if spec.mountpoints else -1
        steps.execute_all(plan.steps)
        if mountpoints_fd >= 0:
            os.write(mountpoints_fd, b"".join(os.fsencode(path) + b"\0" for path in steps.created_mountpoints()))
            os.close(mountpoints_fd)
        if context.hooks:
            context.hooks.run_early()
        if context.namespace_server:
            context.namespace_server.send_from_init()
        context.wait_until_reported()
        child = os.fork()
        if child == 0:
            _run_command(spec, context)
        _drop_resources()
        status = reap_until_exit(child)
    except Exception as error:  # noqa: BLE001 - no process above this one in the namespace could report it
        report_failure(error, context)
    finally:
        os._exit(status)


def exit_status(wait_status: int) -> int:
    """Return a process's own exit code, or 128 plus the number of the signal that killed it."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


def die_with_parent(alive_fd: int) -> None:
    """Have this process killed when its parent ends, and exit if the parent has ended already."""
    set_parent_death_signal(signal.SIGKILL)
    poll = select.poll()
    poll.register(alive_fd, 0)
    if poll.poll(0):
        os._exit(OWN_FAILURE)
    os.close(alive_fd)


def hide_host_details() -> None:
    """Hide the host's command line and environment in /proc, and refuse ptrace (not dumpable)."""
    set_process_name(NAME)
    set_command_line(NAME)
    set_dumpable(False)


def _run_command(spec: Spec, context: InitContext) -> NoReturn:
    status = OWN_FAILURE
    try:
        reset_signals()
        command.exec_command(spec, context.console, context.capture, context.supervisor, own_ids_fd=context.own_ids_fd)
    except Exception as error:  # noqa: BLE001 - a forked child must not run its parent's handlers
        if isinstance(error, LaunchError):
            status = error.status
        report_failure(error, context)
    finally:
        os._exit(status)


def report_failure(error: Exception, context: InitContext) -> None:
    """Report to the monitor that the command could not be executed, and why."""
    os.write(context.exec_status_fd, _UNSTARTED)
    if isinstance(error, OSError):
        error = LaunchError.of("preparing the container", error)
    elif not isinstance(error, LaunchError):
        import traceback

        traceback.print_exception(error)
        error = LaunchError("preparing the container", "", f"internal error: {error!r}")
    context.sender.send_failure(error)


def close_descriptors() -> None:
    """Close all descriptors and put /dev/null at 0 to 2, so that pipes and terminals reach their end."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) > 2:
                os.close(int(name))


def _drop_resources() -> None:
    """Close all descriptors and drop all capabilities except CAP_KILL."""
    close_descriptors()
    left = capabilities.mask(("KILL",))
    capset(Capabilities(effective=left, permitted=left, inheritable=0))


def reap_until_exit(child: int) -> int:
    """Reap all children and forward signals to `child` until it has ended. Return its exit code."""
    while True:
        number = signal.sigwait(signal.valid_signals())
        if number == signal.SIGCHLD:
            status = _reap(child)
            if status is not None:
                return status
        else:
            _forward_signal(child, number)


def _forward_signal(child: int, number: int) -> None:
    """Send the signal to the command; SIGINT and SIGQUIT to its process group, as a terminal does for a key."""
    with contextlib.suppress(ProcessLookupError):
        if number in _KEY_SIGNALS:
            try:
                os.killpg(child, number)
            except ProcessLookupError:  # it leads no group, or not yet
                os.kill(child, number)
        else:
            os.kill(child, number)


def _reap(child: int) -> int | None:
    """Reap all ended children. Return the exit code of `child` if it was among them, else None."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                found = exit_status(status)
    return found
