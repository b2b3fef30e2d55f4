"""The state that a daemon and its keeper (fuse.keeper) have of each other, and of the daemons before.

The exit statuses and UPGRADE are the same in all versions.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from unionfs.core.node_record import WAITS
from unionfs.fuse.keeper_channel import ASKS, OVER

if TYPE_CHECKING:
    from unionfs.core.node_record import NodeRecord
    from unionfs.fuse.keeper_channel import Channel

DIED: Final = 75
"""Exit status of a daemon that ended by an exception."""
LEFT: Final = 76
"""Exit status of a daemon that has left the mount to its successor."""
UPGRADE: Final = signal.SIGUSR2
"""The signal by which a daemon asks its keeper for an upgrade."""

_ATTEMPTS: Final = 20
"""After this many deaths in a row by a fault, before a takeover was complete or before a request came, the keeper
starts no other daemon: it would have the same fault. Daemons that other processes kill are not counted."""

_CRASHES_OF_ONE: Final = 3
"""A request that was in hand at this many deaths in a row is answered EIO, """
_DEATHS_OF_ONE: Final = 10
"""or, if other processes killed the daemon, at this many: then the request need not be the cause."""

_AT_ONCE: Final = 3
"""After this many faults in a row, each soon after the one before, the keeper waits before it starts a daemon: """
_PAUSE_S: Final = 0.01
"""so long, and twice as long after each further one, """
_PAUSE_MOST_S: Final = 1.0
"""but no longer: so 20 attempts take 10 s, and a want of memory, processes or descriptors may end meanwhile. """
_PAUSE_IN_USE_S: Final = 0.1
"""If the daemons answer requests before they die, it waits no longer than this."""
_SOON_S: Final = 10.0

_END_S: Final = 1.0


class DaemonHistory:
    """The state that one daemon has of its keeper and of the daemons before it."""

    def __init__(self, keeper: int, record: NodeRecord | None = None) -> None:
        self.keeper = keeper  # its pid; changed in a process that becomes the keeper
        self.is_parent = False  # whether that is the parent of mounts
        self._record = record  # set once, by `begin` in a daemon at the latest
        self.deaths = 0  # of daemons before this one
        self.reason = ""  # of the last death
        self.replaced = 0  # how often another daemon has continued, after a death or an upgrade
        self.replacements: list[tuple[float, str]] = []  # the last of them: time.time(), why; oldest first
        self.continues = False  # whether a daemon has served before
        self.ended = ""  # how that has ended, after its name, for people
        self.died_at = 0.0  # time.monotonic of it, or of the end of a daemon that has left
        self.waited_s = 0.0  # the longest time without a daemon; changed by `begin`
        self.refused = 0  # unique of a request that is to be answered EIO; 0: none
        self.unreaped: list[int] = []  # dead daemons of which a thread still waits for an answer; in the keeper
        self.upgrades = 0  # so far
        self.version_before = ""  # the version that has served before the last upgrade
        self.not_upgraded = ""  # why the last upgrade has failed; "" if it has not
        self.channel: Channel | None = None  # to the keeper; in a daemon only
        self.asking = threading.Lock()  # held while a daemon waits for an answer of its keeper
        self.is_let_go = False  # whether the keeper no longer keeps the mount; set once, by a thread of the daemon
        self.awaits_keeper = False  # whether the keeper is still becoming the version of this daemon
        self._last = 0  # request in hand at the last death
        self._repeated = 0  # how often in a row the same request was in hand,
        self._crashed = 0  # and in how many of these deaths the daemon was not killed from outside
        self._oom_kills = _oom_kills()
        self._attempts = 0  # deaths in a row, as _ATTEMPTS counts them
        self._faults = 0  # in a row, each soon after the one before
        self._fault_at = 0.0  # time.monotonic of the last one

    @property
    def is_alive(self) -> bool:
        """Whether the keeper lives. In a daemon only."""
        return os.getppid() == self.keeper and not self.is_let_go

    @property
    def record(self) -> NodeRecord:
        """The record of nodes. In a daemon, and in a keeper of one mount."""
        assert self._record is not None
        return self._record

    @property
    def is_kept(self) -> bool:
        """Whether the keeper can have another daemon continue. In a daemon only."""
        return self.is_alive and not self.record.is_outdated

    def begin(self, record: NodeRecord) -> None:
        """Note that the daemon begins to serve. In a daemon only."""
        self._record = record
        longest = record.longest_wait_us
        if self.died_at:
            waited_us = int((time.monotonic() - self.died_at) * 1e6)
            record.waits[self.replaced % WAITS] = waited_us
            record.waits[WAITS] += waited_us
            longest = max(longest, waited_us)
        record.begin_life(self.deaths, longest)
        self.waited_s = longest / 1e6

    def note(self, why: str, record: NodeRecord) -> None:
        """Note that another daemon is to continue, and why. In the keeper."""
        self.replaced += 1
        self.replacements = [*self.replacements, (time.time(), why)][-WAITS:]
        record.waits[self.replaced % WAITS] = 0

    @property
    def waited_total_s(self) -> float:
        """The sum of all times without a daemon."""
        return float(self.record.waits[WAITS]) / 1e6

    def described(self) -> list[dict[str, Any]]:
        """Return the last replacements, oldest first: time (time.time()), reason, waited_s: how long no daemon
        served."""
        first = self.replaced - len(self.replacements) + 1
        return [
            {"time": round(when, 3), "reason": why, "waited_s": self.record.waits[number % WAITS] / 1e6}
            for number, (when, why) in enumerate(self.replacements, first)
        ]

    def watch(self, tell: Callable[[str], None]) -> None:
        """Start a thread that calls `tell` when the keeper has been killed, or no longer keeps the mount."""
        try:
            threading.Thread(target=self._watch, args=(tell,), name="keeper", daemon=True).start()
        except RuntimeError as error:  # RLIMIT_NPROC, memory
            tell(f"the death of the keeper (process {self.keeper}) would not be noticed: {error}")

    def _watch(self, tell: Callable[[str], None]) -> None:
        is_killed = True
        while self.is_alive:
            try:
                is_killed = self._wait_for_end()
                break
            except OSError:  # no descriptor is left
                time.sleep(_END_S)
        if self.is_let_go:
            return  # the mount has ended
        self.is_let_go = True
        what = "was killed" if is_killed else "keeps this mount no more"
        tell(f"the keeper (process {self.keeper}) {what}: if this daemon dies, the mount ends")

    def _wait_for_end(self) -> bool:
        """Wait until the keeper has ended or lets go of the mount. Returns whether it has ended. Raises: OSError."""
        fd = os.pidfd_open(self.keeper)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if self.is_parent and self.channel is not None:
                poll.register(self.channel, 0)  # for POLLHUP, which always counts
            if self.is_alive:
                poll.poll()
            # Its descriptors are closed a moment before it is seen to end.
            return self.is_let_go or bool(select.select([fd], [], [], _END_S)[0])
        finally:
            os.close(fd)

    def values(self) -> dict[str, Any]:
        """Return the state as plain values, for `of_values` of another version."""
        counts = ("deaths", "died_at", "waited_s", "upgrades", "replaced")
        words = ("keeper", "reason", "version_before", "not_upgraded", "unreaped", "replacements")
        return {name: getattr(self, name) for name in (*counts, *words)}

    @classmethod
    def of_values(cls, values: dict[str, Any], record: NodeRecord) -> DaemonHistory:
        """Undo `values`, of this or another version."""
        history = cls(values["keeper"], record)
        for name in history.values():
            if name in values:
                setattr(history, name, values[name])
        return history

    def over(self) -> None:
        """Note that the mount has ended, and wait until the parent of mounts has closed its descriptors: when this
        daemon has ended, the branches' filesystems can be unmounted. In a daemon only."""
        if self.is_parent and self.channel is not None and not self.is_let_go:
            self.is_let_go = True
            if self.channel.send(OVER):
                self.channel.receive(_END_S)

    def wait_for_keeper(self) -> None:
        """Wait until the keeper has loaded its code, or has died. In a daemon only, before it reports the new version:
        after that the files may be replaced again."""
        if self.awaits_keeper and self.channel is not None and not self.channel.wait_until_kept():
            until = time.monotonic() + _END_S  # its descriptors are closed before it is seen to end
            while self.is_alive and time.monotonic() < until:
                time.sleep(0.001)
        self.awaits_keeper = False

    def ask_for_upgrade(self) -> str:
        """Have the keeper start another version. Returns why that is impossible; "" if this daemon must leave the mount
        now. In a daemon only, in one thread at a time."""
        killed = "the keeper was killed"
        if self.channel is None or self.is_let_go:
            return killed
        with self.asking:
            is_asked = self.channel.send(ASKS) if self.is_parent else self.call()
            return self.channel.wait_for_verdict() if is_asked else killed

    def call(self) -> bool:
        """Send UPGRADE to a keeper that is no parent of mounts, so that it reads the channel; if nothing is there, the
        signal asks for an upgrade. In a daemon only. Returns False if the keeper has been killed."""
        try:
            fd = os.pidfd_open(self.keeper)
            try:
                if self.is_alive:
                    signal.pidfd_send_signal(fd, UPGRADE)
                return self.is_alive
            finally:
                os.close(fd)
        except OSError:
            return False

    def end(self, status: int, record: NodeRecord) -> bool:
        """Note the death of a daemon. In the keeper only. Returns whether there is to be another one."""
        self.deaths += 1
        self.died_at = time.monotonic()
        self.reason = how_it_ended(status)
        self.note(self.reason, record)
        self.ended = f"was {self.reason}"
        if record.serving != self._last:
            self._last, self._repeated, self._crashed = record.serving, 0, 0
        oom_kills_before, self._oom_kills = self._oom_kills, _oom_kills()
        is_outsiders = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        is_crash = not is_outsiders or self._oom_kills != oom_kills_before
        has_taken_over = record.lives >= self.deaths - 1
        if has_taken_over:  # else the request was not in hand again
            self._repeated += 1
            self._crashed += is_crash
        if self._last and (self._crashed >= _CRASHES_OF_ONE or self._repeated >= _DEATHS_OF_ONE):
            self.refused = self._last
        if has_taken_over and (record.serving or not is_crash):
            self._attempts = 0
        elif is_crash:
            self._attempts += 1
        self._count_fault(is_crash)
        return self._attempts < _ATTEMPTS and not record.is_full and not record.is_outdated

    def not_started(self, error: OSError) -> str:
        """Note that no process can be started. In the keeper only. Returns why it is to try no more; "" if it is to."""
        self._attempts += 1
        self._count_fault(True)
        why = f"the daemon {self.ended or 'has ended'}, and no other process can be started: {error.strerror}"
        return "" if self._attempts < _ATTEMPTS else why

    def _count_fault(self, is_one: bool) -> None:
        now = time.monotonic()
        if not is_one or now - self._fault_at > _SOON_S:
            self._faults = 0
        if is_one:
            self._faults, self._fault_at = self._faults + 1, now

    @property
    def pause_s(self) -> float:
        """How long the keeper waits before it starts another daemon, in seconds: without that, daemons that die of a
        fault at once would be replaced without end, and each writes a stack trace to the log."""
        more = min(self._faults - _AT_ONCE, _ATTEMPTS)
        most_s = _PAUSE_MOST_S if self._attempts else _PAUSE_IN_USE_S
        return min(_PAUSE_S * 2 ** (more - 1), most_s) if more > 0 else 0.0


def _oom_kills() -> int:
    """Return how many processes the kernel has killed so far for lack of memory; 0 if that is not known."""
    try:
        with open("/proc/vmstat", "rb") as file:
            return next((int(line.split()[1]) for line in file if line.startswith(b"oom_kill ")), 0)
    except OSError:
        return 0


def how_it_ended(status: int) -> str:
    """Describe the wait status of a process, for people."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"killed by signal {number} ({signal.strsignal(number) or 'unknown'})"
    return "ended by an exception" if os.WEXITSTATUS(status) == DIED else f"exit status {os.WEXITSTATUS(status)}"
