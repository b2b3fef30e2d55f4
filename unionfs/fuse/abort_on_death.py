"""A helper process aborts the FUSE connection if the daemon is killed during a notification.

A notification may wait in the kernel for a lock that a program holds until its request is answered. If the daemon is
killed then, the waiting thread cannot end and keeps the connection open, so program and thread wait for each other for
ever. The helper gets a signal when the daemon's main thread dies, which nothing delays, and aborts the connection.

Needs write access to the connection's `abort` file in the FUSE control filesystem, which belongs to the user who
mounted. Root mounts that filesystem privately; other users need it at /sys/fs/fuse/connections, where systemd mounts
it. Without access there is no helper.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Final

from unionfs.syscalls import mounts, namespaces

_DEATH_SIGNAL: Final = signal.SIGUSR2
_NAME: Final = "unionfs-abort"  # the helper's name in /proc/PID/comm


class ConnectionAborter:
    """Opens the `abort` file, before the daemon leaves its mount namespace, and starts the helper process, after."""

    def __init__(self, connection: int | None) -> None:
        self._abort_fd: int | None = None
        if connection is not None:
            for control in (_own_control, _seen_control):
                with suppress(OSError):
                    self._abort_fd = control(f"{connection}/abort")
                    break

    def start(self) -> None:
        """Start the helper process. Preconditions: this is the main thread, and the only one."""
        if self._abort_fd is None:
            return
        daemon = os.getpid()
        if os.fork() == 0:
            try:
                _wait_and_abort(daemon, self._abort_fd)
            finally:
                os._exit(0)
        os.close(self._abort_fd)
        self._abort_fd = None


def _own_control(path: str) -> int:
    control = mounts.new_mount("fusectl")
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=control.fd)
    finally:
        control.close()


def _seen_control(path: str) -> int:
    return os.open(f"/sys/fs/fuse/connections/{path}", os.O_WRONLY | os.O_CLOEXEC)


def _wait_and_abort(daemon: int, abort_fd: int) -> None:
    with suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write(_NAME)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd != abort_fd:  # above all the connection's, which would keep it open
            with suppress(OSError):
                os.close(fd)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    namespaces.set_parent_death_signal(_DEATH_SIGNAL)
    if os.getppid() == daemon:
        # The signal comes when the parent thread ends; getppid(2) stays the same while other threads live.
        signal.sigwait({_DEATH_SIGNAL})
    os.write(abort_fd, b"1")  # no effect on a connection that has ended
