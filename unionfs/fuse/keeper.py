"""A keeper: the process that has mounted a union stays as the parent of the daemon that serves it, and forks the next
one when that dies.

The keeper holds what the daemon had when it began: the connection's descriptor, so that the connection stays, the
branches as they were opened, and the record of nodes in shared memory (core.node_record). So nothing is opened by
path again, and namespaces, limits and ids are the same. The next daemon continues from the record (core.takeover) and
asks the kernel to send again the requests that were not answered (FUSE_NOTIFY_RESEND, since Linux 6.9).

The keeper ends with its daemon: an exit is no death, unless it is with DIED. A keeper that is killed leaves a daemon
that nobody replaces.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from unionfs.fuse.daemon_end import status_of

if TYPE_CHECKING:
    from unionfs.core.node_record import NodeRecord

DIED: Final = 75
"""Exit status of a daemon that an exception has ended."""

_ATTEMPTS: Final = 20
"""After so many deaths in a row before a takeover was complete there is no further one."""

_CRASHES_OF_ONE: Final = 3
"""A request in hand at so many deaths in a row is answered EIO, """
_DEATHS_OF_ONE: Final = 10
"""or at so many that others have caused: who is killed again and again may have any request in hand."""

_LOOK_AGAIN_S: Final = 0.005
"""While threads of a daemon are ending."""

_FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SIGNALS: Final = {signal.SIGCHLD, *_FORWARDED}
_SI_KERNEL: Final = 0x80  # sent by the kernel, to the daemon as well: Ctrl-C, or the end of the session


class Life:
    """What one daemon knows of its keeper and of the daemons before it."""

    def __init__(self, keeper: int, record: NodeRecord) -> None:
        self.keeper = keeper  # immutable: its pid
        self.record = record  # immutable
        self.deaths = 0  # of daemons before this one
        self.reason = ""  # of the last death
        self.died_at = 0.0  # time.monotonic of it
        self.waited_s = 0.0  # the longest time without a daemon; changed by `begin`
        self.refused = 0  # unique of a request that is to be answered EIO; 0: none
        self.unreaped: list[
            int
        ] = []  # daemons that have died, but for a thread that waits for an answer; in the keeper
        self._last = 0  # request in hand at the last death
        self._repeated = 0  # how often in a row it was,
        self._crashed = 0  # and how often of these the daemon was not killed from outside
        self._oom_kills = _oom_kills()
        self._attempts = 0  # deaths in a row before a takeover was complete

    @property
    def is_alive(self) -> bool:
        """Whether the keeper lives. In a daemon only."""
        return os.getppid() == self.keeper

    @property
    def is_kept(self) -> bool:
        """Whether the keeper can have another daemon continue. In a daemon only."""
        return self.is_alive and not self.record.is_outdated

    def begin(self, record: NodeRecord) -> None:
        """Note that the daemon begins to serve. In a daemon only."""
        longest = record.longest_wait_us
        if self.deaths:
            longest = max(longest, int((time.monotonic() - self.died_at) * 1e6))
        record.begin_life(self.deaths, longest)
        self.waited_s = longest / 1e6

    def watch(self, tell: Callable[[str], None]) -> None:
        """Start a thread that tells when the keeper has been killed."""
        threading.Thread(target=self._watch, args=(tell,), name="keeper", daemon=True).start()

    def _watch(self, tell: Callable[[str], None]) -> None:
        with suppress(OSError):
            fd = os.pidfd_open(self.keeper)
            try:
                if self.is_alive:
                    poll = select.poll()
                    poll.register(fd, select.POLLIN)
                    poll.poll()
            finally:
                os.close(fd)
        tell(f"the keeper (process {self.keeper}) was killed: if this daemon dies, the mount ends")

    def end(self, status: int, record: NodeRecord) -> bool:
        """Note the death of a daemon. In the keeper only. Returns whether there is to be another one."""
        self.deaths += 1
        self.died_at = time.monotonic()
        self.reason = _reason(status)
        if record.serving != self._last:
            self._last, self._repeated, self._crashed = record.serving, 0, 0
        self._repeated += 1
        oom_kills_before, self._oom_kills = self._oom_kills, _oom_kills()
        is_outsiders = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if not is_outsiders or self._oom_kills != oom_kills_before:
            self._crashed += 1
        if self._last and (self._crashed >= _CRASHES_OF_ONE or self._repeated >= _DEATHS_OF_ONE):
            self.refused = self._last
        self._attempts = 0 if record.lives >= self.deaths - 1 else self._attempts + 1
        return self._attempts < _ATTEMPTS and not record.is_full and not record.is_outdated


def _oom_kills() -> int:
    """Return how many processes the kernel has killed so far since there was no memory; 0 if that is not known."""
    try:
        with open("/proc/vmstat", "rb") as file:
            return next((int(line.split()[1]) for line in file if line.startswith(b"oom_kill ")), 0)
    except OSError:
        return 0


def _reason(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"killed by signal {number} ({signal.strsignal(number) or 'unknown'})"
    return "ended by an exception" if os.WEXITSTATUS(status) == DIED else f"exit status {os.WEXITSTATUS(status)}"


def keep(record: NodeRecord, give_up: Callable[[str], None]) -> Life:
    """Fork the daemon, and stay as its keeper. Returns in the daemon, and again in each that replaces it.

    `give_up` is called, with the reason, before the keeper ends because no daemon can continue: it unmounts.
    Preconditions: this is the only thread.
    """
    life = Life(os.getpid(), record)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored ones are not sent, and the child is not to be waited for
    while True:
        record.serve(0)  # a daemon that dies before its first request dies of none
        pid = os.fork()
        if pid == 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            return life
        status = _wait(pid, record)
        life.unreaped = [one for one in (*life.unreaped, pid) if not _is_reaped(one)]
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != DIED:
            os._exit(os.WEXITSTATUS(status))
        if not life.end(status, record):
            with suppress(Exception):
                give_up(_why(life, record))
            os._exit(1)


def _why(life: Life, record: NodeRecord) -> str:
    if record.is_full:
        return f"{life.reason}, and the record of nodes is full"
    if record.is_outdated:
        return f"{life.reason}, and its branches were changed while it was mounted"
    return life.reason


def _wait(pid: int, record: NodeRecord) -> int:
    """Wait for the end of the daemon, and pass signals on to it. Returns its wait status."""
    while True:
        status, is_ending = status_of(pid, record)
        if status is not None:
            return status
        info = signal.sigtimedwait(_SIGNALS, _LOOK_AGAIN_S) if is_ending else signal.sigwaitinfo(_SIGNALS)
        if info is not None and info.si_signo != signal.SIGCHLD and info.si_code != _SI_KERNEL:
            os.kill(pid, info.si_signo)


def _is_reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True
