"""The monitor of a container: prepares the root filesystem through its caller's hooks, starts init, unmounts at the
end.

It runs in the container's user and mount namespaces but in the host's pid namespace, so that the container can neither
see nor kill the daemon that `prepare` starts, which may be another process's child. Nothing is left behind: if the
launching process ends, the monitor ends the container; if the monitor is killed, the kernel kills init, and the daemon
leaves because its lifeline is closed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from unionfs.launcher import init, userns
from unionfs.launcher import plan as plans
from unionfs.launcher.channel import INIT, STARTED, Sender
from unionfs.launcher.errors import OWN_FAILURE, SEE_DOCTOR, LaunchError
from unionfs.launcher.spec import Spec
from unionfs.syscalls.mounts import MNT_DETACH, MS_REC, MS_SLAVE, UMOUNT_NOFOLLOW, mount, umount2
from unionfs.syscalls.namespaces import set_child_subreaper, set_process_name, unshare

if TYPE_CHECKING:
    import socket

    from unionfs.launcher.capture import Capture
    from unionfs.launcher.hook_process import HookProcess
    from unionfs.launcher.namespace_socket import NamespaceServer
    from unionfs.launcher.terminal import ConsoleSocket

NAME: Final = "unionfs-monitor"
"""The name of the process in `ps`."""

_TIMEOUT_S: Final = 30  # time limit for a daemon that still writes data, before and after its lifeline is closed


_LOG_END: Final = 8192
"""Bytes at the end of a log that are searched for an exception."""


class Daemon(NamedTuple):
    """A daemon behind a mount of the root filesystem."""

    pid: int
    pidfd: int
    ended: int  # readable when neither it nor a successor serves


class RootfsMounts:
    """The mounts and daemons that `prepare` makes. Each is added at once, so that it is removed whatever fails next."""

    def __init__(self, lifeline_fd: int) -> None:
        self.lifeline_fd: Final = lifeline_fd  # for daemons: a pipe that is at its end when they must leave
        self.mounts: list[str] = []  # mountpoints, to be detached at the end; appended to only
        self.watched: dict[int, Callable[[int], LaunchError | None]] = {}  # they can end the container: see `Monitor`
        self.daemons: dict[int, Daemon] = {}
        """Descriptor that is readable when no daemon serves a mount any more -> the mount's daemon; added to only."""
        self.log = ""  # the path of the daemons' log, if they log to a file

    def add(self, mountpoint: str, daemon: tuple[int, int, int] | None = None) -> None:
        """Record a mount at `mountpoint`, and the daemon that serves it (see Daemon), if there is one."""
        self.mounts.append(mountpoint)
        if daemon is not None:
            made = Daemon(*daemon)
            self.daemons[made.ended] = made

    def descriptors(self) -> set[int]:
        """Return the descriptors of all daemons."""
        return {fd for daemon in self.daemons.values() for fd in (daemon.pidfd, daemon.ended)}


class Hooks(NamedTuple):
    """Callbacks of the launcher's caller, called in the monitor, as root of the user namespace.

    `prepare` mounts the spec's rootfs, before the container's pid namespace exists. Raises: LaunchError.
    `started` gets init's pid in the host's pid namespace, once the command has been executed.
    `finish` gets the exit code and whether the command had been executed, after everything was unmounted.
    """

    prepare: Callable[[RootfsMounts], None]
    started: Callable[[int], None]
    finish: Callable[[int, bool], None]


class Monitor:
    """Runs one container. `run` is called once."""

    def __init__(
        self,
        spec: Spec,
        hooks: Hooks,
        sender: Sender,
        launcher_fd: int,
        console: ConsoleSocket | None,
        capture: Capture | None = None,
    ) -> None:
        self._spec: Final = spec
        self._plan: Final = plans.make(spec)
        self._hooks: Final = hooks
        self._sender: Final = sender
        self._launcher_fd: Final = launcher_fd  # a pipe that is at its end once the launching process has ended
        self._console: Final = console  # sends out the command's terminal; None: no terminal
        self._capture: Final = capture  # the command's output; None: our own descriptors
        self._namespace_server: NamespaceServer | None = None  # set once, by _run
        self._supervisor_socket: socket.socket | None = None  # None: no supervisor; set once, by _run
        self._supervisor: tuple[int, int] | None = None  # its pidfd and pid; set once, by _run
        self._hooks_process: HookProcess | None = None  # None: no hooks; set once, by _run
        self._own_ids_fd = -1  # see InitContext; set once, by _run
        self._started = False  # changed by _handle_exec_status only

    def run(self) -> int:
        """Prepare, run, unmount. Return the command's exit code, or 125 after reporting why the command did not run."""
        status = OWN_FAILURE
        try:
            status = self._run()
        except LaunchError as error:
            self._sender.send_failure(error)
        except OSError as error:
            self._sender.send_failure(LaunchError.of("running the container", error, hint=_hint_for(error)))
        except Exception as error:  # noqa: BLE001 - `finish` must be called after a bug, too
            import traceback

            traceback.print_exception(error)
            self._sender.send_failure(LaunchError("running the container", "", f"internal error: {error!r}"))
        self._hooks.finish(status, self._started)
        return status

    def _run(self) -> int:
        set_process_name(NAME)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a message to a launching process that was killed
        set_child_subreaper()  # daemons detach from us, but stay our children
        os.chdir("/")
        mount(None, "/", None, MS_REC | MS_SLAVE)  # the host's unmounts reach us, our mounts do not reach the host
        with contextlib.ExitStack() as cleanup:
            if self._spec.hooks:
                from unionfs.launcher.hook_process import HookProcess

                self._hooks_process = HookProcess(self._spec)
            lifeline_read, lifeline_write = os.pipe()
            rootfs_mounts = RootfsMounts(lifeline_read)
            cleanup.callback(unmount_all, rootfs_mounts, lifeline_write)
            if self._hooks_process:
                cleanup.callback(self._hooks_process.end)  # before unmounting: its mount namespace has the mounts, too
            self._hooks.prepare(rootfs_mounts)
            network_helper = None
            if self._spec.network_helper:
                from unionfs.launcher.private_network import HelperProcess

                network_helper = HelperProcess(self._spec.network_helper)
                cleanup.callback(network_helper.close)
            if self._spec.supervised:
                from unionfs.launcher import supervisor

                # Before the pid namespace is made: the supervisor must be outside of it.
                supervisor_pid, self._supervisor_socket = supervisor.start()
                cleanup.callback(userns.end, supervisor_pid)
                self._supervisor = os.pidfd_open(supervisor_pid), supervisor_pid
            if self._spec.caller:
                from unionfs.launcher import own_ids

                self._own_ids_fd = own_ids.make(self._spec.caller)  # before the pid namespace, too: it forks
            unshare(plans.flags(self._plan.inner))
            if network_helper:
                network_helper.connect()
            if self._spec.namespace_socket:
                from unionfs.launcher.namespace_socket import NamespaceServer

                self._namespace_server = NamespaceServer(self._spec.namespace_socket)
                cleanup.callback(self._namespace_server.close)
            not_for_init = (lifeline_write, *rootfs_mounts.descriptors(), *rootfs_mounts.watched)
            init_pid, exec_status_fd = self._start_init(lifeline_read, not_for_init)
            cleanup.callback(userns.end, init_pid)  # and with it everything in the container
            return self._watch(init_pid, exec_status_fd, rootfs_mounts)

    def _start_init(self, lifeline_read: int, not_for_init: tuple[int, ...]) -> tuple[int, int]:
        """Fork init, and report its pid. Return it and the read end of `InitContext.exec_status_fd`."""
        exec_status_read, exec_status_write = os.pipe()
        reported_read, reported_write = os.pipe()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = os.fork()
        if pid == 0:
            for fd in (*not_for_init, exec_status_read, reported_write, self._launcher_fd):
                os.close(fd)
            context = init.InitContext(
                self._sender,
                lifeline_read,
                exec_status_write,
                self._console,
                self._capture,
                self._namespace_server,
                self._supervisor_socket,
                self._own_ids_fd,
                self._hooks_process,
                reported_read,
            )
            if self._spec.runtime:
                from unionfs.launcher import oci_init

                oci_init.run(self._spec, context)
            init.run(self._spec, self._plan, context)
        self._sender.send(INIT, str(pid))
        if self._hooks_process:
            self._hooks_process.tell_init(pid)
        os.close(reported_write)
        os.close(reported_read)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self._namespace_server:
            self._namespace_server.close_init_end()
        if self._supervisor_socket:
            self._supervisor_socket.close()
        if self._capture:
            self._capture.close_write_ends()
        os.close(exec_status_write)
        os.close(lifeline_read)
        return pid, exec_status_read

    def _watch(self, init_pid: int, exec_status_fd: int, rootfs_mounts: RootfsMounts) -> int:
        """Wait until init ends, and kill it when the launching process or a daemon has ended, or when the function of a
        `watched` descriptor, called when that is readable, returns why."""
        daemons, watched = set(rootfs_mounts.daemons), rootfs_mounts.watched
        init_fd = os.pidfd_open(init_pid)
        poll = select.poll()
        servers = {self._namespace_server.fileno()} if self._namespace_server else set()
        supervisors = {self._supervisor[0]} if self._supervisor else set()
        for fd in (init_fd, exec_status_fd, self._launcher_fd, *daemons, *watched, *servers, *supervisors):
            poll.register(fd, select.POLLIN)
        exec_pending = True
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if exec_pending and exec_status_fd in ready:
                exec_pending = False
                poll.unregister(exec_status_fd)
                self._handle_exec_status(exec_status_fd, init_pid)
            if self._supervisor and ready & supervisors:
                poll.unregister(self._supervisor[0])  # it ends when the last process with its filter has ended
                _, status = os.waitpid(self._supervisor[1], 0)
                if status:  # also if init has ended by now, since its calls were not answered
                    raise LaunchError("running the container", "", "the supervisor of its user ids ended unexpectedly")
            if init_fd in ready:
                return init.exit_status(os.waitpid(init_pid, 0)[1])
            if self._launcher_fd in ready:
                userns.end(init_pid)
                return 128 + signal.SIGKILL
            if self._namespace_server and ready & servers:
                self._namespace_server.serve()
            for fd in ready & watched.keys():
                if (failure := watched[fd](fd)) is not None:
                    raise failure
            if ready & daemons:
                why = f"the daemon of its root filesystem ended unexpectedly{_last_error(rootfs_mounts.log)}"
                raise LaunchError("running the container", self._spec.rootfs, why)

    def _handle_exec_status(self, exec_status_fd: int, init_pid: int) -> None:
        """Read whether the command was executed: then exec has closed the write end, and there is nothing to read."""
        self._started = not os.read(exec_status_fd, 1)
        os.close(exec_status_fd)
        if self._started:
            if self._namespace_server:
                self._namespace_server.receive_from_init()
            self._hooks.started(init_pid)
            if self._hooks_process:
                self._hooks_process.started()
            self._sender.send(STARTED)


def unmount_all(rootfs_mounts: RootfsMounts, lifeline_write: int) -> None:
    """Unmount everything, and wait for the daemons to end; then close their lifeline; then kill those that are left."""
    for mountpoint in reversed(rootfs_mounts.mounts):
        with contextlib.suppress(OSError):  # EINVAL: it is not mounted any more
            umount2(mountpoint, MNT_DETACH | UMOUNT_NOFOLLOW)
    left = _wait_for(rootfs_mounts.daemons, _TIMEOUT_S)
    os.close(lifeline_write)
    for ended in _wait_for(left, _TIMEOUT_S):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(rootfs_mounts.daemons[ended].pidfd, signal.SIGKILL)
    for fd in rootfs_mounts.descriptors():
        os.close(fd)
    for daemon in rootfs_mounts.daemons.values():
        with contextlib.suppress(ChildProcessError):
            os.waitpid(daemon.pid, 0)


def _wait_for(descriptors: Iterable[int], timeout_s: float) -> list[int]:
    """Wait for daemons to end, by RootfsMounts.daemons. Return those that have not ended in time."""
    left, deadline = list(descriptors), time.monotonic() + timeout_s
    while left and (remaining := deadline - time.monotonic()) > 0:
        poll = select.poll()
        for fd in left:
            poll.register(fd, select.POLLIN)
        ended = {fd for fd, _ in poll.poll(remaining * 1000)}
        left = [fd for fd in left if fd not in ended]
    return left


def _last_error(log: str) -> str:
    """Return ": " and the last exception in a log of daemons; "" if there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_END))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    kinds = ("Error", "Exception")
    return next((f": {line}" for line in reversed(lines) if line.partition(":")[0].endswith(kinds)), "")


def _hint_for(error: OSError) -> str:
    return SEE_DOCTOR if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSPC) else ""
