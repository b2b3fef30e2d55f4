"""Who gets a container's namespaces, and whose answer is believed."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from unionfs.launcher import namespace_socket
from unionfs.launcher.errors import LaunchError
from unionfs.launcher.namespace_socket import NamespaceServer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs processes of several users")

_STRANGER: Final = 61234


def _as_user(uid: int, act: Callable[[], int]) -> int:
    """What `act` returns, in a process of that user."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            status = act()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _ask(path: str) -> int:
    """0 when namespaces came, else 1."""
    try:
        namespace_socket.receive(path).close()
    except LaunchError:
        return 1
    return 0


@pytest.mark.parametrize(("uid", "expected"), [(0, 0), (_STRANGER, 1)])
def test_namespaces_go_to_root_and_the_same_user_only(scratch: Path, uid: int, expected: int) -> None:
    path = str(scratch / "namespaces")
    server = NamespaceServer(path)
    os.chmod(path, 0o777)
    own = [os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC) for _ in range(8)]
    server.send_all(tuple(own))
    server.receive_from_init()
    pid = os.fork()
    if pid == 0:
        os.set_blocking(server.fileno(), True)
        server.serve()
        os._exit(0)
    try:
        assert _as_user(uid, lambda: _ask(path)) == expected
    finally:
        os.kill(pid, signal.SIGKILL)  # it waits for ever if no connection came
        os.waitpid(pid, 0)
        server.close()
        for fd in own:
            os.close(fd)


def test_a_stranger_that_answers_is_not_believed(tmp_path: Path) -> None:
    """It sends root the namespaces of the machine, so that root would stay root and see the stranger's files."""
    path = str(tmp_path / "namespaces")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)

        def answer() -> int:
            server.listen()
            os.write(write_fd, b"r")
            client, _ = server.accept()
            fds = [os.open("/proc/self/ns/user", os.O_RDONLY) for _ in range(8)]
            socket.send_fds(client, [b"n"], fds)
            client.recv(1)
            return 0

        read_fd, write_fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            os._exit(_as_user(_STRANGER, answer))
        assert os.read(read_fd, 1) == b"r"
        with pytest.raises(LaunchError, match=f"of user {_STRANGER} listens at its socket instead of its monitor"):
            namespace_socket.receive(path)
        os.waitpid(pid, 0)
        os.close(read_fd)
        os.close(write_fd)
