"""Run one more command in a running container: the process between the caller and the command.

All modules that are needed inside are imported before the root changes: no file of the container is ever imported.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from typing import Final, NamedTuple

from unionfs.launcher import command, init, userns
from unionfs.launcher.capture import Capture
from unionfs.launcher.channel import INIT, STARTED, Sender
from unionfs.launcher.errors import OWN_FAILURE, LaunchError
from unionfs.launcher.namespace_socket import Namespaces
from unionfs.launcher.spec import Caller, Spec
from unionfs.launcher.terminal import ConsoleSocket
from unionfs.launcher.userns import reset_signals
from unionfs.syscalls.namespaces import set_command_line, set_dumpable, set_parent_death_signal, set_process_name

NAME: Final = "unionfs-exec"


class ExecProcess(NamedTuple):
    """The process that enters a container's namespaces and forks the command. It exits with the command's exit code."""

    spec: Spec
    namespaces: Namespaces
    sender: Sender
    console: ConsoleSocket | None
    capture: Capture | None
    outlives_caller: bool  # the command continues after the calling process has ended

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
        supervisor_socket = self._start_supervisor(cleanup) if self.spec.supervised else None
        own_ids_fd = self._make_own_ids(self.spec.caller) if self.spec.caller else -1
        self.namespaces.enter()
        set_dumpable(False)
        exec_status_read, exec_status_write = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self.sender.send(INIT, str(os.getpid()))  # before the command, which may report that it handles signals
        child = os.fork()
        if child == 0:
            os.close(exec_status_read)
            self._run_command(
                init.InitContext(
                    self.sender,
                    -1,
                    exec_status_write,
                    self.console,
                    self.capture,
                    supervisor=supervisor_socket,
                    own_ids_fd=own_ids_fd,
                )
            )
        os.close(exec_status_write)
        if supervisor_socket:
            supervisor_socket.close()
        if self.console:
            self.console.close()
        if self.capture:
            self.capture.close_write_ends()
        self.namespaces.close()
        if not os.read(exec_status_read, 1):
            self.sender.send(STARTED)
        os.close(exec_status_read)
        if not self.outlives_caller:
            self._hang_up_with(parent_fd)
        os.close(parent_fd)
        return init.reap_until_exit(child)

    def _start_supervisor(self, cleanup: contextlib.ExitStack) -> socket.socket:
        """Start a supervisor for this command. It sees our /proc and has the container's ids.

        It ends with this process, which waits for it, so that no zombie is left for another process to reap.
        """
        from unionfs.launcher import supervisor

        pid, supervisor_socket = supervisor.start(self.namespaces.enter_user_namespace)
        cleanup.callback(userns.end, pid)
        return supervisor_socket

    def _make_own_ids(self, caller: Caller) -> int:
        from unionfs.launcher import own_ids

        self.namespaces.enter_user_namespace()
        return own_ids.make(caller)

    def _hang_up_with(self, parent_fd: int) -> None:
        """Send SIGHUP to the command when the process at `parent_fd`, which asked for it, ends."""
        set_parent_death_signal(signal.SIGHUP)
        poll = select.poll()
        poll.register(parent_fd, select.POLLIN)
        if poll.poll(0):
            os.kill(os.getpid(), signal.SIGHUP)

    def _run_command(self, context: init.InitContext) -> None:
        status = OWN_FAILURE
        try:
            reset_signals()
            command.exec_command(
                self.spec,
                context.console,
                context.capture,
                context.supervisor,
                is_first=False,
                own_ids_fd=context.own_ids_fd,
            )
        except Exception as error:  # noqa: BLE001 - a forked child must not run its parent's handlers
            if isinstance(error, LaunchError):
                status = error.status
            init.report_failure(error, context)
        finally:
            os._exit(status)
