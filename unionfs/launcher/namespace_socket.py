"""The door of a container: where the descriptors of its namespaces are had, so that more can be done in it.

It is a socket in the container's own directory, outside of its root. The monitor listens there and gives whoever comes
the namespaces and the root directory, for the container's processes cannot be asked: they do not let themselves be
looked into. Who may come is decided by the modes of that directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Final, NamedTuple

from unionfs.launcher.errors import LaunchError
from unionfs.syscalls.namespaces import setns

_OF_GUARDIAN: Final = ("user", "pid_for_children", "uts", "ipc", "net", "cgroup")
_NAMES: Final = ("user", "mnt", "pid", "uts", "ipc", "net", "cgroup")  # in the order in which they are entered
_BACKLOG: Final = 16
_PATIENCE_S: Final = 20  # for a monitor that is stopped or very busy


class Namespaces(NamedTuple):
    """What a door gives. Descriptors, the holder's to close: while they are open the namespaces exist."""

    fds: tuple[int, ...]  # as _NAMES
    root_fd: int  # the container's root directory, O_PATH

    def close(self) -> None:
        for fd in (*self.fds, self.root_fd):
            os.close(fd)

    def take_ids(self) -> None:
        """Enter the user namespace alone: the container's files can be used, from where we are. Raises: OSError."""
        if os.fstat(self.fds[0]).st_ino != os.stat("/proc/self/ns/user").st_ino:
            setns(self.fds[0])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)

    def enter(self) -> None:
        """Go in: every namespace, and the root. The pid namespace is that of children only. Raises: OSError."""
        own = {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in _NAMES}  # another /proc is there in the end
        for name, fd in zip(_NAMES, self.fds, strict=True):
            if os.fstat(fd).st_ino != own[name]:
                setns(fd)
            if name == "user":
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
        os.fchdir(self.root_fd)
        os.chroot(".")


class Door:
    """The monitor's side. Closed by `close`, which lets the namespaces end."""

    def __init__(self, path: str) -> None:
        """Listen at `path`. Raises: OSError."""
        self._path: Final = path
        self._socket: Final = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._ours, self._inits = socket.socketpair()
        self._fds: tuple[int, ...] = ()  # what is given; empty until the container is ready
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of a monitor that was killed
        with _short(path) as short:
            self._socket.bind(short)
        self._socket.listen(_BACKLOG)

    def fileno(self) -> int:
        return self._socket.fileno()

    def give_from_init(self) -> None:
        """In init, once its root is made: hand over what only init has."""
        mnt_fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        socket.send_fds(self._inits, [b"r"], [mnt_fd, root_fd])
        os.close(mnt_fd)
        os.close(root_fd)

    def give_all(self, fds: tuple[int, ...]) -> None:
        """Likewise where the container was made by somebody else: all namespaces (as _NAMES) and the root."""
        socket.send_fds(self._inits, [b"a"], fds)

    def forget_inits(self) -> None:
        """In the monitor, once init has been forked."""
        self._inits.close()

    def open(self) -> None:
        """Take what init gives. Preconditions: its command was executed."""
        _, fds, _, _ = socket.recv_fds(self._ours, 1, len(_NAMES) + 1, socket.MSG_CMSG_CLOEXEC)
        if len(fds) > 2:
            self._fds = tuple(fds)
            return
        mnt_fd, root_fd = fds
        user, pid, uts, ipc, net, cgroup = (
            os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in _OF_GUARDIAN
        )
        self._fds = (user, mnt_fd, pid, uts, ipc, net, cgroup, root_fd)

    def serve(self) -> None:
        """Give to one who came."""
        try:
            visitor, _ = self._socket.accept()
        except OSError:
            return  # has gone again
        with visitor, contextlib.suppress(OSError):
            if self._fds:
                socket.send_fds(visitor, [b"n"], self._fds)

    def close(self) -> None:
        self._socket.close()
        self._ours.close()
        self._inits.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = ()
        with contextlib.suppress(OSError):
            os.unlink(self._path)


def visit(path: str) -> Namespaces:
    """What the door at `path` gives. Raises: LaunchError when nobody is there."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as visitor:
            visitor.settimeout(_PATIENCE_S)
            with _short(path) as short:
                visitor.connect(short)
            _, fds, _, _ = socket.recv_fds(visitor, 1, len(_NAMES) + 1, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        gone = (errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET)
        why = "it is not running" if error.errno in gone else error.strerror or str(error)
        raise LaunchError("entering the container", "", why) from error
    if len(fds) != len(_NAMES) + 1:
        for fd in fds:
            os.close(fd)
        raise LaunchError("entering the container", "", "it is not running yet, or any more")
    return Namespaces(tuple(fds[:-1]), fds[-1])


@contextlib.contextmanager
def _short(path: str) -> Iterator[str]:
    """`path` as a socket's address, which has no room for a long one (unix(7))."""
    dir_fd = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{dir_fd}/{os.path.basename(path)}"
    finally:
        os.close(dir_fd)
