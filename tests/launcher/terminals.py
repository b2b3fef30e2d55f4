"""A user at a terminal: types, reads, changes the size of the window. Every wait has an end."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import process
from tests.support.process import ChildError
from tests.support.timing import limit
from tests.support.users import User

PATIENCE_S = 60.0
_CHUNK = 64 << 10


class Terminal:
    """The user's side of a pseudo terminal on which one command runs."""

    def __init__(self, master_fd: int, slave_fd: int, child: subprocess.Popen[bytes]) -> None:
        self._master = master_fd
        self._slave = slave_fd  # kept open: its settings are looked at when the command has ended
        self.child = child
        self.screen = ""  # everything that was shown so far; appended to by _read only
        self._seen = 0  # how much of it `expect` has consumed

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait until `pattern` is shown after what was expected before. Raises: ChildError if it never is."""
        deadline = time.monotonic() + limit(PATIENCE_S)
        while not (found := re.compile(pattern).search(self.screen, self._seen)):
            if time.monotonic() > deadline or not self._read(deadline - time.monotonic()):
                raise ChildError(f"{pattern!r} was not shown; the last of it: {self.screen[-2000:]!r}")
        self._seen = found.end()
        return found

    def end(self) -> int:
        """Wait for the command to end, reading what it shows; its exit code, negative for a signal."""
        deadline = time.monotonic() + limit(PATIENCE_S)
        while self.child.poll() is None:
            if time.monotonic() > deadline:
                raise ChildError(f"the command did not end; the last it showed: {self.screen[-2000:]!r}")
            self._read(0.05)
        while self._read(0):
            pass
        return int(self.child.returncode)

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._master], [], [], max(timeout_s, 0))[0]:
            return False
        try:
            data = os.read(self._master, _CHUNK)
        except OSError:
            return False
        self.screen += data.decode(errors="replace")
        return bool(data)


@contextmanager
def terminal(user: User, argv: Sequence[str | Path], rows: int = 24, columns: int = 80) -> Iterator[Terminal]:
    """Run `argv` as `user` on a new terminal, as a login shell would: leading a session that the terminal controls."""
    master, slave = os.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    os.fchown(slave, user.uid, -1)
    # setsid --ctty takes the terminal on its standard input; --wait passes the exit code on.
    child = subprocess.Popen(
        ["setsid", "--ctty", *user.prefix, *(os.fspath(argument) for argument in argv)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=user.home,
        env=dict(user.env),
    )
    user_side = Terminal(master, slave, child)
    try:
        yield user_side
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGHUP)  # an interactive shell ignores SIGTERM
            try:
                child.wait(limit(process.DEFAULT_TIMEOUT_S))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        os.close(master)
        os.close(slave)
