"""A container's namespace socket: the monitor sends descriptors of the namespaces and the root directory to clients.

The socket lies in the container's own directory, outside of its root. It is needed because /proc/PID/ns of the
container's processes, which are not dumpable, cannot be opened. Both ends check the other's user by SO_PEERCRED
(syscalls.peers) and accept root and the container's user only. Root connects to another user's container as that user,
since the monitor's user namespace does not map root of the machine.
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

_MONITOR_NAMES: Final = ("user", "pid_for_children", "uts", "ipc", "net", "cgroup")
_NAMES: Final = ("user", "mnt", "pid", "uts", "ipc", "net", "cgroup")  # in the order in which they are entered
_BACKLOG: Final = 16
_NAMESPACES, _REFUSED = b"n", b"r"  # first bytes of an answer
_TIMEOUT_S: Final = 20  # for a monitor that is stopped or very busy


class Namespaces(NamedTuple):
    """Descriptors of a container's namespaces and root. They keep the namespaces alive until `close`."""

    fds: tuple[int, ...]  # as _NAMES
    root_fd: int  # the container's root directory, O_PATH

    def close(self) -> None:
        for fd in (*self.fds, self.root_fd):
            os.close(fd)

    def enter_user_namespace(self) -> None:
        """Enter only the user namespace, as its root, to use the container's files from our mounts. Raises: OSError."""
        if os.fstat(self.fds[0]).st_ino != os.stat("/proc/self/ns/user").st_ino:
            setns(self.fds[0])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)

    def enter(self) -> None:
        """Enter all namespaces and the root directory. Only children enter the pid namespace. Raises: OSError."""
        own = {
            name: os.stat(f"/proc/self/ns/{name}").st_ino for name in _NAMES
        }  # read now: afterwards, /proc is the container's
        for name, fd in zip(_NAMES, self.fds, strict=True):
            if os.fstat(fd).st_ino != own[name]:
                setns(fd)
            if name == "user":
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
        os.fchdir(self.root_fd)
        os.chroot(".")


class NamespaceServer:
    """The server in the monitor. `close` closes the socket and its descriptors of the namespaces."""

    def __init__(self, path: str) -> None:
        """Listen at `path`. Raises: OSError."""
        self._path: Final = path
        self._socket: Final = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._monitor_end, self._init_end = socket.socketpair()
        self._fds: tuple[int, ...] = ()  # what clients get; empty until the container is ready
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # left by a killed monitor
        with _short_address(path) as short:
            self._socket.bind(short)
        self._socket.listen(_BACKLOG)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send_from_init(self) -> None:
        """In init, in the container's root: send the mount namespace and the root, which the monitor does not have."""
        mnt_fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        socket.send_fds(self._init_end, [b"r"], [mnt_fd, root_fd])
        os.close(mnt_fd)
        os.close(root_fd)

    def send_all(self, fds: tuple[int, ...]) -> None:
        """In the init of an OCI runtime's container: send all namespaces (as _NAMES) and the root."""
        socket.send_fds(self._init_end, [b"a"], fds)

    def close_init_end(self) -> None:
        """Close init's end of the socket pair, in the monitor, once init has been forked."""
        self._init_end.close()

    def receive_from_init(self) -> None:
        """Receive init's descriptors. Preconditions: the command was executed."""
        _, fds, _, _ = socket.recv_fds(self._monitor_end, 1, len(_NAMES) + 1, socket.MSG_CMSG_CLOEXEC)
        if len(fds) > 2:
            self._fds = tuple(fds)
            return
        mnt_fd, root_fd = fds
        user, pid, uts, ipc, net, cgroup = (
            os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in _MONITOR_NAMES
        )
        self._fds = (user, mnt_fd, pid, uts, ipc, net, cgroup, root_fd)

    def serve(self) -> None:
        """Accept one client and send it the descriptors."""
        try:
            client, _ = self._socket.accept()
        except OSError:
            return  # the client has closed the connection
        with client, contextlib.suppress(OSError):
            if not peers.is_trusted(peers.peer_of(client).uid):
                client.send(_REFUSED)
            elif self._fds:
                socket.send_fds(client, [_NAMESPACES], self._fds)

    def close(self) -> None:
        self._socket.close()
        self._monitor_end.close()
        self._init_end.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = ()
        with contextlib.suppress(OSError):
            os.unlink(self._path)


class NotListeningError(LaunchError):
    """No monitor sends namespaces at the socket: the container does not run yet, or no longer."""


def receive(path: str, owner: int | None = None) -> Namespaces:
    """Receive the namespaces from the monitor that listens at `path`. It must run as root, as our user or as `owner`.

    Raises: NotListeningError when no monitor listens, LaunchError when a process of another user does.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(_TIMEOUT_S)
            with _short_address(path) as short:
                client.connect(short)
            peer = peers.peer_of(client)
            if not peers.is_trusted(peer.uid, owner):
                why = f"process {peer.pid} of user {peer.uid} listens at its socket instead of its monitor"
                raise LaunchError("entering the container", "", why)
            answer, fds, _, _ = socket.recv_fds(client, 1, len(_NAMES) + 1, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET):
            raise NotListeningError("entering the container", "", "it is not running") from error
        raise LaunchError.of("entering the container", error) from error
    if len(fds) != len(_NAMES) + 1:
        for fd in fds:
            os.close(fd)
        if answer == _REFUSED:
            raise LaunchError("entering the container", "", f"it does not belong to user {os.geteuid()}")
        raise NotListeningError("entering the container", "", "it does not run yet, or no longer")
    return Namespaces(tuple(fds[:-1]), fds[-1])


@contextlib.contextmanager
def _short_address(path: str) -> Iterator[str]:
    """Yield a short socket address for `path`, which may be longer than unix(7) allows."""
    dir_fd = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{dir_fd}/{os.path.basename(path)}"
    finally:
        os.close(dir_fd)
