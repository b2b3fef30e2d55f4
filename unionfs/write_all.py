"""Write all bytes to descriptors that may accept only a part of them: pipes, non-blocking descriptors, terminals.

write(2) may be short, and on a descriptor that another process has made non-blocking it fails with EAGAIN while the
reader is slow. Then `write_all` waits; `Outlet` does not wait but keeps the rest, for loops that serve other
descriptors meanwhile. Knows descriptors and Python's standard streams.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_CERTAIN: Final = select.PIPE_BUF  # bytes that a pipe accepts at once if poll(2) reports it as writable (pipe(7))


def write_all(fd: int, data: ReadableBuffer) -> None:
    """Write all of `data`, and wait for the reader. Raises: OSError; EPIPE if there is no reader."""
    rest = memoryview(data).cast("B")
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            _wait(fd)


def _wait(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()


class Outlet:
    """A descriptor with a buffer for the bytes that its reader has not yet accepted. Used on one thread."""

    def __init__(self, fd: int) -> None:
        self.fd: Final = fd
        self._poll: Final = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._rest: memoryview = memoryview(b"")  # not written yet

    def is_behind(self) -> bool:
        """Whether the buffer has bytes: then the caller polls `fd` for POLLOUT and calls `go_on` before it sends
        more."""
        return bool(self._rest)

    def send(self, data: bytes) -> None:
        """Write what can be written now and keep the rest. Precondition: not is_behind(). Raises: OSError."""
        self._rest = memoryview(data)
        self.go_on()

    def go_on(self) -> None:
        """Write more of the rest, without waiting. Raises: OSError; EPIPE if there is no reader."""
        while self._rest and self._poll.poll(0):
            try:
                self._rest = self._rest[os.write(self.fd, self._rest[:_CERTAIN]) :]
            except BlockingIOError:
                return

    def finish(self) -> None:
        """Write all of the rest, and wait for the reader. Raises: OSError."""
        rest, self._rest = self._rest, memoryview(b"")
        write_all(self.fd, rest)


class _WholeFile(io.RawIOBase):
    """The raw file of a standard stream: one write() writes everything."""

    def __init__(self, fd: int) -> None:
        self._fd: Final = fd

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        view = memoryview(data)
        write_all(self._fd, view)
        return view.nbytes


def replace_standard_streams() -> None:
    """Make sys.stdout and sys.stderr write all bytes, also with PYTHONUNBUFFERED. Streams that a caller has set
    stay."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        sys.stdout = _whole(sys.stdout)
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        sys.stderr = _whole(sys.stderr)


def _whole(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    stream.flush()
    raw = _WholeFile(stream.fileno())
    return io.TextIOWrapper(
        raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw),  # type: ignore[arg-type]
        encoding=stream.encoding,
        errors=stream.errors,
        newline="\n",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
