"""The /dev/fuse descriptor: take one request, give one answer.

The only I/O of the engine. Has no opinion on what the bytes say; knows what the device's errors mean (fs/fuse/dev.c):
reading ENOENT is a request withdrawn before it was taken, ENODEV the end of the mount, ECONNABORTED its forced end;
writing ENOENT is an answer that nobody waits for any more, EINVAL one that is not well-formed.
"""

from __future__ import annotations

import errno
import io
import os
import select
from collections.abc import Callable
from typing import Final

from unionfs.fuse.kernel.session import REQUEST_ROOM


class Gone(Exception):  # noqa: N818  not an error: how every mount ends
    """The mount is no more."""


_GONE: Final = (errno.ENODEV, errno.ECONNABORTED, errno.EBADF)


class Device:
    """A mounted /dev/fuse descriptor, which stays its opener's to close."""

    def __init__(self, fd: int) -> None:
        self.fd = fd  # immutable
        self.request = memoryview(bytearray(REQUEST_ROOM))  # overwritten by receive
        self._read: Callable[[memoryview], int | None] = io.FileIO(fd, "rb", closefd=False).readinto
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        os.set_blocking(fd, False)

    def receive(self) -> int:
        """Put the next request into `request`: its length, or 0 when none is there now, which costs no more than to ask
        whether there is one.

        Raises: Gone.
        """
        while True:
            try:
                return self._read(self.request) or 0  # of a FileIO: who has nothing says None, which is no exception
            except OSError as exc:
                if exc.errno in _GONE:
                    raise Gone from None
                if exc.errno != errno.ENOENT:
                    raise

    def send(self, reply: bytes | memoryview) -> bool:
        """Answer, from any thread. False: the kernel finds the answer malformed. One that nobody waits for any more is
        fine: only requests of an aborted connection are dropped like this, so nothing they counted matters.

        Raises: Gone.
        """
        try:
            os.write(self.fd, reply)
        except OSError as exc:
            if exc.errno in _GONE:
                raise Gone from None
            if exc.errno == errno.EINVAL:
                return False
            if exc.errno != errno.ENOENT:
                raise
        return True

    def notify(self, message: bytes) -> None:
        """Tell the kernel something unasked. May wait for locks that programs hold until they are answered. That it
        knows nothing of what it is told, or uses it (ENOENT, ENOTEMPTY, EBUSY), is fine.

        Raises: Gone.
        """
        try:
            os.write(self.fd, message)
        except OSError as exc:
            if exc.errno in _GONE:
                raise Gone from None

    def wait(self, milliseconds: int) -> bool:
        """Whether a request (or the end) is there, waiting so long for it at most."""
        return bool(self._poll.poll(milliseconds))
