"""Capture standard output and error of a container's command through two pipes.

Knows pipes. The captured bytes go to an `OutputSink`, given by the caller. Without a capture the command writes to our
own descriptors; with a terminal, output goes through `terminal.Relay` instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

STDOUT: Final = "stdout"
STDERR: Final = "stderr"

OutputSink = Callable[[str, bytes], None]
"""Called with the stream, STDOUT or STDERR, and bytes that the command wrote to it."""

_CHUNK: Final = 64 << 10
_NAMES: Final = {1: STDOUT, 2: STDERR}


class Capture:
    """The two pipes. All ends survive fork. exec closes them, except write ends moved by `redirect_output`."""

    def __init__(self, sink: OutputSink, *, attached: bool) -> None:
        self._sink: Final = sink
        self._attached: Final = attached  # output is also written to our own descriptors
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

    def filenos(self) -> set[int]:
        """Return the read ends that are still open, to poll for POLLIN."""
        return set(self._read_ends)

    def handle(self, fd: int) -> bool:
        """Read one piece of output from `fd` and pass it on. Return whether there was one."""
        number = self._read_ends[fd]
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if data:
            self._sink(_NAMES[number], data)
            if self._show(number, data):
                return True
        # At end of file: every process of the container has closed it. When our own output is closed: closing the read
        # end makes the container's next write fail with SIGPIPE.
        del self._read_ends[fd]
        os.close(fd)
        return False

    def drain(self) -> None:
        """Pass on all output that is left in the pipes. Call it after the command has ended."""
        for fd in self.filenos():
            while fd in self._read_ends and self.handle(fd):
                pass

    def close_read_ends(self) -> None:
        for fd in self._read_ends:
            os.close(fd)
        self._read_ends.clear()

    def close_write_ends(self) -> None:
        for fd in self._write_ends.values():
            os.close(fd)
        self._write_ends.clear()

    def _show(self, number: int, data: bytes) -> bool:
        try:
            while self._attached and data:
                data = data[os.write(number, data) :]
        except OSError:
            return False
        return True
