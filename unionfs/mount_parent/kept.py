"""The mounts that a parent of mounts keeps, and the processes that continue with them.

A daemon that the parent has forked sends it a description: plain values, and descriptors of the connection, the
branches, the record of nodes and its namespaces. When the daemon dies, the parent forks the next one, which enters
these namespaces, takes over the described properties, makes the union of the descriptors, and continues from the record
(core.takeover). So nothing is opened by path, and one parent process keeps all of its mounts.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from unionfs import process_properties
from unionfs.core.node_record import NodeRecord
from unionfs.core.recorded_entry import DamagedError
from unionfs.daemon import continued, keeper_process
from unionfs.detach import let_go
from unionfs.fuse import keeper, keeper_channel
from unionfs.fuse.daemon_end import status_of
from unionfs.fuse.daemon_history import DIED, DaemonHistory
from unionfs.fuse.detachment import Mounted
from unionfs.fuse.keeper_channel import Channel
from unionfs.mount_parent.client import NAMESPACES

if TYPE_CHECKING:
    from logging import Logger

    from unionfs.daemon.mounted_union import Service
    from unionfs.fuse.kernel.session import Kept

DAEMON: Final = "daemon"
KEEPER: Final = "keeper"
"""Roles of a process that continues with a mount: serve it, or become the mount's own keeper."""

_FIRST: Final = ("environment", "facts", "mounted", "properties", "shown", "version")
"""Values that later descriptions do not change: like the namespaces, they are those from before the daemon's first
request."""
_OWN: Final = len(NAMESPACES) + 1  # descriptors behind those that the values name: namespaces, standard error


class _Given(NamedTuple):
    """The description of a mount. Immutable."""

    values: bytes  # marshalled
    descriptors: list[int]  # ours, in the order of "descriptors" in the values, then namespaces and standard error
    record: int  # the descriptor of the record of nodes; one of them
    device: int  # that of the connection
    control: int | None  # that of the control socket

    def close(self) -> None:
        for fd in self.descriptors:
            os.close(fd)


class Child:
    """A process that the parent has forked, and the mount that it serves."""

    def __init__(self, pid: int, channel: Channel | None) -> None:
        self.pid = pid  # changed by `fork`
        self.channel = channel  # None: it can send no requests; changed by `fork` and `let_go`
        self.is_container = False  # whether it runs `unionfs run`; set once
        self.is_ending = False  # its main thread has ended, and threads may wait for answers of the next daemon
        self.history: DaemonHistory | None = None  # set once, by its first description
        self._given: _Given | None = None  # None: it is not kept
        self._received: list[int] = []  # descriptors for the next description
        self._leaves_for = ""  # the role of the next process, if this one leaves the mount to it
        self._signals: list[int] = []  # for that
        self.due: float | None = None
        """When another process is to continue the mount, by time.monotonic; None: a process serves it, or it is over.
        Changed by `end` and `go_on`."""
        self._status: int | None = None  # the wait status of the process that has ended, until it is judged
        self._next = ("", "")  # the role of that process, and why it is to unmount

    @property
    def is_kept(self) -> bool:
        """Whether another process can continue with the mount, now or when the rest of its description has come."""
        return self._given is not None or bool(self._received)

    def take_messages(self) -> bool:
        """Carry out the child's messages. Returns False if no more can come."""
        while self.channel is not None:
            try:
                taken = self.channel.take()
                if taken is None:
                    return True
                message, fds = taken
                self._received += fds
                if message == keeper_channel.KEEP:
                    self._keep(self._received.pop())
                elif message == keeper_channel.RUNS:
                    self.is_container = True
                elif message == keeper_channel.ENDING:
                    self.is_ending = True
                elif message == keeper_channel.ASKS:
                    self._leaves_for = KEEPER
                    self.channel.leave()
                elif message == keeper_channel.OVER:
                    self.let_go()
                elif message.startswith(keeper_channel.SIGNAL):
                    self._signals.append(int(message.removeprefix(keeper_channel.SIGNAL)))
                elif not message:
                    return False
            except Exception:  # noqa: BLE001 - no descriptor is left, or it is not a daemon of ours
                self.let_go()
        return False

    def _keep(self, state: int) -> None:
        values = keeper_channel.read_state(state)
        numbers = values["descriptors"]
        received, self._received = self._received, []
        if len(received) != len(numbers) + _OWN:
            self._received = received
            raise ValueError("descriptors are missing")
        if self._given is not None:
            before = marshal.loads(self._given.values)
            values.update({name: before[name] for name in _FIRST})
            values["options"] = {**before["options"], "union": values["options"]["union"]}
            for fd, first in zip(received[-_OWN:], self._given.descriptors[-_OWN:], strict=True):
                os.dup2(first, fd, inheritable=False)
            self._given.close()
        named = dict(zip(numbers, received, strict=False))
        given = (named[values["record"]], named[values["device"]], named.get(values["control"]))
        self._given = _Given(marshal.dumps(values), received, *given)
        if self.history is None:
            self.history = DaemonHistory(os.getpid())
            self.history.is_parent = True
        if values["acknowledge"] and self.channel is not None:
            self.channel.kept()

    def let_go(self) -> None:
        """Keep the mount no longer. The daemon notices that, and goes on serving."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        if self._given is not None:
            self._given.close()
            self._given = None
        for fd in self._received:
            os.close(fd)
        self._received = []

    def status(self) -> int | None:
        """Return the wait status of the process if it has ended; None: it has not, or threads of it are ending."""
        record = None
        try:
            with suppress(OSError):  # no memory; `end` meets that, too
                record = NodeRecord(self._given.record) if self._given is not None else None
            if record is not None:
                return status_of(self.pid, record)[0]
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            return status if ended else None
        except (ChildProcessError, DamagedError):
            return 0

    def end(self, status: int) -> None:
        """Note that the process has ended, with this wait status. If the mount goes on, another one is due."""
        given = self._given
        has_ended = given is not None and keeper_process.has_ended(given.device, given.control)
        if given is None or self.history is None or keeper.is_over(status, has_ended):
            self.let_go()
            return
        self.history.died_at = self.due = time.monotonic()
        self._status = status

    def go_on(self) -> bool:
        """Fork the process that is due: then `pid` is that one. If that is impossible, it is due again later, or the
        mount ends. Returns whether there is a process. Raises: DamagedError."""
        given, history = self._given, self.history
        self.due = None
        if given is None or history is None:
            return False
        try:
            if self._status is not None and (pause_s := self._judge(given, history, self._status)):
                self.due = time.monotonic() + pause_s
                return False
            self._fork(given, history, *self._next)
        except OSError as error:
            why = self._next[1] or history.not_started(error)
            if why:
                self._write_to_log(given, f"no daemon can continue ({why}): the mount ends")
                self.let_go()
            else:
                self.due = time.monotonic() + history.pause_s
            return False
        return True

    def _judge(self, given: _Given, history: DaemonHistory, status: int) -> float:
        """Find out which process is due. Returns in how many seconds. Raises: OSError, DamagedError."""
        record = NodeRecord(given.record)
        self._status = None
        role, self._leaves_for = self._leaves_for or DAEMON, ""
        if not os.WIFEXITED(status):
            role = DAEMON
        died_at = history.died_at
        why = keeper.judge(history, status, record, "a keeper of its own")
        history.died_at = died_at
        record.no_longer_served()
        self._next = ("" if why else role, why)
        return 0.0 if why else history.pause_s

    @staticmethod
    def _write_to_log(given: _Given, text: str) -> None:
        """Write a line as unionfs.log_lines has them, without a process that has this log."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')},000 ERROR {__name__}: {text}\n"
        with suppress(OSError):
            os.write(given.descriptors[-1], line.encode(errors="replace"))

    def _fork(self, given: _Given, history: DaemonHistory, role: str, why: str = "") -> None:
        """Fork a process that continues in a role; with the role "" it unmounts, for the reason `why`. Raises:
        OSError."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        ours, theirs = keeper_channel.connected()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, keeper.FORWARDED)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                history.channel = theirs
                _Successor(given, history).run(role, why)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self.channel, self.is_ending = ours, False
        signals, self._signals = self._signals, []
        for number in signals:
            with suppress(OSError):
                os.kill(self.pid, number)
        if role != DAEMON:
            self.let_go()


class _Successor:
    """The code of a process that continues with a mount."""

    def __init__(self, given: _Given, history: DaemonHistory) -> None:
        self._given = given  # immutable
        self._history = history  # immutable

    def run(self, role: str, why: str) -> NoReturn:
        """Continue in the role (see Child._fork), and end this process."""
        os.dup2(self._given.descriptors[-1], 2)
        status = DIED  # as a daemon that has failed to take over: there is another one, or the union is unmounted
        try:
            values = marshal.loads(self._given.values)
            self._take_over(values)
            if role:
                service, kept = continued.make(values, values["shown"], values["version"])
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # GracefulShutdown has blocked the others
                status = 1
                self._serve(role, service, kept)
            else:
                _give_up(values, why)
            status = 0
        except BaseException:  # noqa: BLE001 - this process ends here
            from unionfs import log_lines

            log_lines.start(debug=False)
            what = "the daemon ends because of a bug" if role else f"no daemon can continue ({why}); unmounting fails"
            _logger().exception(what)
        finally:
            os._exit(status)

    def _serve(self, role: str, service: Service, kept: Kept) -> None:
        with continued.serving(service):
            if role == DAEMON:
                keeper_process.continue_after(service, kept, self._history)
            else:
                self._history.keeper, self._history.is_parent, self._history.channel = os.getpid(), False, None
                keeper_process.stay(service, kept, history=self._history)
            service.serve()

    def _take_over(self, values: dict[str, Any]) -> None:
        """Take over the namespaces, descriptors and properties of the daemon before, and close all else."""
        numbers = values["descriptors"]
        channel = self._history.channel
        assert channel is not None
        lowest = max(numbers) + 1
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest) for fd in self._given.descriptors]
        channel.move(lowest)
        let_go({*moved, channel.fileno()})
        for number, fd in zip(numbers, moved, strict=False):
            os.dup2(fd, number, inheritable=False)
        *namespaces, stderr = moved[len(numbers) :]
        os.setsid()
        process_properties.enter(namespaces)
        os.dup2(stderr, 2)
        os.chdir("/")
        process_properties.take(values["properties"])
        os.environb.clear()
        os.environb.update(values["environment"])
        time.tzset()
        for fd in moved:
            os.close(fd)


def _give_up(values: dict[str, Any], why: str) -> None:
    from unionfs import log_lines

    log_lines.start(debug=False)
    keeper_process.given_up(Mounted.continued(**values["mounted"]), why)


def _logger() -> Logger:
    import logging

    return logging.getLogger(__name__)
