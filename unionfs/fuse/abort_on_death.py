"""What is to happen to the connection when the daemon is killed while it tells the kernel something.

A notification may wait in the kernel for a lock that a program holds until its request is answered. When the daemon is
killed then, the waiting thread cannot end, keeps the connection open, and so the program waits for ever, and the thread
for it. A small process, the executor, hears of the death of the daemon's main thread, which nothing holds up, and
aborts the connection.

It takes the control filesystem of FUSE, where whoever mounted may do that; root needs no mount of it, everybody else
does (/sys/fs/fuse/connections, as systemd mounts it). Where it cannot be had, nothing is arranged.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Final

from unionfs.syscalls import mounts, namespaces

_WORD: Final = signal.SIGUSR2
_NAME: Final = "unionfs-will"  # what it is called in /proc/PID/comm


class LastWill:
    """Made before the daemon leaves its mount namespace, executed by a process that is started after."""

    def __init__(self, connection: int | None) -> None:
        self._abort_fd: int | None = None
        if connection is not None:
            for control in (_own_control, _seen_control):
                with suppress(OSError):
                    self._abort_fd = control(f"{connection}/abort")
                    break

    def entrust(self) -> None:
        """Start the executor. Preconditions: this is the main thread, and the only one."""
        if self._abort_fd is None:
            return
        daemon = os.getpid()
        if os.fork() == 0:
            try:
                _execute(daemon, self._abort_fd)
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


def _execute(daemon: int, abort_fd: int) -> None:
    with suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write(_NAME)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd != abort_fd:  # above all not the connection's own
            with suppress(OSError):
                os.close(fd)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    namespaces.set_parent_death_signal(_WORD)
    if os.getppid() == daemon:
        signal.sigwait({_WORD})  # our parent is a thread; as long as another one lives, getppid(2) does not change
    os.write(abort_fd, b"1")  # of no effect on a connection that has ended
