"""The process between the host and a container: has its root prepared, starts its init, and clears up behind it.

It lives in the container's user and mount namespace but in the host's pid namespace, so that the daemon it has started
can be neither seen nor ended by the container. Whatever ends first, nothing stays: when the launching process goes, it
ends the container; when it goes itself, the kernel ends init, and the daemon sees its lifeline cut.
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

from unionfs.launcher import init, mapped
from unionfs.launcher import plan as plans
from unionfs.launcher.channel import INIT, STARTED, Sender
from unionfs.launcher.errors import OWN_FAILURE, SEE_DOCTOR, LaunchError
from unionfs.launcher.spec import Spec
from unionfs.syscalls.mounts import MNT_DETACH, MS_REC, MS_SLAVE, UMOUNT_NOFOLLOW, mount, umount2
from unionfs.syscalls.namespaces import set_child_subreaper, set_process_name, unshare

if TYPE_CHECKING:
    import socket

    from unionfs.launcher.capture import Capture
    from unionfs.launcher.namespace_socket import NamespaceServer
    from unionfs.launcher.terminal import Handover

NAME: Final = "unionfs-monitor"
"""What `ps` calls it."""

_PATIENCE_S: Final = 30  # for a daemon that has to write out what it holds, before and after its lifeline is cut


class Provisions:
    """What `prepare` makes, noted as soon as it is there, so that it is taken away again whatever happens next."""

    def __init__(self, lifeline_fd: int) -> None:
        self.lifeline_fd: Final = lifeline_fd  # for daemons to keep: it can be read to its end when they must leave
        self.mounts: list[str] = []  # mountpoints, to be detached at the end; appended to only
        self.daemons: dict[int, int] = {}  # pidfd -> pid of what ends by that; added to only

    def add(self, mountpoint: str, daemon: int | None = None) -> None:
        """Something is mounted at `mountpoint`, served by the process `daemon`, if by any."""
        self.mounts.append(mountpoint)
        if daemon is not None:
            self.daemons[os.pidfd_open(daemon)] = daemon


class Hooks(NamedTuple):
    """What the launcher's user does at its turns. All are called in the monitor, as root of the user namespace.

    `prepare` makes a directory of the spec's rootfs, before the container's pid namespace exists; LaunchError if not.
    `started` is called with init's pid, as the host knows it, once the command has been executed.
    `finish` is called with the exit code and whether the command was executed, when nothing is mounted any more.
    """

    prepare: Callable[[Provisions], None]
    started: Callable[[int], None]
    finish: Callable[[int, bool], None]


class Monitor:
    """One container's life. Used once, by `run`."""

    def __init__(
        self,
        spec: Spec,
        hooks: Hooks,
        sender: Sender,
        launcher_fd: int,
        handover: Handover | None,
        capture: Capture | None = None,
    ) -> None:
        self._spec: Final = spec
        self._plan: Final = plans.make(spec)
        self._hooks: Final = hooks
        self._sender: Final = sender
        self._launcher_fd: Final = launcher_fd  # reading it ends when the launching process has gone
        self._handover: Final = handover  # for the command's terminal, if it is to have one
        self._capture: Final = capture  # for what the command prints, if not to our own descriptors
        self._namespace_server: NamespaceServer | None = None  # set once, by _run
        self._way: socket.socket | None = None  # to the supervisor, if there is one; set once, by _run
        self._supervisor: tuple[int, int] | None = None  # pidfd and pid of it; likewise
        self._started = False  # changed by _judge only

    def run(self) -> int:
        """Prepare, run, clear up; the command's exit code, or 125 after having reported why there is none."""
        status = OWN_FAILURE
        try:
            status = self._run()
        except LaunchError as error:
            self._sender.send_failure(error)
        except OSError as error:
            self._sender.send_failure(LaunchError.of("running the container", error, hint=_hint_for(error)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the container's state must be brought in order below
            import traceback

            traceback.print_exception(error)
            self._sender.send_failure(LaunchError("running the container", "", f"internal error: {error!r}"))
        self._hooks.finish(status, self._started)
        return status

    def _run(self) -> int:
        set_process_name(NAME)
        set_child_subreaper()  # daemons detach from us, but are ours to wait for
        os.chdir("/")
        mount(None, "/", None, MS_REC | MS_SLAVE)  # the host's unmounts reach us, our mounts do not reach the host
        with contextlib.ExitStack() as cleanup:
            life_read, life_write = os.pipe()
            provisions = Provisions(life_read)
            cleanup.callback(take_away, provisions, life_write)
            self._hooks.prepare(provisions)
            connection = None
            if self._spec.uplink:
                from unionfs.launcher.private_network import Connection

                connection = Connection(self._spec.uplink)
                cleanup.callback(connection.close)
            if self._spec.supervised:
                from unionfs.launcher import supervisor

                supervisor_pid, self._way = supervisor.start()  # before there is a pid namespace, to be outside of it
                cleanup.callback(mapped.end, supervisor_pid)
                self._supervisor = os.pidfd_open(supervisor_pid), supervisor_pid
            unshare(plans.flags(self._plan.inner))
            if connection:
                connection.connect()
            if self._spec.namespace_socket:
                from unionfs.launcher.namespace_socket import NamespaceServer

                self._namespace_server = NamespaceServer(self._spec.namespace_socket)
                cleanup.callback(self._namespace_server.close)
            init_pid, verdict_fd = self._start_init(life_read, (life_write, *provisions.daemons))
            cleanup.callback(mapped.end, init_pid)  # and with it everything in the container
            self._sender.send(INIT, str(init_pid))
            return self._watch(init_pid, verdict_fd, set(provisions.daemons))

    def _start_init(self, life_read: int, not_for_init: tuple[int, ...]) -> tuple[int, int]:
        """Fork init; its pid, and the descriptor that tells whether the command was executed."""
        verdict_read, verdict_write = os.pipe()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = os.fork()
        if pid == 0:
            for fd in (*not_for_init, verdict_read, self._launcher_fd):
                os.close(fd)
            around = init.Surroundings(
                self._sender, life_read, verdict_write, self._handover, self._capture, self._namespace_server, self._way
            )
            if self._spec.runtime:
                from unionfs.launcher import oci_init

                oci_init.run(self._spec, around)
            init.run(self._spec, self._plan, around)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self._namespace_server:
            self._namespace_server.close_init_end()
        if self._way:
            self._way.close()
        if self._capture:
            self._capture.close_theirs()
        os.close(verdict_write)
        os.close(life_read)
        return pid, verdict_read

    def _watch(self, init_pid: int, verdict_fd: int, daemons: set[int]) -> int:
        """Wait for init's end, and bring it about when the launching process or a daemon has ended."""
        init_fd = os.pidfd_open(init_pid)
        poll = select.poll()
        servers = {self._namespace_server.fileno()} if self._namespace_server else set()
        supervisors = {self._supervisor[0]} if self._supervisor else set()
        for fd in (init_fd, verdict_fd, self._launcher_fd, *daemons, *servers, *supervisors):
            poll.register(fd, select.POLLIN)
        undecided = True
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if undecided and verdict_fd in ready:
                undecided = False
                poll.unregister(verdict_fd)
                self._judge(verdict_fd, init_pid)
            if self._supervisor and ready & supervisors:
                poll.unregister(self._supervisor[0])  # with the last of those it answers to it ends by itself
                if os.waitpid(self._supervisor[1], 0)[1]:  # also when what it left unanswered has ended init by now
                    raise LaunchError("running the container", "", "the process that answers for its users ended")
            if init_fd in ready:
                return init.exit_status(os.waitpid(init_pid, 0)[1])
            if self._launcher_fd in ready:
                mapped.end(init_pid)
                return 128 + signal.SIGKILL
            if self._namespace_server and ready & servers:
                self._namespace_server.serve()
            if ready & daemons:
                raise LaunchError("running the container", self._spec.rootfs, "the daemon of its root filesystem ended")

    def _judge(self, verdict_fd: int, init_pid: int) -> None:
        """Nothing to read means: the descriptor was closed by exec."""
        self._started = not os.read(verdict_fd, 1)
        os.close(verdict_fd)
        if self._started:
            if self._namespace_server:
                self._namespace_server.receive_from_init()
            self._hooks.started(init_pid)
            self._sender.send(STARTED)


def take_away(provisions: Provisions, life_write: int) -> None:
    """Unmount, and wait for the daemons to end by that, then by their lifeline, then by force."""
    for mountpoint in reversed(provisions.mounts):
        with contextlib.suppress(OSError):  # EINVAL: gone already
            umount2(mountpoint, MNT_DETACH | UMOUNT_NOFOLLOW)
    left = _wait_for(provisions.daemons, _PATIENCE_S)
    os.close(life_write)
    for pidfd in _wait_for(left, _PATIENCE_S):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    for pidfd, pid in provisions.daemons.items():
        os.close(pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _wait_for(pidfds: Iterable[int], timeout_s: float) -> list[int]:
    """Those of the processes that have not ended in time."""
    left, deadline = list(pidfds), time.monotonic() + timeout_s
    while left and (remaining := deadline - time.monotonic()) > 0:
        poll = select.poll()
        for pidfd in left:
            poll.register(pidfd, select.POLLIN)
        ended = {fd for fd, _ in poll.poll(remaining * 1000)}
        left = [pidfd for pidfd in left if pidfd not in ended]
    return left


def _hint_for(error: OSError) -> str:
    return SEE_DOCTOR if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSPC) else ""
