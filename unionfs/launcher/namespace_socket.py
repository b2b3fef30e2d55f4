"""A container's namespace socket: the monitor sends descriptors of the namespaces and the root directory to clients.

The socket lies in the container's own directory, outside of its root. The container's processes cannot be asked: they
are not dumpable, so their /proc/PID/ns is closed. Clients are root and the user of the container, and so is the
process that they believe: both sides look at SO_PEERCRED (syscalls.peers). Root connects to another user's container as
that user, since the monitor's user namespace has no number for root of the machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Final, NamedTuple

from unionfs.launcher.errors import LaunchError
from unionfs.syscalls import peers
from unionfs.syscalls.namespaces import setns

_OF_MONITOR: Final = ("user", "pid_for_children", "uts", "ipc", "net", "cgroup")
_NAMES: Final = ("user", "mnt", "pid", "uts", "ipc", "net", "cgroup")  # in the order in which they are entered
_BACKLOG: Final = 16
_NAMESPACES, _REFUSED = b"n", b"r"  # first bytes of an answer
_TIMEOUT_S: Final = 20  # for a monitor that is stopped or very busy


class Namespaces(NamedTuple):
    """Descriptors, the holder's to close: while they are open the namespaces exist."""

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
        """Enter every namespace, and the root. The pid namespace is that of children only. Raises: OSError."""
        own = {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in _NAMES}  # another /proc is there in the end
        for name, fd in zip(_NAMES, self.fds, strict=True):
            if os.fstat(fd).st_ino != own[name]:
                setns(fd)
            if name == "user":
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
        os.fchdir(self.root_fd)
        os.chroot(".")


class NamespaceServer:
    """The monitor's side. Closed by `close`, which lets the namespaces end."""

    def __init__(self, path: str) -> None:
        """Listen at `path`. Raises: OSError."""
        self._path: Final = path
        self._socket: Final = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._ours, self._inits = socket.socketpair()
        self._fds: tuple[int, ...] = ()  # what clients get; empty until the container is ready
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of a monitor that was killed
        with _short(path) as short:
            self._socket.bind(short)
        self._socket.listen(_BACKLOG)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send_from_init(self) -> None:
        """In init, once its root is made: hand over what only init has."""
        mnt_fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        socket.send_fds(self._inits, [b"r"], [mnt_fd, root_fd])
        os.close(mnt_fd)
        os.close(root_fd)

    def send_all(self, fds: tuple[int, ...]) -> None:
        """In init, where an OCI runtime made the container: hand over all namespaces (as _NAMES) and the root."""
        socket.send_fds(self._inits, [b"a"], fds)

    def close_init_end(self) -> None:
        """In the monitor, once init has been forked."""
        self._inits.close()

    def receive_from_init(self) -> None:
        """Take what init sends. Preconditions: its command was executed."""
        _, fds, _, _ = socket.recv_fds(self._ours, 1, len(_NAMES) + 1, socket.MSG_CMSG_CLOEXEC)
        if len(fds) > 2:
            self._fds = tuple(fds)
            return
        mnt_fd, root_fd = fds
        user, pid, uts, ipc, net, cgroup = (
            os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in _OF_MONITOR
        )
        self._fds = (user, mnt_fd, pid, uts, ipc, net, cgroup, root_fd)

    def serve(self) -> None:
        """Answer one client that has connected."""
        try:
            client, _ = self._socket.accept()
        except OSError:
            return  # has gone again
        with client, contextlib.suppress(OSError):
            if not peers.is_trusted(peers.peer_of(client).uid):
                client.send(_REFUSED)
            elif self._fds:
                socket.send_fds(client, [_NAMESPACES], self._fds)

    def close(self) -> None:
        self._socket.close()
        self._ours.close()
        self._inits.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = ()
        with contextlib.suppress(OSError):
            os.unlink(self._path)


def receive(path: str, owner: int | None = None) -> Namespaces:
    """The namespaces that the monitor listening at `path` sends; it must be of root, us or `owner`.

    Raises: LaunchError when nobody listens, or another user does.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(_TIMEOUT_S)
            with _short(path) as short:
                client.connect(short)
            peer = peers.peer_of(client)
            if not peers.is_trusted(peer.uid, owner):
                why = f"process {peer.pid} of user {peer.uid} answers in its monitor's place"
                raise LaunchError("entering the container", "", why)
            answer, fds, _, _ = socket.recv_fds(client, 1, len(_NAMES) + 1, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        gone = (errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET)
        why = "it is not running" if error.errno in gone else error.strerror or str(error)
        raise LaunchError("entering the container", "", why) from error
    if len(fds) != len(_NAMES) + 1:
        for fd in fds:
            os.close(fd)
        refused = f"it belongs to another user than {os.geteuid()}"
        why = refused if answer == _REFUSED else "it is not running yet, or any more"
        raise LaunchError("entering the container", "", why)
    return Namespaces(tuple(fds[:-1]), fds[-1])


@contextlib.contextmanager
def _short(path: str) -> Iterator[str]:
    """`path` as a socket's address, which has no room for a long one (unix(7))."""
    dir_fd = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{dir_fd}/{os.path.basename(path)}"
    finally:
        os.close(dir_fd)
