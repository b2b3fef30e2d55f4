"""Find the process that serves a mount, and wait for its end: for tests of daemons and of commands that end them."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.mountinfo import detach, mount_at
from tests.support.timing import limit
from unionfs.fuse import mounting

PATIENCE_S = 30.0
"""After this a daemon that should leave is taken to be stuck."""

_LEAVES_S = 1.0


class Daemon:
    """A live daemon. `pidfd` cannot come to mean another process, whatever becomes of this one."""

    def __init__(self, mountpoint: Path) -> None:
        connection = mounting.connection_at(os.fspath(mountpoint))
        assert connection is not None, f"nothing is mounted at {mountpoint}"
        name, found = mounting.process_name(connection), list[int]()
        until = time.monotonic() + limit(PATIENCE_S)
        while len(found) != 1 and time.monotonic() < until:  # what began it may not have left yet
            found = [pid for pid in _pids() if _comm(pid) == name]
        assert len(found) == 1, f"processes that serve {mountpoint}: {found}"
        self.pid = found[0]
        self.pidfd = os.pidfd_open(self.pid)

    def has_ended(self, patience_s: float = PATIENCE_S) -> bool:
        """Whether the process ends within `patience_s`."""
        return bool(select.select([self.pidfd], [], [], limit(patience_s))[0])

    def kill(self, number: signal.Signals) -> None:
        """Send a signal."""
        signal.pidfd_send_signal(self.pidfd, number)

    def parent(self) -> int:
        """Its parent process: the keeper, if it has one."""
        return parent_of(self.pid)

    def descriptors(self) -> dict[int, str]:
        """What its descriptors refer to."""
        found = {}
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            with suppress(FileNotFoundError):  # closed meanwhile
                found[int(fd)] = os.readlink(f"/proc/{self.pid}/fd/{fd}")
        return found


@contextmanager
def daemon_of(mountpoint: Path) -> Iterator[Daemon]:
    """The daemon that serves `mountpoint`. Afterwards neither is left, however the test ended."""
    daemon = Daemon(mountpoint)
    try:
        yield daemon
    finally:
        while mount_at(mountpoint) is not None:
            detach(mountpoint)
        if not daemon.has_ended(_LEAVES_S):
            with suppress(ProcessLookupError):
                daemon.kill(signal.SIGKILL)
            daemon.has_ended()  # the next mount may get the same number, and its daemon the same name
        os.close(daemon.pidfd)


def parent_of(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _comm(pid: int) -> str:
    """The name of a live process; nothing for one that has gone or that only waits for its parent to notice."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return ""
    return "" if fields["State"].strip().startswith("Z") else fields["Name"].strip()
