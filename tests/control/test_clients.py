"""Who answers in a daemon's place, and who may ask: only root, the user who mounted, and the same user are believed."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.support.timing import limit
from unionfs.control import activity_client, client, listening, server
from unionfs.core.options import Options
from unionfs.core.union import Union
from unionfs.fuse import mounting, unmounting
from unionfs.fuse.traffic import Tally
from unionfs.syscalls import mountinfo, peers
from unionfs.syscalls.namespaces import set_process_name

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs processes of several users")

_CONNECTION: Final = 987654  # no device number is as high: the kernel's minor numbers of FUSE mounts are small
_STRANGER: Final = 61234
_OWNER: Final = 61235


@contextmanager
def _impostor(uid: int) -> Iterator[int]:
    """A process of that user that listens in the place of a daemon, and is called as one."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            set_process_name(mounting.process_name(_CONNECTION))
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(listening.address(_CONNECTION))
                server.listen()
                os.write(tell, b"r")
                while True:
                    client, _ = server.accept()
                    with client, suppress(OSError):  # of a client that does not believe us
                        client.recv(100)
                        client.sendall(json.dumps({"mountpoint": "/mnt", "pid": 1}).encode() + b"\n")
        finally:
            os._exit(0)
    try:
        assert os.read(ready, 1) == b"r"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(tell)


@needs_root
def test_a_stranger_that_bound_the_name_is_not_believed() -> None:
    with _impostor(_STRANGER) as pid:
        for owner in (None, 0, _OWNER):
            with pytest.raises(client.NoAnswerError, match=f"process {pid} of user {_STRANGER}, who did not mount"):
                list(client.ask(_CONNECTION, "stats", owner))
        assert list(client.ask(_CONNECTION, "stats", _STRANGER)) == [{"mountpoint": "/mnt", "pid": 1}]


@needs_root
def test_a_stranger_that_took_the_name_of_the_process_is_not_waited_for() -> None:
    name = mounting.process_name(_CONNECTION)
    with _impostor(_STRANGER) as pid, ExitStack() as stack:
        assert unmounting._open_processes((name,), None, stack) == {}
        assert unmounting._open_processes((name,), _OWNER, stack) == {}
        assert list(unmounting._open_processes((name,), _STRANGER, stack).values()) == [pid]


def test_users_without_a_mapping_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert peers.is_trusted(65534) is peers.is_mapped(65534)
    monkeypatch.setattr(peers, "is_mapped", lambda uid: uid == 0)
    assert not peers.is_trusted(65534)
    assert not peers.is_trusted(65534, 65534)
    assert peers.is_trusted(0)


def test_the_mount_table_has_the_owner_of_a_mount() -> None:
    line = b"40 1 0:77 / /mnt rw - fuse.unionfs a rw,user_id=1000,group_id=100,default_permissions\n"
    assert mountinfo._parse(line).user_id == 1000
    assert mountinfo._parse(b"40 1 0:77 / /mnt rw - tmpfs a rw,size=1k\n").user_id is None


def test_a_malformed_answer_of_a_daemon_is_an_error_in_one_line() -> None:
    for line in (b"\xff\n", b"[1]\n", b"{\n"):
        with pytest.raises(client.NoAnswerError, match="no JSON object"):
            client.parsed(line)


def _recorded() -> list[dict[str, object]]:
    with activity_client.record(_CONNECTION, None, 1.0) as recording:
        return list(recording.lines())


@pytest.mark.parametrize("ask", [lambda: list(client.ask(_CONNECTION, "activity")), _recorded], ids=["ask", "record"])
def test_a_question_that_a_daemon_has_not_read_is_asked_again(ask: Callable[[], list[dict[str, object]]]) -> None:
    """As when a mount has the number of one whose daemon is ending."""
    answers: list[dict[str, object]] = []
    asking = threading.Thread(target=lambda: answers.extend(ask()))
    with _listening() as ending:
        asking.start()
        assert select.select([ending], [], [], limit(10))[0]
        time.sleep(0.1)  # the question is sent
    with _listening() as server, server.accept()[0] as asked:
        assert json.loads(asked.recv(1000))["ask"] == "activity"
        asked.sendall(b'{"pid": 1}\n')
    asking.join()
    assert answers == [{"pid": 1}]


def test_a_daemon_whose_mount_has_ended_leaves_questions_to_the_next_one() -> None:
    checks: list[bool] = []

    def has_ended() -> bool:
        checks.append(len(checks) < 3)
        return checks[-1]

    with closing(Union(Options((os.fspath(Path(__file__).parent),)))) as union:
        reporter = server.Reporter(union, Tally(), "kernel", "/mnt", "", 0.0, has_ended=has_ended)
        fd = listening.open_listening(_CONNECTION)
        serving = threading.Thread(target=reporter.serve, args=(fd, _CONNECTION))
        serving.start()
        with pytest.raises(client.NoAnswerError, match="unknown question 'why'"):
            list(client.ask(_CONNECTION, "why"))
        assert checks == [True, True, True, False]
        checks.clear()
        listening.stop(fd)
        serving.join()
        os.close(fd)
        assert checks == [True]


def test_a_socket_that_was_stopped_refuses_clients_of_all_its_processes() -> None:
    fd = listening.open_listening(_CONNECTION)
    kept = os.dup(fd)
    with socket.socket(socket.AF_UNIX) as before, socket.socket(socket.AF_UNIX) as after:
        before.connect(listening.address(_CONNECTION))
        listening.stop(fd)
        with pytest.raises(ConnectionRefusedError):
            after.connect(listening.address(_CONNECTION))
        before.sendall(b"question")
        os.close(fd)
        os.close(kept)
        with pytest.raises(ConnectionResetError):
            before.recv(1)
    listening.stop(unbound := socket.socket(socket.AF_UNIX).detach())
    os.close(unbound)


def _listening() -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.settimeout(limit(10))
    server.bind(listening.address(_CONNECTION))
    server.listen()
    return server
