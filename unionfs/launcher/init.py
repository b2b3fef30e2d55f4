"""Process 1 of a container: builds its root, starts the command, then reaps, passes on signals, and ends with it.

Whatever else runs in the container when the command ends is killed by the kernel, since its process 1 is gone.

It is one of the container's processes, but made of the host's interpreter, so it must tell nothing of the host: it
cannot be looked into (not dumpable), its arguments and environment are wiped, its capabilities are given up but for
the one it needs to pass on signals.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from unionfs.launcher import capabilities, command, steps
from unionfs.launcher.channel import Sender
from unionfs.launcher.errors import OWN_FAILURE, LaunchError
from unionfs.launcher.mapped import reset_signals
from unionfs.launcher.plan import Plan
from unionfs.launcher.spec import Spec
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
    from unionfs.launcher.namespace_socket import NamespaceServer
    from unionfs.launcher.terminal import Handover

NAME: Final = "unionfs-init"
_UNSTARTED: Final = b"x"
_APPENDED: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_OF_KEYS: Final = {signal.SIGINT, signal.SIGQUIT}
_NOT_PASSED_ON: Final = {signal.SIGCHLD, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}


class Surroundings(NamedTuple):
    """What init has of the world outside."""

    sender: Sender
    alive_fd: int  # reading it ends when the parent has gone
    verdict_fd: int  # gets a byte if the command could not be started, and is closed when it was
    handover: Handover | None  # for the command's terminal, if it is to have one
    capture: Capture | None = None  # where the command prints to, if not to our own descriptors
    namespace_server: NamespaceServer | None = None  # gets the namespaces that only init has
    supervisor: socket.socket | None = None  # who answers for ids that the container does not have


def run(spec: Spec, plan: Plan, around: Surroundings) -> NoReturn:
    """Be the container's init. Preconditions: process 1 of a new pid namespace, all signals blocked."""
    status = OWN_FAILURE
    try:
        tie_to_parent(around.alive_fd)
        reveal_nothing()
        os.umask(0o022)  # for what is made in the container, whatever our user's habit is
        unshare(CLONE_NEWNS)
        mount(None, "/", None, MS_REC | MS_PRIVATE)
        note_fd = os.open(spec.mountpoints, _APPENDED, 0o644) if spec.mountpoints else -1
        steps.carry_out(plan.steps)
        if note_fd >= 0:
            os.write(note_fd, b"".join(os.fsencode(path) + b"\0" for path in steps.made()))
            os.close(note_fd)
        if around.namespace_server:
            around.namespace_server.send_from_init()
        child = os.fork()
        if child == 0:
            _run_command(spec, around)
        _withdraw()
        status = serve(child)
    except Exception as error:  # noqa: BLE001 - process 1 has nobody above it in its namespace who could handle it
        confess(error, around)
    finally:
        os._exit(status)


def exit_status(wait_status: int) -> int:
    """The exit code that tells of a process' end: its own, or 128 and the signal that killed it."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


def tie_to_parent(alive_fd: int) -> None:
    """End when the parent does. It may have done so before the kernel was asked to tell."""
    set_parent_death_signal(signal.SIGKILL)
    poll = select.poll()
    poll.register(alive_fd, 0)
    if poll.poll(0):
        os._exit(OWN_FAILURE)
    os.close(alive_fd)


def reveal_nothing() -> None:
    """Show nothing of the host in /proc, and be looked into by nobody."""
    set_process_name(NAME)
    set_command_line(NAME)
    set_dumpable(False)


def _run_command(spec: Spec, around: Surroundings) -> NoReturn:
    status = OWN_FAILURE
    try:
        reset_signals()
        command.become(spec, around.handover, around.capture, around.supervisor)
    except Exception as error:  # noqa: BLE001 - a forked child must not run its parent's handlers
        if isinstance(error, LaunchError):
            status = error.status
        confess(error, around)
    finally:
        os._exit(status)


def confess(error: Exception, around: Surroundings) -> None:
    """Tell those outside that there will be no command, and why."""
    os.write(around.verdict_fd, _UNSTARTED)
    if isinstance(error, OSError):
        error = LaunchError.of("preparing the container", error)
    elif not isinstance(error, LaunchError):
        import traceback

        traceback.print_exception(error)
        error = LaunchError("preparing the container", "", f"internal error: {error!r}")
    around.sender.send_failure(error)


def let_go() -> None:
    """Of all descriptors, so that what they lead to can end."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) > 2:
                os.close(int(name))


def _withdraw() -> None:
    """Let go of everything: descriptors and capabilities."""
    let_go()
    left = capabilities.mask(("KILL",))
    capset(Capabilities(effective=left, permitted=left, inheritable=0))


def serve(child: int) -> int:
    """Reap every orphan and pass on signals until `child` has ended; its exit code."""
    while True:
        number = signal.sigwait(signal.valid_signals())
        if number == signal.SIGCHLD:
            status = _reap(child)
            if status is not None:
                return status
        elif number not in _NOT_PASSED_ON:
            _pass_on(child, number)


def _pass_on(child: int, number: int) -> None:
    """Signal the command, or, as a terminal does for a key, all of its process group."""
    with contextlib.suppress(ProcessLookupError):
        if number in _OF_KEYS:
            try:
                os.killpg(child, number)
            except ProcessLookupError:  # it leads no group, or not yet
                os.kill(child, number)
        else:
            os.kill(child, number)


def _reap(child: int) -> int | None:
    """Bury all who ended; the exit code of `child` if it was among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                found = exit_status(status)
    return found
