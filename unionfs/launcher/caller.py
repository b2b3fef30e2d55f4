"""Access to a thread whose system call a supervisor intercepts: its memory, limits, directories and files.

The kernel may give a killed thread's number to another thread, also while the call is still being answered. So files
are opened through a descriptor of the thread's directory in /proc, which always refers to the same thread; it is opened
while the kernel confirms that the call still waits (SECCOMP_IOCTL_NOTIF_ID_VALID, see seccomp_unotify(2)). Linux gives
access to memory and limits by number only: this check follows each read and precedes each write of them.

Knows /proc and the listener. Does not know what a call means.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from typing import Final

from unionfs.syscalls import seccomp
from unionfs.syscalls.seccomp import Call


class CallerGoneError(Exception):
    """The call no longer waits: its thread was killed or interrupted, and the number may belong to another thread."""


class LeaveToKernelError(Exception):
    """Raised to let the kernel execute the call."""


class Caller:
    """The calling thread of one intercepted call. Closed by `close`."""

    def __init__(self, listener: int, proc_fd: int, call: Call) -> None:
        self._listener: Final = listener
        self._proc_fd: Final = proc_fd  # of the /proc in which the thread has the number `call.thread`
        self.call: Final = call
        self.args: Final = call.args
        self._directory_fd = -1  # of /proc/THREAD; opened when it is first needed

    def close(self) -> None:
        if self._directory_fd >= 0:
            os.close(self._directory_fd)
            self._directory_fd = -1

    def verify(self) -> None:
        """Raises: CallerGoneError unless the call still waits for its answer."""
        if not seccomp.is_waiting(self._listener, self.call):
            raise CallerGoneError

    def directory_fd(self) -> int:
        """Return a descriptor of the thread's directory in /proc. It never refers to another thread.

        Raises: CallerGoneError.
        """
        if self._directory_fd < 0:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            try:
                self._directory_fd = os.open(str(self.call.thread), flags, dir_fd=self._proc_fd)
            except (FileNotFoundError, ProcessLookupError):
                raise CallerGoneError from None
            self.verify()
        return self._directory_fd

    def open(self, name: str) -> int:
        """Return an O_PATH descriptor of the thread's `cwd` or `fd/N`. Raises: EBADF, CallerGoneError."""
        try:
            return os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=self.directory_fd())
        except FileNotFoundError:
            self.verify()
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def enter_root(self) -> None:
        """Change this process's root directory to that of the thread.

        Preconditions: `proc_fd` is our working directory. Raises: OSError, CallerGoneError.
        """
        os.chroot(f"self/fd/{self.directory_fd()}/root")

    def program_identity(self) -> tuple[int, int, int]:
        """Return device and inode of the thread's program, and its start time in clock ticks since boot.

        Two calls have equal values if one thread made both and did not execute another file in between (execve(2)).
        """
        st = os.stat("exe", dir_fd=self.directory_fd())
        started = self._text("stat").rpartition(b")")[2].split()[19]  # proc_pid_stat(5)
        return st.st_dev, st.st_ino, int(started)

    def umask(self) -> int:
        for line in self._text("status").splitlines():
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
        return 0o022

    def _text(self, name: str) -> bytes:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.directory_fd())
        with contextlib.closing(os.fdopen(fd, "rb")) as file:
            return file.read()

    def read_memory(self, address: int, size: int) -> bytes:
        """Return `size` bytes of the thread's memory at `address`. Raises: EFAULT, EPERM, CallerGoneError."""
        data = seccomp.read_memory(self.call.thread, address, size)
        self.verify()
        return data

    def read_string(self, address: int) -> bytes:
        """Return the NUL-terminated string at `address`. Raises: ENAMETOOLONG, EFAULT, EPERM, CallerGoneError."""
        text = seccomp.read_string(self.call.thread, address)
        self.verify()
        return text

    def write_memory(self, address: int, data: bytes) -> None:
        """Write `data` to the thread's memory at `address`. Raises: EFAULT, EPERM, CallerGoneError."""
        self.verify()
        seccomp.write_memory(self.call.thread, address, data)

    def limit(self, number: int) -> int:
        """Return the soft value of a resource limit. Raises: OSError, CallerGoneError."""
        soft, _ = resource.prlimit(self.call.thread, number)
        self.verify()
        return soft

    def set_limit(self, number: int, value: int) -> None:
        """Change the soft value of a resource limit. Raises: OSError, CallerGoneError."""
        _, hard = resource.prlimit(self.call.thread, number)
        self.verify()
        resource.prlimit(self.call.thread, number, (value, hard))


def as_id(register: int) -> int:
    """Convert an argument to a uid or gid."""
    return register & 0xFFFFFFFF


def as_signed(register: int) -> int:
    """Convert an argument to a signed int."""
    number = register & 0xFFFFFFFF
    return number - (1 << 32) if number >> 31 else number
