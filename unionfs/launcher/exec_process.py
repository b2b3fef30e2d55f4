"""One more command in a container that runs already: the process between us and it.

Everything that is needed inside is imported before the root changes: nothing of the container's is ever imported.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from typing import Final, NamedTuple

from unionfs.launcher import command, init, mapped
from unionfs.launcher.capture import Capture
from unionfs.launcher.channel import INIT, STARTED, Sender
from unionfs.launcher.errors import OWN_FAILURE, LaunchError
from unionfs.launcher.mapped import reset_signals
from unionfs.launcher.namespace_socket import Namespaces
from unionfs.launcher.spec import Spec
from unionfs.launcher.terminal import Handover
from unionfs.syscalls.namespaces import set_command_line, set_dumpable, set_parent_death_signal, set_process_name

NAME: Final = "unionfs-exec"


class Visitor(NamedTuple):
    """The process between us and a command that joins a container. It ends with the command's exit code."""

    spec: Spec
    namespaces: Namespaces
    sender: Sender
    handover: Handover | None
    capture: Capture | None
    stays: bool  # the command goes on when whoever asked for it has gone

    def run(self) -> int:
        try:
            with contextlib.ExitStack() as cleanup:
                return self._run(cleanup)
        except LaunchError as error:
            self.sender.send_failure(error)
        except OSError as error:
            self.sender.send_failure(LaunchError.of("entering the container", error))
        return OWN_FAILURE

    def _run(self, cleanup: contextlib.ExitStack) -> int:
        parent_fd = os.pidfd_open(os.getppid())
        set_process_name(NAME)
        set_command_line(NAME)
        way = self._start_supervisor(cleanup) if self.spec.supervised else None
        self.namespaces.enter()
        set_dumpable(False)
        verdict_read, verdict_write = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        child = os.fork()
        if child == 0:
            os.close(verdict_read)
            self._become(init.Surroundings(self.sender, -1, verdict_write, self.handover, self.capture, supervisor=way))
        os.close(verdict_write)
        if way:
            way.close()
        if self.handover:
            self.handover.close()
        if self.capture:
            self.capture.close_theirs()
        self.namespaces.close()
        if not os.read(verdict_read, 1):
            self.sender.send(INIT, str(os.getpid()))
            self.sender.send(STARTED)
        os.close(verdict_read)
        if not self.stays:
            self._end_with(parent_fd)
        os.close(parent_fd)
        return init.serve(child)

    def _start_supervisor(self, cleanup: contextlib.ExitStack) -> socket.socket:
        """One of this command's own: it sees the processes that we see, and has the container's ids. It ends with us;
        we wait for that, so that nothing of ours is left, not even to be buried by others."""
        from unionfs.launcher import supervisor

        pid, way = supervisor.start(self.namespaces.take_ids)
        cleanup.callback(mapped.end, pid)
        return way

    def _end_with(self, parent_fd: int) -> None:
        """Have the command told (SIGHUP, passed on) when the process that asked for it ends."""
        set_parent_death_signal(signal.SIGHUP)
        poll = select.poll()
        poll.register(parent_fd, select.POLLIN)
        if poll.poll(0):
            os.kill(os.getpid(), signal.SIGHUP)

    def _become(self, around: init.Surroundings) -> None:
        status = OWN_FAILURE
        try:
            reset_signals()
            command.become(self.spec, around.handover, around.capture, around.supervisor, is_first=False)
        except Exception as error:  # noqa: BLE001 - a forked child must not run its parent's handlers
            if isinstance(error, LaunchError):
                status = error.status
            init.confess(error, around)
        finally:
            os._exit(status)
