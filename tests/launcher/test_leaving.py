"""Any process of a container ends first, in any way: no process and no mount is left, and the record is right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.daemons import parent_of
from tests.launcher.conftest import containers, processes, wait_until_gone
from tests.mount_parent.callers import caller_of
from tests.support import chaos, process, share
from tests.support.marks import as_ordinary_user
from tests.support.timing import limit
from tests.support.users import User
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = pytest.mark.transport(DEFAULT_TRANSPORT)

_READY = "touch /x/ready; "
_SECONDS = f"76543.{os.getpid()}"  # of this run alone: others may run beside it
_COMMAND = f"{_READY}sleep {_SECONDS} & sleep {_SECONDS}"


class Running:
    """A container whose command has begun, and its processes by their part."""

    def __init__(self, front: subprocess.Popen[str], user: User) -> None:
        self.front = front
        found = processes(user)
        self.monitor = next(pid for pid, name in found.items() if name == "unionfs-monitor")
        self.init = next(pid for pid, name in found.items() if name == "unionfs-init")
        (self.daemon,) = (pid for pid, name in found.items() if name.startswith("unionfs:"))

    def forked_by(self) -> str:
        """The name of the process that has forked the daemon, or the keeper that it has beside it."""
        parent = parent_of(self.daemon)
        if (name := Path(f"/proc/{parent}/comm").read_text().strip()).startswith("unionfs-k:"):
            name = Path(f"/proc/{parent_of(parent)}/comm").read_text().strip()
        return name

    def end(self) -> tuple[int, str]:
        """Wait until the command has ended: exit code, and what was said on stderr."""
        _, said = self.front.communicate(timeout=limit(process.DEFAULT_TIMEOUT_S))
        return self.front.returncode, said


@pytest.fixture
def flags(user: User, scratch: Path) -> Path:
    """A directory that the container sees as /x."""
    user.own(scratch)
    return scratch


@pytest.fixture
def parent(user: User, scratch: Path, debian: Path) -> Iterator[dict[str, str]]:
    """The environment of containers whose daemons a parent of mounts forks."""
    with caller_of(user, scratch) as caller:
        container = [*user.unionfs_cmd, "run", "--rm", os.fspath(debian), "true"]
        user.run(container, env=caller.env)
        deadline = time.monotonic() + limit(process.DEFAULT_TIMEOUT_S)
        while not caller.parents():
            assert time.monotonic() < deadline
        user.run(container, env=caller.env)  # a parent imports what it needs when its first client comes
        yield caller.env


@pytest.fixture(params=["kept", "removed"])
def running(request: pytest.FixtureRequest, user: User, debian: Path, flags: Path, tidy: None) -> Iterator[Running]:
    """A container that would run for a day: one that is kept, whose daemon a parent of mounts has forked, or one that
    is removed, which has forked its daemon itself."""
    how, env = ["--rm"], {"UNIONFS_LINGER": "0"}
    if request.param == "kept":
        how, env = ["--name", "kept"], request.getfixturevalue("parent")
    argv = [*user.unionfs_cmd, "run", *how, "-v", f"{flags}:/x", os.fspath(debian), "sh", "-c", _COMMAND]
    front = user.popen(argv, env={**user.env, **env})
    try:
        _wait_for(flags / "ready", front)
        found = Running(front, user)
        assert found.forked_by() == ("unionfs-parent" if request.param == "kept" else "unionfs-monitor")
        yield found
        assert wait_until_gone(user) == {}
        assert _sleepers() == []
        if request.param == "kept":
            user.unionfs("rm", "kept")
        assert containers(user) == []
    finally:
        process.kill_group(front)
        front.communicate()
        wait_until_gone(user)
        for directory in containers(user):  # of a test that failed: the next one begins with none
            user.unionfs("rm", "--force", directory.name, check=False)


@as_ordinary_user
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_for_the_command(running: Running, number: signal.Signals) -> None:
    running.front.send_signal(number)
    code, said = running.end()
    assert (code, said) == (128 + number, "")


def test_the_launching_process_is_killed(running: Running, user: User) -> None:
    running.front.kill()
    assert running.end()[0] == -signal.SIGKILL
    assert wait_until_gone(user) == {}
    for record in _records(user):
        assert (record["status"], record["exit_code"]) == ("exited", 137)


def test_the_monitor_is_killed(running: Running, user: User) -> None:
    os.kill(running.monitor, signal.SIGKILL)
    code, said = running.end()
    assert (code, "its monitor was killed by signal 9" in said) == (125, True)
    for record in _records(user):
        assert (record["status"], record["exit_code"]) == ("exited", 125)


def test_both_are_killed(running: Running, user: User) -> None:
    os.kill(running.monitor, signal.SIGSTOP)  # or it may have written down the end before it is killed itself
    os.kill(running.front.pid, signal.SIGKILL)
    os.kill(running.monitor, signal.SIGKILL)
    running.end()
    assert wait_until_gone(user) == {}
    # Nobody was left who could have written down the end, or removed the container; but nobody is misled.
    told = json.loads(user.unionfs("ps", "-a", "--json").stdout)
    assert [(one["status"], one["exit_code"]) for one in told] == [("exited", None)]
    if told[0]["name"] != "kept":
        user.unionfs("rm", told[0]["name"])


def test_init_is_killed(running: Running) -> None:
    os.kill(running.init, signal.SIGKILL)
    assert running.end() == (137, "")


def test_the_daemon_is_killed(running: Running) -> None:
    mount = Path(f"/proc/{running.daemon}/comm").read_text().strip()
    os.kill(running.daemon, signal.SIGKILL)
    chaos.wait_for_daemon(mount, after=running.daemon)
    os.kill(running.init, signal.SIGKILL)
    assert running.end() == (137, "")


def test_the_keeper_of_the_daemon_is_killed(running: Running) -> None:
    """The container goes on until its daemon ends."""
    os.kill(parent_of(running.daemon), signal.SIGKILL)
    time.sleep(0.1)
    assert running.front.poll() is None
    os.kill(running.daemon, signal.SIGKILL)
    code, said = running.end()
    assert (code, "the daemon of its root filesystem ended" in said) == (125, True)


def test_the_container_cannot_end_the_daemon(running: Running) -> None:
    # It is in another pid namespace; what is there to be seen, other tests show.
    inside = os.readlink(f"/proc/{running.init}/ns/pid")
    assert os.readlink(f"/proc/{running.daemon}/ns/pid") == os.readlink("/proc/self/ns/pid") != inside
    running.front.terminate()
    running.end()


@as_ordinary_user
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ended_at_any_moment(user: User, debian: Path, flags: Path, tidy: None, number: signal.Signals) -> None:
    ended = set()
    for delay_ms in share.of((*range(40, 400, 40), *range(400, 1000, 150))):
        front = user.popen([*user.unionfs_cmd, "run", "--rm", "-v", f"{flags}:/x", debian, "sh", "-c", _COMMAND])
        time.sleep(delay_ms / 1000)
        front.send_signal(number)
        try:
            _, said = front.communicate(timeout=limit(process.DEFAULT_TIMEOUT_S))
        except subprocess.TimeoutExpired:
            process.kill_group(front)  # or the tests that follow would find it
            raise
        ended.add(front.returncode)
        assert wait_until_gone(user) == {}, f"after {delay_ms} ms"
        assert _sleepers() == [], f"after {delay_ms} ms"
        if number == signal.SIGINT and (flags / "ready").exists():
            assert (front.returncode, said, containers(user)) == (130, "", []), f"after {delay_ms} ms"
        for directory in containers(user):
            user.unionfs("rm", directory.name)
    assert ended <= ({-signal.SIGKILL} if number == signal.SIGKILL else {130, 1, -signal.SIGINT})


@as_ordinary_user
@pytest.mark.parametrize("limit", range(8, 40, 4))
def test_too_few_descriptors_at_any_point(user: User, debian: Path, tidy: None, limit: int) -> None:
    command = [*user.unionfs_cmd, "run", "--rm", os.fspath(debian), "true"]
    ended = user.run(["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command], check=False)
    assert ended.returncode in (0, 125, 126, 127), ended.stderr  # 127: the dynamic loader's, of the command itself
    assert (ended.returncode != 0) == any(word in ended.stderr for word in ("Too many open files", "Error 24"))
    assert containers(user) == []


def _records(user: User) -> list[dict[str, object]]:
    return [json.loads((directory / "container.json").read_text())["state"] for directory in containers(user)]


def _wait_for(path: Path, front: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + limit(process.DEFAULT_TIMEOUT_S)
    while not path.exists():
        assert front.poll() is None, front.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _sleepers() -> list[str]:
    """What is left of the command."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if command == f"sleep\0{_SECONDS}\0".encode():
            found.append(directory.name)
    return found
