"""Status messages from the processes of a container to the process that waits for them, through a pipe.

Knows the pipe and the format. Does not know how the receiver reacts. Messages arrive whole and those of several senders
do not mix: the pipe is in packet mode (O_DIRECT in pipe(2)) and no message is longer than PIPE_BUF.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import Final, NamedTuple

from unionfs.launcher.errors import LaunchError

INIT: Final = "init"  # fields: the pid of the container's init
STARTED: Final = "started"
FAILED: Final = "failed"  # fields: those of LaunchError

_LONGEST_FIELD: Final = select.PIPE_BUF // 4 - 100  # a failure has three long fields and two short ones


class Message(NamedTuple):
    kind: str
    fields: tuple[str, ...]


class Sender:
    """The write end, held by the container's processes. It survives fork and is closed by exec."""

    def __init__(self, fd: int) -> None:
        self._fd: Final = fd

    def send(self, kind: str, *fields: str) -> None:
        """Send a message. It is dropped if the receiver has ended; fields are cut at `_LONGEST_FIELD` bytes."""
        shortened = (os.fsencode(text.replace("\0", "?"))[:_LONGEST_FIELD] for text in (kind, *fields))
        with contextlib.suppress(BrokenPipeError):
            os.write(self._fd, b"\0".join(shortened))

    def send_failure(self, error: LaunchError) -> None:
        self.send(FAILED, error.what, error.path, error.why, error.hint, str(error.status))

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


class Receiver:
    """The read end, held by the process that waits for the container."""

    def __init__(self, fd: int) -> None:
        self._fd: Final = fd
        os.set_blocking(fd, False)

    def fileno(self) -> int:
        return self._fd

    def receive(self) -> Message | None:
        """Return the next message, or None if none has arrived. Does not block."""
        try:
            data = os.read(self._fd, select.PIPE_BUF)
        except BlockingIOError:
            return None
        if not data:
            return None  # every sender has closed its end
        kind, *fields = (os.fsdecode(part) for part in data.split(b"\0"))
        return Message(kind, tuple(fields))

    def wait(self) -> Message | None:
        """Block until a message arrives and return it, or None once all senders have closed their ends."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll()
        return self.receive()

    def close(self) -> None:
        os.close(self._fd)


def make() -> tuple[Receiver, Sender]:
    """Make a channel; return its two ends."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_DIRECT)
    return Receiver(read_fd), Sender(write_fd)


def failure_in(message: Message) -> LaunchError:
    """Return the error that a FAILED message carries."""
    what, path, why, hint, status = message.fields
    return LaunchError(what, path, why, hint=hint, status=int(status))
