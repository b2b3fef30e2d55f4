"""An upgrade: another version continues to serve a mount, or the serving version continues and reports why.

    daemon     asks its keeper (a signal)                    `unionfs upgrade` has asked it
    keeper     executes the program in a child, the successor, with descriptors and values: nothing is opened by path
    successor  loads its code, makes the union from these, checks the record: says "able", or "unable" and why
    daemon     ends between two requests                     the keeper has said "leave"
    successor  continues from the record, and says "serves"  the keeper has said "go"
    keeper     executes the program itself: its pid, its child and its descriptors stay; then it says "kept"

Until "leave" the daemon serves, and until "serves" the keeper can have a daemon of its own version continue. Words, the
marshalled values (fuse.keeper_channel) and exit statuses are the same in all versions. A successor that finds a record
of an older version writes that version until all processes of the mount have its own version.

The program is the one that the keeper was started from: the same interpreter, and the package in the same directory,
which an installation has replaced. The request names no path, so a process in a container gains nothing by sending it.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from unionfs.fuse.daemon_end import status_of
from unionfs.fuse.daemon_history import LEFT, DaemonHistory, how_it_ended
from unionfs.fuse.keeper_channel import ABLE, GO, LEAVE, SERVES, UNABLE, Channel, connected, state_of

if TYPE_CHECKING:
    from unionfs.core.node_record import NodeRecord

DAEMON: Final = "daemon"
KEEPER: Final = "keeper"
"""Roles of an executed program."""

_START_S: Final = 30.0
"""Seconds until a successor, which starts Python, must report that it is able."""
_TAKEOVER_S: Final = 60.0
"""Seconds until a successor must serve; meanwhile programs wait."""
_LOOK_AGAIN_S: Final = 0.005
_END_S: Final = 5.0
"""Seconds until a successor that has closed its channel must end."""
_LINE_MAX: Final = 500
_ERRORS_MAX: Final = 1 << 16

log = logging.getLogger(__name__)


class Program(NamedTuple):
    """The program that a keeper executes for an upgrade. Immutable."""

    arguments: list[str]  # the first is the file; the number of the descriptor with the values follows
    shown: list[str]  # the command line that the process is to show
    values: dict[str, Any]  # for marshal
    descriptors: list[int]  # descriptors that it inherits


def upgrade(
    daemon: int,
    channel: Channel,
    record: NodeRecord,
    history: DaemonHistory,
    program: Callable[[], Callable[[DaemonHistory], Program]],
    mask: Iterable[int],
) -> tuple[int, Channel, int | None]:
    """Try an upgrade. In the keeper; its `daemon` serves, and waits for the verdict at `channel`.

    Returns the daemon that serves now, its channel, and None; or the daemon that has ended, its channel and its wait
    status. Does not return where this process becomes a keeper of the other version.
    """
    after = DaemonHistory.of_values(history.values(), record)
    after.upgrades, after.not_upgraded = history.upgrades + 1, ""
    after.note("an upgrade", record)
    try:
        executed = program()(after)
        successor = _Successor(executed, mask, daemon)
    except Exception as error:  # noqa: BLE001 - the keeper must go on, whatever the files are by now
        return _refuse(daemon, channel, history, f"the new version cannot be started: {type(error).__name__}: {error}")
    why = successor.wait_until_able()
    if why:
        successor.end()
        return _refuse(daemon, channel, history, why)
    channel.send(LEAVE)
    status = successor.wait_for_end_before(record)
    history.died_at = time.monotonic()
    if not os.WIFEXITED(status) or os.WEXITSTATUS(status) != LEFT:
        successor.end()
        history.not_upgraded = f"the daemon {how_it_ended(status)} before the new version could continue"
        return daemon, channel, status
    why = successor.take_over(history.died_at)
    if why:
        successor.end()
        history.not_upgraded = f"{why}; the previous version continues"
        log.error("the upgrade has failed: %s", history.not_upgraded)
        return daemon, channel, status
    channel.close()
    after.unreaped = [*history.unreaped, daemon]
    history.upgrades, history.version_before, history.not_upgraded = after.upgrades, after.version_before, ""
    history.replaced, history.replacements = after.replaced, after.replacements
    after.died_at = history.died_at
    _become(executed._replace(values={**executed.values, "life": after.values()}), successor, mask)
    return successor.pid, successor.channel, None


def _refuse(daemon: int, channel: Channel, history: DaemonHistory, why: str) -> tuple[int, Channel, None]:
    history.not_upgraded = why
    log.warning("no upgrade: %s", why)
    channel.send(UNABLE + os.fsencode(why))
    return daemon, channel, None


def _owned(stack: ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


class _Successor:
    """A child of the keeper that executes the program, to become the daemon."""

    def __init__(self, program: Program, mask: Iterable[int], before: int) -> None:
        """Start it, while the process `before` is the daemon. Raises: OSError."""
        self._status: int | None = None  # set once: how it has ended
        self._before = before  # immutable
        with ExitStack() as opened, ExitStack() as given:
            self.channel, theirs = connected()  # immutable
            given.callback(theirs.close)
            self._errors = _owned(opened, os.memfd_create("unionfs-errors", os.MFD_CLOEXEC))
            """What it prints until it serves; immutable."""
            self._before_fd = _owned(opened, os.pidfd_open(before))  # immutable
            stderr = _owned(given, os.dup(2))
            values = {"role": DAEMON, "channel": theirs.fileno(), "stderr": stderr, **program.values}
            state = _owned(given, state_of(values))
            self.pid = os.fork()  # immutable
            if self.pid == 0:
                os.dup2(self._errors, 2)
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                _execute(program, state, [theirs.fileno(), stderr])
            opened.pop_all()

    def wait_until_able(self) -> str:
        """Wait until it can continue. Returns why it cannot, or why it need not: the daemon before has ended."""
        said = self.channel.receive(_START_S, self._before_fd)
        if select.select([self._before_fd], [], [], 0)[0]:
            return "the daemon ended before the new version could continue"
        return "" if said == ABLE else self._why(said, _START_S)

    def wait_for_end_before(self, record: NodeRecord) -> int:
        """Wait for the end of the daemon before. Returns its wait status."""
        while True:
            status, _ = status_of(self._before, record)
            if status is not None:
                return status
            select.select([self._before_fd], [], [], _LOOK_AGAIN_S)

    def take_over(self, ended_at: float) -> str:
        """Have the successor continue. Returns why it does not; "" if it serves."""
        self.channel.send(GO + repr(ended_at).encode())
        said = self.channel.receive(_TAKEOVER_S)
        if said == SERVES:
            self._close()
            return ""
        return self._why(said, _TAKEOVER_S)

    def _why(self, said: bytes | None, seconds: float) -> str:
        if said is None:
            return f"the new version did not answer within {seconds:.0f} s"
        if said:
            return os.fsdecode(said.removeprefix(UNABLE))
        status = self._end(_END_S)
        lines = os.pread(self._errors, _ERRORS_MAX, 0).decode(errors="replace").strip().splitlines()
        return f"the new version: {how_it_ended(status)}{': ' + lines[-1][:_LINE_MAX] if lines else ''}"

    def end(self) -> None:
        """End the successor, unless it has ended. Called once, unless it serves."""
        self._end(0)
        self.channel.close()
        self._close()

    def _close(self) -> None:
        os.close(self._errors)
        os.close(self._before_fd)

    def _end(self, seconds: float) -> int:
        """Wait up to `seconds` for the successor's end, then kill it. Returns its wait status."""
        until = time.monotonic() + seconds
        while self._status is None:
            if time.monotonic() >= until:
                os.kill(self.pid, signal.SIGKILL)
                self._status = os.waitpid(self.pid, 0)[1]
                break
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self._status = status
            else:
                time.sleep(_LOOK_AGAIN_S)
        return self._status


def _execute(program: Program, state: int, more: list[int]) -> NoReturn:
    """Execute the program, or print the error. In a process that was forked for this."""
    try:
        _replace_process(program, state, more)
    except OSError as error:
        os.write(2, f"{program.arguments[0]} cannot be executed: {error.strerror}\n".encode(errors="replace"))
    finally:
        os._exit(127)


def _replace_process(program: Program, state: int, more: list[int]) -> NoReturn:
    """Raises: OSError."""
    for fd in (state, *more, *program.descriptors):
        os.set_inheritable(fd, True)
    # The words to be shown follow, so that there is room for them (syscalls.namespaces.set_command_line).
    os.execve(program.arguments[0], [*program.arguments, str(state), *program.shown], os.environ)


def _become(program: Program, successor: _Successor, mask: Iterable[int]) -> None:
    """Execute the program in this process, the keeper. Returns if that is impossible."""
    fds = [successor.channel.fileno()]
    role = {"role": KEEPER, "channel": fds[0], "daemon": successor.pid, "mask": [int(number) for number in mask]}
    try:
        state = state_of({**role, **program.values})
        _replace_process(program, state, fds)
    except OSError as error:
        for fd in (*fds, *program.descriptors):
            os.set_inheritable(fd, False)
        log.warning("the keeper keeps its version: %s: %s", program.arguments[0], error.strerror)
        successor.channel.kept()
