"""A keeper: the process that has mounted a union stays as the parent of the daemon that serves it, and forks the next
one when that dies.

The keeper has the descriptors with which the daemon began: of the connection, which therefore stays open, of the
branches, and of the record of nodes in shared memory (core.node_record). So nothing is opened by path again, and
namespaces, limits and ids are the same. The next daemon continues from the record (core.takeover) and asks the kernel
to send again the requests that were not answered (FUSE_NOTIFY_RESEND, since Linux 6.9).

If its daemon exits with another status than DIED or LEFT, the mount has ended, and the keeper ends, too; also if it
exits with DIED after the mount has ended. If the keeper is killed, its daemon serves on, but is not replaced. With LEFT
a daemon leaves the mount to one of another version (fuse.upgrade).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NoReturn

from unionfs.fuse import keeper_channel, upgrade
from unionfs.fuse.daemon_end import status_of
from unionfs.fuse.daemon_history import DIED, LEFT, UPGRADE, DaemonHistory

if TYPE_CHECKING:
    from unionfs.core.node_record import NodeRecord
    from unionfs.fuse.keeper_channel import Channel
    from unionfs.fuse.upgrade import Program

_IDLE_S: Final = 0.3
_LOOK_AGAIN_S: Final = 0.005
"""Seconds between two looks at a daemon whose threads are ending."""

FORWARDED: Final = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
"""Signals that a keeper passes on to its daemon."""
_SIGNALS: Final = {signal.SIGCHLD, *FORWARDED, UPGRADE}
_SI_KERNEL: Final = 0x80  # sent by the kernel, to the daemon as well: Ctrl-C, or the end of the session


def keep(
    record: NodeRecord,
    give_up: Callable[[str], None],
    has_ended: Callable[[], bool],
    make_program: Callable[[], Callable[[DaemonHistory], Program]],
    history: DaemonHistory | None = None,
    daemon: int = 0,
    channel: Channel | None = None,
    mask: Iterable[int] | None = None,
    learn: Callable[[dict[str, Any], list[int]], None] | None = None,
) -> DaemonHistory:
    """Fork the daemon, and stay as its keeper. Returns in the daemon, and again in each that replaces it.

    `give_up` is called, with the reason, before the keeper ends because no daemon can continue: it unmounts.
    `has_ended` returns whether the mount has ended.
    `make_program` is called once, a moment after a daemon has begun to serve, since it imports modules, whose files may
    later be another version's. It returns a function that returns the program to execute for an upgrade. `learn` is
    called with values and descriptors that the daemon has sent after a change of its branches. The other arguments are
    for a process that became the keeper by an upgrade: the history of the daemons before, the daemon that serves and
    its channel, the signal mask of the next ones. Preconditions: this is the only thread. Raises: OSError if the first
    daemon cannot be forked.
    """
    history = history or DaemonHistory(os.getpid(), record)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    mask = before if mask is None else mask
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored ones are not sent, and the child is not to be waited for
    program = cache(make_program)
    while True:
        if channel is None:
            record.no_longer_served()
            time.sleep(history.pause_s)
            try:
                channel, daemon = _fork(history)
            except OSError as error:
                if not history.continues:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
                    raise
                if why := history.not_started(error):
                    _end(give_up, why)
                continue
            if daemon == 0:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                return history
        status = _wait(daemon, record, program)
        if status is None and learn is not None and _learns(channel, learn):
            continue
        if status is None:
            daemon, channel, status = upgrade.upgrade(daemon, channel, record, history, program, mask)
            if status is None:
                continue
        history.unreaped = [one for one in (*history.unreaped, daemon) if not is_reaped(one)]
        if is_over(status, has_ended()):
            os._exit(os.WEXITSTATUS(status))
        channel.close()
        channel = None
        if why := judge(history, status, record, "an upgrade that failed"):
            _end(give_up, why)


def _fork(history: DaemonHistory) -> tuple[Channel, int]:
    """Fork a daemon. Returns the channel to it and its pid; in the daemon the channel to the keeper, and 0. Raises:
    OSError."""
    ours, theirs = keeper_channel.connected()
    try:
        daemon = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if daemon == 0:
        history.channel = theirs
        return theirs, 0
    theirs.close()
    return ours, daemon


def _end(give_up: Callable[[str], None], why: str) -> NoReturn:
    with suppress(Exception):
        give_up(why)
    os._exit(1)


def _learns(channel: Channel, learn: Callable[[dict[str, Any], list[int]], None]) -> bool:
    """Have the next daemons go on with what this one has sent. Returns False if it has sent nothing."""
    with suppress(Exception):  # the record says that the keeper does not know the branches
        sent = channel.take_description()
        if sent is None:
            return False
        learn(*sent)
        channel.kept()
    return True


def is_over(status: int, has_ended: bool) -> bool:
    """Whether a daemon that has this wait status was the last one. `has_ended`: whether the mount has ended. Then
    another daemon follows only one that was killed, to clear the work directory."""
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) not in ({LEFT} if has_ended else {DIED, LEFT})


def judge(history: DaemonHistory, status: int, record: NodeRecord, why_left: str) -> str:
    """Note the end of a daemon whose mount goes on. `why_left`: why it has left, if it has.

    Returns why no other daemon can continue; "" if one is to.
    """
    history.continues = True
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == LEFT:
        history.ended = "has left"
        history.note(why_left, record)
        return ""
    return "" if history.end(status, record) else _why(history, record)


def _why(history: DaemonHistory, record: NodeRecord) -> str:
    if record.is_full:
        return f"{history.reason}, and the record of nodes is full"
    if record.is_outdated:
        return f"{history.reason}, and its branches were changed while it was mounted"
    return history.reason


def _wait(pid: int, record: NodeRecord, when_idle: Callable[[], object]) -> int | None:
    """Wait for the end of the daemon, and pass signals on to it. `when_idle` is called after a moment without a signal.
    Returns the daemon's wait status; None: it asks for an upgrade, or has sent a description."""
    was_idle = False
    while True:
        status, is_ending = status_of(pid, record)
        if status is not None:
            return status
        info: signal.struct_siginfo | None
        if was_idle and not is_ending:
            info = signal.sigwaitinfo(_SIGNALS)
        else:
            info = signal.sigtimedwait(_SIGNALS, _LOOK_AGAIN_S if is_ending else _IDLE_S)
        if info is None:
            if not is_ending:
                was_idle = True
                with suppress(Exception):  # it is called again when it is needed, and then reports the error
                    when_idle()
        elif info.si_signo in FORWARDED and info.si_code != _SI_KERNEL:
            os.kill(pid, info.si_signo)
        elif info.si_signo == UPGRADE and info.si_pid == pid:
            return None


def is_reaped(pid: int) -> bool:
    """Wait for a child that may have ended. Returns whether it has."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True
