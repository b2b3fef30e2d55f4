"""Capture standard output and error of a container's command through two pipes.

Knows pipes. The captured bytes go to an `OutputSink`, given by the caller. Without a capture the command writes to our
own descriptors; with a terminal, output goes through `terminal.Relay` instead.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Final

from unionfs.write_all import Outlet

STDOUT: Final = "stdout"
STDERR: Final = "stderr"

OutputSink = Callable[[str, bytes], None]
"""Called with the stream, STDOUT or STDERR, and bytes that the command wrote to it."""

_CHUNK: Final = 64 << 10
_NAMES: Final = {1: STDOUT, 2: STDERR}


class Capture:
    """The two pipes. All ends survive fork. exec closes them, except write ends moved by `redirect_output`."""

    def __init__(self, sink: OutputSink | None, *, attached: bool) -> None:
        self._sink: Final = sink
        self._outlets: Final = {number: Outlet(number) for number in _NAMES} if attached else {}  # our own descriptors
        self._read_ends: dict[int, int] = {}  # read end -> 1 or 2
        self._write_ends: dict[int, int] = {}  # 1 or 2 -> write end
        for number in _NAMES:
            read_fd, write_fd = os.pipe()
            os.set_blocking(read_fd, False)
            self._read_ends[read_fd] = number
            self._write_ends[number] = write_fd

    def redirect_output(self) -> None:
        """Make the write ends standard output and error of this process, which will execute the command."""
        for number, fd in self._write_ends.items():
            os.dup2(fd, number)

    def wanted(self) -> dict[int, int]:
        """Return what to poll for now: descriptor -> events. While our reader is behind, the container has to wait."""
        wanted = {}
        for fd, number in self._read_ends.items():
            outlet = self._outlets.get(number)
            if outlet and outlet.is_behind():
                wanted[number] = select.POLLOUT
            else:
                wanted[fd] = select.POLLIN
        return wanted

    def handle(self, fd: int) -> bool:
        """Pass on one piece of output, on a descriptor of `wanted` that is ready. Return whether there was one."""
        if fd in self._outlets:
            return self._show(fd, None)
        number = self._read_ends[fd]
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if data:
            if self._sink:
                self._sink(_NAMES[number], data)
            return self._show(number, data)
        self._close(number)
        return False

    def drain(self) -> None:
        """Pass on all output that is left, waiting for our reader. Call it after the command has ended."""
        for fd, number in list(self._read_ends.items()):
            outlet = self._outlets.get(number)
            while fd in self._read_ends:
                try:
                    if outlet:
                        outlet.finish()
                except OSError:
                    self._close(number)
                    break
                if not self.handle(fd):
                    break

    def close_read_ends(self) -> None:
        for fd in self._read_ends:
            os.close(fd)
        self._read_ends.clear()

    def close_write_ends(self) -> None:
        for fd in self._write_ends.values():
            os.close(fd)
        self._write_ends.clear()

    def _show(self, number: int, data: bytes | None) -> bool:
        """Write `data`, or more of the buffered output. Return False when our output is closed."""
        outlet = self._outlets.get(number)
        try:
            if outlet and data is not None:
                outlet.send(data)
            elif outlet:
                outlet.go_on()
        except OSError:
            self._close(number)
            return False
        return True

    def _close(self, number: int) -> None:
        """Close a read end: at end of file, or to make the container's next write fail with SIGPIPE."""
        for fd in [fd for fd, its_number in self._read_ends.items() if its_number == number]:
            del self._read_ends[fd]
            os.close(fd)
