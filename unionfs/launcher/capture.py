"""Standard output and error of a container's command through pipes, so that what it prints can be kept.

Knows pipes. What is to be kept where is somebody else's business (`Keep`). Without a capture the command writes to our
own descriptors, and with a terminal everything goes through `terminal.Relay`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

STDOUT: Final = "stdout"
STDERR: Final = "stderr"

Keep = Callable[[str, bytes], None]
"""Is given the stream, STDOUT or STDERR, and what was printed on it."""

_CHUNK: Final = 64 << 10
_NAMES: Final = {1: STDOUT, 2: STDERR}


class Capture:
    """The two pipes. All ends survive fork; theirs are closed by exec unless `give` was called."""

    def __init__(self, keep: Keep, *, attached: bool) -> None:
        self._keep: Final = keep
        self._attached: Final = attached  # what is printed is shown on our own descriptors, too
        self._ours: dict[int, int] = {}  # read end -> 1 or 2
        self._theirs: dict[int, int] = {}  # 1 or 2 -> write end
        for number in _NAMES:
            read_fd, write_fd = os.pipe()
            os.set_blocking(read_fd, False)
            self._ours[read_fd] = number
            self._theirs[number] = write_fd

    def give(self) -> None:
        """In the process that becomes the command: make the pipes its standard output and error."""
        for number, fd in self._theirs.items():
            os.dup2(fd, number)

    def filenos(self) -> set[int]:
        """What to poll for reading now."""
        return set(self._ours)

    def handle(self, fd: int) -> bool:
        """Pass on one piece of what was printed; whether there was one."""
        number = self._ours[fd]
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if data:
            self._keep(_NAMES[number], data)
            if self._show(number, data):
                return True
        # All of the container have closed it; or nobody sees it any more, and it gets SIGPIPE.
        del self._ours[fd]
        os.close(fd)
        return False

    def drain(self) -> None:
        """Pass on what is still there. For when nobody writes any more."""
        for fd in self.filenos():
            while fd in self._ours and self.handle(fd):
                pass

    def close_ours(self) -> None:
        for fd in self._ours:
            os.close(fd)
        self._ours.clear()

    def close_theirs(self) -> None:
        for fd in self._theirs.values():
            os.close(fd)
        self._theirs.clear()

    def _show(self, number: int, data: bytes) -> bool:
        try:
            while self._attached and data:
                data = data[os.write(number, data) :]
        except OSError:
            return False
        return True
