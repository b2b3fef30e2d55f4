"""What the container's processes tell the one that waits for them: short messages through a pipe.

Knows a pipe. Does not know what the messages lead to. A message arrives whole, and those of several senders do not
mix, since the pipe is in packet mode (O_DIRECT in pipe(2)) and no message is longer than PIPE_BUF.
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
    """The end of the container's processes. It survives fork and is closed by exec."""

    def __init__(self, fd: int) -> None:
        self._fd: Final = fd

    def send(self, kind: str, *fields: str) -> None:
        """Send a message. If nobody listens any more, it is lost: who has gone needs to know nothing."""
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
    """The end of the process that waits."""

    def __init__(self, fd: int) -> None:
        self._fd: Final = fd
        os.set_blocking(fd, False)

    def fileno(self) -> int:
        return self._fd

    def receive(self) -> Message | None:
        """The next message, or None when there is none now."""
        try:
            data = os.read(self._fd, select.PIPE_BUF)
        except BlockingIOError:
            return None
        if not data:
            return None  # every sender has gone
        kind, *fields = (os.fsdecode(part) for part in data.split(b"\0"))
        return Message(kind, tuple(fields))

    def wait(self) -> Message | None:
        """The next message, when there is one; None when all senders have gone instead."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll()
        return self.receive()

    def close(self) -> None:
        os.close(self._fd)


def make() -> tuple[Receiver, Sender]:
    """The two ends of a new channel."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_DIRECT)
    return Receiver(read_fd), Sender(write_fd)


def failure_in(message: Message) -> LaunchError:
    """The error that a FAILED message carries."""
    what, path, why, hint, status = message.fields
    return LaunchError(what, path, why, hint=hint, status=int(status))
