"""The /dev/fuse descriptor: read one request, write one answer.

The only I/O of the engine. Does not interpret the bytes; knows the device's errors (fs/fuse/dev.c): reading ENOENT is a
request withdrawn before it was read, ENODEV the end of the mount, ECONNABORTED its forced end; writing ENOENT is an
answer to a request that no longer exists, EINVAL a malformed answer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import select
from collections.abc import Callable
from typing import Any, Final

from unionfs.fuse.kernel import abi
from unionfs.fuse.kernel.data import new_room
from unionfs.fuse.kernel.session import REQUEST_ROOM


class Gone(Exception):  # noqa: N818  not an error: how every mount ends
    """The mount has ended."""


_PAGE: Final = 4096

_GONE: Final = (errno.ENODEV, errno.ECONNABORTED, errno.EBADF)


class Device:
    """A mounted /dev/fuse descriptor, which the caller closes."""

    def __init__(self, fd: int, request: Any = None) -> None:
        """`request`: the buffer of requests, REQUEST_ROOM bytes or more."""
        self.fd = fd  # immutable
        room = memoryview(new_room(REQUEST_ROOM)) if request is None else request
        self.request: memoryview = room[:REQUEST_ROOM]  # overwritten by receive and sleep
        self.is_asleep = False  # whether `sleep` waits: a signal handler may then raise
        self.is_interrupted = False  # set by a signal handler: `sleep` returns at once from then on
        self._read: Callable[[memoryview], int | None] = io.FileIO(fd, "rb", closefd=False).readinto
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._others = 0  # descriptors that end a sleep, too
        self._waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # ends a poll; closed by `end`
        self._poll.register(self._waker, select.POLLIN)
        self._blocks = False  # whether read(2) waits; changed by _read_next only
        os.set_blocking(fd, False)

    def add(self, fd: int) -> None:
        """Let `fd` end a sleep, too, when it is readable."""
        self._poll.register(fd, select.POLLIN)
        self._others += 1

    def remove(self, fd: int) -> None:
        """Undo `add`."""
        self._poll.unregister(fd)
        self._others -= 1

    def wake(self) -> None:
        """End a poll in `sleep`. From any thread, together with a signal of which `stop_reading` is the handler."""
        os.eventfd_write(self._waker, 1)

    def stop_reading(self) -> None:
        """Have a read(2) that was interrupted by a signal, and is repeated after its handler, return at once. In that
        handler only."""
        os.set_blocking(self.fd, False)
        self._blocks = False

    def is_awake(self) -> None:
        """End the effect of `wake`: `sleep` sleeps again."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._waker)

    def end(self) -> None:
        """Close the descriptors that the device has opened itself."""
        os.close(self._waker)

    def touch(self) -> None:
        """Touch all pages of `request`, whose content stays, so that they have memory. If a daemon is killed while the
        kernel allocates a page to copy a request into, the request fails with EIO, and no other daemon gets it."""
        for offset in range(0, len(self.request), _PAGE):
            self.request[offset] = self.request[offset]

    def receive(self) -> int:
        """Read the next request into `request`. Returns its length; 0 when none is pending, which costs no more than a
        poll.

        Raises: Gone.
        """
        return self._read_next(False)

    def sleep(self) -> int:
        """Sleep until there is a request, and read it as `receive` does. Returns 0 when another descriptor is readable,
        or after an interrupt.

        Takes one system call; two if there are other descriptors. Raises: Gone, and what a signal handler raises.
        """
        self.is_asleep = True
        try:
            if self.is_interrupted:
                return 0
            if not self._others:
                return self._read_next(True)
            self._poll.poll()
        finally:
            self.is_asleep = False
        return self._read_next(False)

    def _read_next(self, blocks: bool) -> int:
        if blocks is not self._blocks:
            os.set_blocking(self.fd, blocks)
            self._blocks = blocks
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

    def open_backing(self, fd: int) -> int:
        """Let the kernel open the file behind `fd` by itself (FUSE passthrough). Returns its backing id, above 0.

        Raises: EPERM without CAP_SYS_ADMIN in the initial user namespace, ELOOP for a file of a stacked filesystem.
        """
        backing_id: int = fcntl.ioctl(self.fd, abi.DEV_IOC_BACKING_OPEN, bytearray(abi.BACKING_MAP.pack(fd, 0, 0)))
        return backing_id

    def close_backing(self, backing_id: int) -> bool:
        """Give a backing id back; open files go on using its file. Returns whether the kernel had it."""
        try:
            fcntl.ioctl(self.fd, abi.DEV_IOC_BACKING_CLOSE, abi.BACKING_ID.pack(backing_id))
        except OSError:  # or the connection has ended
            return False
        return True

    def wait(self, milliseconds: int) -> bool:
        """Wait up to `milliseconds`. Returns whether a request, or the end of the mount, is pending."""
        return bool(self._poll.poll(milliseconds))
