"""A container's pseudo terminal: made inside the container, relayed to our own terminal or pipe.

`open_terminal` runs in the container, `Relay` in the launching process; `ConsoleSocket` carries the master side from
one to the other. The pseudo terminal is in the container's own devpts, so that tty(1) prints a path that exists there.

Invariants: our terminal is raw only while `Relay` runs, and has its old settings whenever we are stopped or have ended.
We never block on the master side: a container that does not read would keep us from showing its output.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import tty
from typing import Any, Final, Protocol

from unionfs.launcher.capture import STDOUT, OutputSink
from unionfs.syscalls.mounts import MS_BIND, mount
from unionfs.write_all import Outlet

_SIZE: Final = struct.Struct("4H")  # struct winsize of ioctl_tty(2)
_CHUNK: Final = 64 << 10
_TIOCGPTPEER: Final = 0x5441  # ioctl_tty(2), <asm-generic/ioctls.h>
_END_OF_FILE: Final = b"\x04"  # VEOF of a new terminal: Ctrl-D


class ConsoleSocket:
    """A socket pair that sends the master side out of the container. Both ends survive fork and are closed by exec."""

    def __init__(self) -> None:
        self._launcher_end, self._child_end = socket.socketpair()
        self.size: Final = next((size for size in map(window_size, (0, 1, 2)) if size), None)  # for the new terminal

    def fileno(self) -> int:
        return self._launcher_end.fileno()

    @property
    def child_end(self) -> socket.socket:
        """The socket that `send` sends to."""
        return self._child_end

    def send(self, master: int) -> None:
        socket.send_fds(self._child_end, [b"t"], [master])

    def receive(self) -> int | None:
        """Block until the master side arrives and return it; None if all senders have closed their ends."""
        _, fds, _, _ = socket.recv_fds(self._launcher_end, 1, 1, socket.MSG_CMSG_CLOEXEC)
        return fds[0] if fds else None

    def close_child_end(self) -> None:
        self._child_end.close()

    def close(self) -> None:
        self._launcher_end.close()
        self._child_end.close()


def window_size(fd: int) -> bytes | None:
    """Return the size of the terminal `fd` as a struct winsize; None if it is no terminal."""
    try:
        return fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(_SIZE.size))
    except OSError:
        return None


class MasterSide(Protocol):
    """Where the master side of a new terminal goes, and the size that the terminal gets."""

    @property
    def size(self) -> bytes | None: ...

    def send(self, master: int) -> None: ...


def open_terminal(console: MasterSide, owner: int, *, is_console: bool = True) -> None:
    """Open a new pseudo terminal; make it our controlling terminal and standard descriptors, send its master side.

    Preconditions: this process leads a session without a terminal, may mount, and will change to user `owner`.
    """
    master, slave = os.openpty()
    if console.size:
        fcntl.ioctl(master, termios.TIOCSWINSZ, console.size)
    os.fchown(slave, owner, -1)
    if is_console:
        os.close(os.open("/dev/console", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        mount(os.ttyname(slave), "/dev/console", None, MS_BIND)
    console.send(master)
    os.close(master)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in (0, 1, 2):
        os.dup2(slave, fd)
    if slave > 2:
        os.close(slave)


class Relay:
    """Carries bytes between a container's terminal and our standard input and output. Used on one thread."""

    def __init__(
        self, master_fd: int, *, interactive: bool, sink: OutputSink | None = None, attached: bool = True
    ) -> None:
        self._master: int | None = master_fd  # closed by us; None once the container's side is closed
        # The container's side, held open here, too: else a command that closes its three descriptors just before it
        # ends (touch does) would leave it closed everywhere, and our hanging up would kill the command by SIGHUP.
        self._slave = fcntl.ioctl(master_fd, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        self._input: int | None = 0 if interactive else None  # None: not interactive, or at its end
        self._sink: Final = sink  # gets the output
        self._outlet: Final = Outlet(1) if attached else None  # output is written to our standard output
        self._unsent = b""  # read from our input, not yet accepted by the container
        self._at_line_start = True  # the last byte that was read from our input
        self._cooked: list[Any] | None = None  # our terminal's settings while it is raw
        os.set_blocking(master_fd, False)
        self.resume()

    def wanted(self) -> dict[int, int]:
        """Return what to poll for now: descriptor -> events."""
        if self._master is None:
            return {}
        behind = self._outlet is not None and self._outlet.is_behind()
        wanted = {self._master: (0 if behind else select.POLLIN) | (select.POLLOUT if self._unsent else 0)}
        if behind:
            wanted[1] = select.POLLOUT
        if self._input is not None and not self._unsent:
            wanted[self._input] = select.POLLIN
        return wanted

    def handle(self, fd: int) -> None:
        """Read from or write to a descriptor of `wanted` that poll(2) reported as ready."""
        if fd == self._input:
            self._read_input()
        if fd == self._master:
            self._show()
        if fd == 1:
            self._go_on()
        self._send()

    def resize(self) -> None:
        """Copy our window size to the container's terminal. The kernel sends SIGWINCH to its foreground processes."""
        size = next((size for size in map(window_size, (0, 1, 2)) if size), None)
        if size and self._master is not None:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def resume(self) -> None:
        """Make our terminal raw, at the start or after a stop: every key goes to the container, also Ctrl-C."""
        self.resize()
        if self._input is None or not os.isatty(self._input) or self._cooked:
            return
        with contextlib.suppress(termios.error):
            self._cooked = termios.tcgetattr(self._input)
            tty.setraw(self._input, termios.TCSADRAIN)

    def pause(self) -> None:
        """Restore the settings of our terminal."""
        cooked, self._cooked = self._cooked, None
        if cooked is None:
            return
        # tcsetattr from a background process raises SIGTTOU, which would stop us before the settings are restored.
        before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(0, termios.TCSADRAIN, cooked)
        signal.signal(signal.SIGTTOU, before)

    def close(self) -> None:
        """Write the rest of the container's output, then restore our terminal."""
        try:
            while self._finish() and self._show():
                pass
            self._hang_up()
        finally:
            self.pause()

    def _read_input(self) -> None:
        assert self._input is not None
        try:
            data = os.read(self._input, _CHUNK)
        except OSError:
            data = b""  # our terminal was closed
        if data:
            self._unsent += data
            self._at_line_start = data.endswith(b"\n")
        else:
            # Within a line, the first VEOF only ends the read of what is there (termios(3)).
            self._unsent += _END_OF_FILE if self._at_line_start else _END_OF_FILE * 2
            self._input = None

    def _send(self) -> None:
        if self._master is None or not self._unsent:
            return
        try:
            self._unsent = self._unsent[os.write(self._master, self._unsent) :]
        except BlockingIOError:
            pass  # the container does not read now; `wanted` asks for POLLOUT
        except OSError:
            self._hang_up()

    def _show(self) -> bool:
        """Pass on one piece of output. Return whether there was one."""
        assert self._master is not None
        if self._outlet and self._outlet.is_behind():
            return True  # the container must wait for our slow reader
        try:
            data = os.read(self._master, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""  # EIO: no process of the container has the terminal open
        if not data:
            self._hang_up()
            return False
        if self._sink:
            self._sink(STDOUT, data)
        try:
            if self._outlet:
                self._outlet.send(data)
        except OSError:
            self._hang_up()  # our output is closed: the container's processes get SIGHUP
            return False
        return True

    def _go_on(self) -> None:
        try:
            if self._outlet:
                self._outlet.go_on()
        except OSError:
            self._hang_up()

    def _finish(self) -> bool:
        """Wait until our reader has accepted all output. Returns whether there may be more."""
        try:
            if self._outlet:
                self._outlet.finish()
        except OSError:
            self._hang_up()
        return self._master is not None

    def _hang_up(self) -> None:
        if self._master is not None:
            os.close(self._master)
            os.close(self._slave)
        self._master = None
