"""Signals as bytes that are read from a descriptor, beside others in one poll(2); and the signals that a process that
waits for a command does not forward to it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Final

_UNCATCHABLE: Final = (signal.SIGKILL, signal.SIGSTOP)
_OWN: Final = (
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGURG,
    signal.SIGWINCH,
)  # they concern this process, as with podman
_FAULTS: Final = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)  # handled, they would repeat for ever
NOT_FORWARDED: Final = frozenset((*_UNCATCHABLE, *_OWN, *_FAULTS))


@contextlib.contextmanager
def signals_readable(numbers: Iterable[int]) -> Iterator[int]:
    """Replace the effect of these signals by a descriptor from which their numbers are read, one byte each.

    Ignored signals stay ignored, as nohup or a shell's background job expects.
    """
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def nothing(number: int, frame: FrameType | None) -> None:
        """The byte written to `write_fd` is the effect."""

    woken = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    own = {signal.SIGXFSZ}  # ignored by the interpreter itself
    kept = (signal.SIG_IGN, None)  # None: a handler that cannot be set again, such as faulthandler's
    taken = [number for number in numbers if number in own or signal.getsignal(number) not in kept]
    before = {number: signal.signal(number, nothing) for number in taken}
    try:
        yield read_fd
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken)
        os.close(read_fd)
        os.close(write_fd)
