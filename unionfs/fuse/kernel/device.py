"""The /dev/fuse descriptor: read one request, write one answer.

The only I/O of the engine. Does not interpret the bytes; knows the device's errors (fs/fuse/dev.c): reading ENOENT is a
request withdrawn before it was read, ENODEV the end of the mount, ECONNABORTED its forced end; writing ENOENT is an
answer to a request that no longer exists, EINVAL a malformed answer.
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
    """The mount has ended."""


_GONE: Final = (errno.ENODEV, errno.ECONNABORTED, errno.EBADF)


class Device:
    """A mounted /dev/fuse descriptor, which the caller closes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd  # immutable
        self.request = memoryview(bytearray(REQUEST_ROOM))  # overwritten by receive
        self._read: Callable[[memoryview], int | None] = io.FileIO(fd, "rb", closefd=False).readinto
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        os.set_blocking(fd, False)

    def receive(self) -> int:
        """Read the next request into `request`. Returns its length; 0 when none is pending, which costs no more than a
        poll.

        Raises: Gone.
        """
        while True:
            try:
                return self._read(self.request) or 0  # FileIO returns None for EAGAIN, without an exception
            except OSError as exc:
                if exc.errno in _GONE:
                    raise Gone from None
                if exc.errno != errno.ENOENT:
                    raise

    def send(self, reply: bytes | memoryview) -> bool:
        """Send an answer, from any thread. Returns False if the kernel finds it malformed. ENOENT is ignored: only
        requests of an aborted connection vanish like this, so the lookups that they counted do not matter.

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
        """Send a notification to the kernel. May wait for locks that programs hold until they are answered. ENOENT,
        ENOTEMPTY and EBUSY (the kernel does not know the object, or uses it) are ignored.

        Raises: Gone.
        """
        try:
            os.write(self.fd, message)
        except OSError as exc:
            if exc.errno in _GONE:
                raise Gone from None

    def wait(self, milliseconds: int) -> bool:
        """Wait up to `milliseconds`. Returns whether a request, or the end of the mount, is pending."""
        return bool(self._poll.poll(milliseconds))
