"""A helper process notices the death of a daemon during a notification of the kernel.

A notification may wait in the kernel for a lock that a program holds until its request is answered. If the daemon is
killed then, the waiting thread cannot end: it keeps the connection open, and the process cannot be waited for. So
program and thread wait for each other for ever. The helper gets a signal at once when the daemon's main thread dies. It
tells the keeper, which has another daemon answer (fuse.daemon_end). Without a keeper it aborts the connection.

Aborting needs write access to the connection's `abort` file in the FUSE control filesystem, which belongs to the user
who mounted. Root mounts that filesystem privately; other users need it at /sys/fs/fuse/connections, where systemd
mounts it.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from unionfs.fuse.keeper_channel import ENDING, Channel
from unionfs.syscalls import mounts, namespaces

if TYPE_CHECKING:
    from unionfs.core.node_record import NodeRecord

_DEATH_SIGNAL: Final = signal.SIGUSR2
_NAME: Final = "unionfs-abort"  # the helper's name in /proc/PID/comm
_LOOK_AGAIN_S: Final = 0.001


class DeathHelper:
    """Opens the `abort` file, before the daemon leaves its mount namespace, and starts the helper process, after."""

    def __init__(self, connection: int | None) -> None:
        """`connection`: aborted if no other daemon answers; None: never aborted."""
        self.keeper: int | None = None  # its pid; set once
        self.record: NodeRecord | None = None  # likewise: if no daemon can continue from it, the keeper is not told
        self.parent: Channel | None = None  # likewise: the connection to it, if it is the parent of mounts
        self._is_started = False
        self._abort_fd: int | None = None
        if connection is not None:
            for control in (_own_control, _seen_control):
                with suppress(OSError):
                    self._abort_fd = control(f"{connection}/abort")
                    break

    def start(self) -> None:
        """Start the helper process of this daemon, unless it runs already or could neither tell a keeper nor abort. On
        the main thread."""
        if self._is_started or (self._abort_fd is None and self.keeper is None):
            return
        daemon = os.getpid()
        try:
            pid = os.fork()
        except OSError:  # RLIMIT_NPROC, memory: it is tried again before a thread notifies the kernel
            return
        self._is_started = True
        if pid == 0:
            try:
                self._help(daemon)
            finally:
                os._exit(0)
        if self._abort_fd is not None:
            os.close(self._abort_fd)
            self._abort_fd = None

    def _help(self, daemon: int) -> None:
        """In the helper, which shares nothing with the daemon's other threads."""
        with suppress(OSError), open("/proc/self/comm", "w") as comm:
            comm.write(_NAME)
        kept = {self._abort_fd, self.parent.fileno() if self.parent is not None else None}
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd not in kept:  # above all the connection's, which would keep it open
                with suppress(OSError):
                    os.close(fd)
        keeper = None
        with suppress(OSError):
            keeper = os.pidfd_open(self.keeper) if self.keeper is not None else None
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        namespaces.set_parent_death_signal(_DEATH_SIGNAL)
        # The signal comes when the parent thread ends. If that has ended before, none comes, although getppid(2) stays
        # the same while other threads live.
        if os.getppid() == daemon and _runs(daemon):
            signal.sigwait({_DEATH_SIGNAL})
        is_outdated = self.record is not None and self.record.is_outdated
        if keeper is not None and not is_outdated and not select.select([keeper], [], [], 0)[0]:
            while _runs(daemon):  # for some microseconds more
                time.sleep(_LOOK_AGAIN_S)
            if self.parent is not None:  # which may have other ids than this process
                self.parent.send(ENDING)
                return
            with suppress(OSError):
                signal.pidfd_send_signal(keeper, signal.SIGCHLD)
        elif self._abort_fd is not None:
            os.write(self._abort_fd, b"1")  # no effect on a connection that has ended


def _runs(pid: int) -> bool:
    """Whether the main thread of a process has not ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] not in (b"Z", b"X")
    except OSError:
        return False


def _own_control(path: str) -> int:
    control = mounts.new_mount("fusectl")
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=control.fd)
    finally:
        control.close()


def _seen_control(path: str) -> int:
    return os.open(f"/sys/fs/fuse/connections/{path}", os.O_WRONLY | os.O_CLOEXEC)
