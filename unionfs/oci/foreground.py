"""Wait for a container's process as its parent, forward signals to it, and relay its terminal to ours."""

from __future__ import annotations

import os
import select
import signal

from unionfs.launcher.init import exit_status
from unionfs.launcher.signal_pipe import NOT_FORWARDED, signals_readable
from unionfs.launcher.terminal import ConsoleSocket, Relay


def wait(pid: int, console: ConsoleSocket | None) -> int:
    """Wait until the process ends; its exit code, or 128 and the signal. Preconditions: it is our child."""
    pid_fd = os.pidfd_open(pid)
    relay = _relay(console)
    try:
        with signals_readable(signal.valid_signals() - NOT_FORWARDED | {signal.SIGWINCH}) as signals_fd:
            while True:
                wanted = relay.wanted() if relay else {}
                ready = _poll({**wanted, pid_fd: select.POLLIN, signals_fd: select.POLLIN})
                for fd in ready & wanted.keys():
                    if relay:
                        relay.handle(fd)
                if signals_fd in ready:
                    _forward(os.read(signals_fd, 1024), pid_fd, relay)
                if pid_fd in ready:
                    return exit_status(os.waitpid(pid, 0)[1])
    finally:
        if relay:
            relay.close()
        os.close(pid_fd)


def _relay(console: ConsoleSocket | None) -> Relay | None:
    if console is None:
        return None
    master = console.receive()
    console.close()
    return None if master is None else Relay(master, interactive=True)


def _poll(wanted: dict[int, int]) -> set[int]:
    poll = select.poll()
    for fd, events in wanted.items():
        poll.register(fd, events)
    return {fd for fd, _ in poll.poll()}


def _forward(numbers: bytes, pid_fd: int, relay: Relay | None) -> None:
    for number in numbers:
        if number == signal.SIGWINCH:
            if relay:
                relay.resize()
            continue
        try:
            signal.pidfd_send_signal(pid_fd, number)
        except ProcessLookupError:
            return
