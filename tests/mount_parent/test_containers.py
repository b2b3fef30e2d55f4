"""The daemons of containers are forked by a parent of mounts, and are as those that the containers fork themselves."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mount_parent.callers import PATIENCE_S, Caller, caller_of, ends
from tests.support import chaos, process
from tests.support.timing import limit
from tests.support.users import User

_ALONE = {"UNIONFS_LINGER": "0"}


@pytest.fixture
def caller(scratch: Path, user: User, fuse_device: Path) -> Iterator[Caller]:
    """Root, then an ordinary user, with containers of this test alone."""
    user.own(scratch)
    with caller_of(user, scratch) as made:
        yield made


@dataclass
class Running:
    """A container whose command has begun."""

    front: subprocess.Popen[str]
    launcher: int  # the parent of the monitor: the front, or a process that the parent of mounts has forked for it
    monitor: int
    daemons: list[int]  # or the keepers that they have beside them

    @property
    def daemon(self) -> int:
        (found,) = self.daemons
        return found

    def started_by(self) -> str:
        """The name of the process that has forked the daemon."""
        parent = Path(f"/proc/{self.daemon}/stat").read_text().rpartition(")")[2].split()[1]
        return Path(f"/proc/{parent}/comm").read_text().strip()


def _unionfs(caller: Caller, *argv: str | Path) -> list[str]:
    return [*caller.user.unionfs_cmd, *(os.fspath(word) for word in argv)]


def _store(caller: Caller) -> dict[str, str]:
    return {"XDG_DATA_HOME": f"{caller.directory}/store"}


@contextmanager
def _container(caller: Caller, *flags: str, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """A container on a view of this machine. It has ended afterwards."""
    argv = _unionfs(caller, "run", "--rm", "-i", *flags, "/", "sh", "-c", "echo ready; read line")
    front = caller.user.popen(argv, env={**caller.env, **_store(caller), **(env or {})})
    try:
        assert front.stdout is not None
        assert front.stdout.readline() == "ready\n"
        launcher = next((pid for pid in _held(front.pid) if _name(pid) == "unionfs"), front.pid)
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        (monitor,) = (int(pid) for pid in children if _name(pid) == "unionfs-monitor")
        daemons = [pid for pid in _held(monitor) if _name(pid).startswith(("unionfs:", "unionfs-k:"))]
        yield Running(front, launcher, monitor, daemons)
    finally:
        _, said = front.communicate("\n", timeout=limit(process.DEFAULT_TIMEOUT_S))
        print(said, file=sys.stderr)


def _name(pid: int | str) -> str:
    """The name of the process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _held(pid: int) -> list[int]:
    """The processes of which `pid` has a pidfd."""
    lines: list[str] = []
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            lines += info.read_text().splitlines()
    return [int(line[4:]) for line in lines if line.startswith("Pid:")]


def _run(caller: Caller, *argv: str, env: Mapping[str, str] | None = None) -> None:
    done = caller.unionfs("run", "--rm", "/", *(argv or ("true",)), env={**_store(caller), **(env or {})})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _leave_parent(caller: Caller) -> int:
    """Have the first container leave a parent behind, and return that, once a second one has made it import all."""
    _run(caller)
    found = _parent_of(caller)
    _run(caller)
    return found


def _parent_of(caller: Caller) -> int:
    """The parent, which a container leaves behind beside its command: it may take a moment."""
    until = time.monotonic() + limit(PATIENCE_S)
    while not caller.parents():
        assert time.monotonic() < until
    return caller.parent()


def test_the_first_container_leaves_a_parent_that_forks_the_daemons_of_further_ones(caller: Caller) -> None:
    with _container(caller) as first:
        assert first.started_by() == "unionfs-monitor"
        parent = _parent_of(caller)
        with _container(caller) as second:
            assert second.started_by() == "unionfs-parent"
    assert caller.parents() == [parent]
    assert ends(first.daemon)
    assert ends(second.daemon)


def test_a_parent_that_a_container_has_left_makes_mounts_too(caller: Caller) -> None:
    parent = _leave_parent(caller)
    assert caller.started_by(caller.mount("first")) == f"parent {parent}"


def test_each_union_of_a_container_is_forked_by_it(caller: Caller) -> None:
    _leave_parent(caller)
    lower, _ = caller.directories("volume")
    with _container(caller, "-v", f"{lower}:/mnt:O") as running:
        assert len(running.daemons) == 2
        parents = {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] for pid in running.daemons}
        assert parents == {str(caller.parent())}


def test_a_daemon_is_as_one_that_the_monitor_has_forked(caller: Caller) -> None:
    _leave_parent(caller)
    seen = []
    for env in (_ALONE, {}):
        with _container(caller, env=env) as running:
            assert running.started_by() == ("unionfs-monitor" if env else "unionfs-parent")
            served = _name(running.daemon).replace("unionfs-k:", "unionfs:")
            daemon, monitor = Path(f"/proc/{chaos.wait_for_daemon(served)}"), Path(f"/proc/{running.monitor}")
            status = dict(line.split(":", 1) for line in (daemon / "status").read_text().splitlines())
            told = ["Umask", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"]
            told += ["Seccomp", "SigBlk", "SigIgn", "SigCgt", "Cpus_allowed"]
            shared = [
                kind
                for kind in ("user", "cgroup", "pid", "ipc", "uts", "net", "mnt")
                if os.readlink(daemon / "ns" / kind) == os.readlink(monitor / "ns" / kind)
            ]
            links = [os.readlink(daemon / name) for name in ("cwd", "root", "fd/0", "fd/1")]
            files = [(daemon / name).read_text() for name in ("limits", "oom_score_adj", "cgroup", "uid_map")]
            log = os.readlink(daemon / "fd/2").endswith("/daemon.log")
            seen.append(([status[name] for name in told], shared, links, files, log))
    assert seen[0] == seen[1]
    assert {"user", "cgroup", "pid"} <= {*seen[1][1]}


def test_the_container_ends_when_its_monitor_is_killed(caller: Caller) -> None:
    _leave_parent(caller)
    with _container(caller) as running:
        assert running.started_by() == "unionfs-parent"
        os.kill(running.monitor, signal.SIGKILL)
        assert ends(running.daemon)
    assert running.front.returncode == 125


def test_the_container_outlives_its_daemon(caller: Caller) -> None:
    """The parent enters its namespaces again. When the container has ended, no daemon is left."""
    _leave_parent(caller)
    with _container(caller) as running:
        assert running.started_by() == "unionfs-parent"
        mount = _name(running.daemon)
        now = running.daemon
        before = [os.readlink(f"/proc/{now}/ns/{kind}") for kind in ("user", "mnt", "cgroup")]
        for _ in range(3):
            os.kill(now, signal.SIGKILL)
            now = chaos.wait_for_daemon(mount, after=now)
            assert [os.readlink(f"/proc/{now}/ns/{kind}") for kind in ("user", "mnt", "cgroup")] == before
    assert running.front.returncode == 0
    assert ends(now)


def test_no_daemon_is_left_when_the_files_of_the_container_cannot_be_written(caller: Caller) -> None:
    """They are written while the daemon starts."""
    parent = _leave_parent(caller)
    lower, _ = caller.directories("lower")
    made = caller.unionfs("create", "--lower", lower, "true", env=_store(caller))
    directory = caller.directory / "store/unionfs/containers" / made.stdout.strip()
    (directory / "etc").write_text("not a directory")
    done = caller.unionfs("start", made.stdout.strip(), env=_store(caller))
    assert done.returncode == 1
    assert f"preparing the container failed: {directory}/etc: {os.strerror(errno.EEXIST)}" in done.stderr
    until = time.monotonic() + limit(PATIENCE_S)
    while Path(f"/proc/{parent}/task/{parent}/children").read_text():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("killed", ["front", "launcher"])
def test_nothing_is_left_when_the_front_or_its_launcher_is_killed(caller: Caller, killed: str) -> None:
    _leave_parent(caller)
    with _container(caller) as running:
        assert running.started_by() == "unionfs-parent"
        os.kill(running.front.pid if killed == "front" else running.launcher, signal.SIGKILL)
        assert ends(running.daemon)
        assert ends(running.monitor)
        assert ends(running.launcher)
    assert running.front.returncode == (-signal.SIGKILL if killed == "front" else 125)
    assert caller.unionfs("ps", "-aq", env=_store(caller)).stdout == ""


def test_a_container_outlives_the_parent(caller: Caller) -> None:
    parent = _leave_parent(caller)
    with _container(caller) as running:
        assert running.started_by() == "unionfs-parent"
        os.kill(parent, signal.SIGKILL)
        assert ends(parent)
    assert running.front.returncode == 0
    assert ends(running.daemon)
    assert _leave_parent(caller) != parent


def test_with_a_linger_of_0_no_parent_is_started_or_asked(caller: Caller) -> None:
    _run(caller, env=_ALONE)
    assert caller.parents() == []
    _leave_parent(caller)
    with _container(caller, env=_ALONE) as running:
        assert running.started_by() == "unionfs-monitor"


def test_a_parent_that_does_not_answer_is_not_waited_for(caller: Caller) -> None:
    parent = _leave_parent(caller)
    os.kill(parent, signal.SIGSTOP)
    try:
        with _container(caller) as running:
            assert running.started_by() == "unionfs-monitor"
    finally:
        os.kill(parent, signal.SIGCONT)


_REACH = """
import socket, sys
end = socket.socket(socket.AF_UNIX)
end.connect(bytes.fromhex(sys.argv[1]))
print(end.recv(100))
"""


def test_a_parent_refuses_a_process_in_a_container(caller: Caller) -> None:
    """It finds the socket, and differs in its namespaces."""
    parent, address = _leave_parent(caller), caller.address().hex()
    words = ("run", "--rm", "/", sys.executable, "-c", _REACH, address)
    done = caller.unionfs(*words, env=_store(caller))
    assert (done.stdout, done.stderr) == ("b''\n", "")
    assert caller.parents() == [parent]


def test_no_connection_to_the_parent_is_left_while_a_container_runs(caller: Caller) -> None:
    """Of all sockets that have its name, two are there: the one that listens, and the launcher's end of its connection
    to the front, which neither the container nor the daemon has."""
    _leave_parent(caller)
    name = caller.address().replace(b"\0", b"@", 1).decode()
    with _container(caller) as running:
        assert running.started_by() == "unionfs-parent"
        assert running.launcher != running.front.pid
        rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
        states = {row[3]: row[6] for row in rows if row[-1] == name}
        assert sorted(states) == ["00000000", "00010000"]
        assert _has_socket(running.launcher, states["00000000"])
        inside = map(int, Path(f"/proc/{running.monitor}/task/{running.monitor}/children").read_text().split())
        assert not any(_has_socket(pid, states["00000000"]) for pid in (*inside, *running.daemons))


def _has_socket(pid: int, inode: str) -> bool:
    return any(os.readlink(fd) == f"socket:[{inode}]" for fd in Path(f"/proc/{pid}/fd").iterdir())


def test_a_container_is_as_one_that_its_front_has_started(caller: Caller) -> None:
    """The process that a parent has forked has the front's environment, limits, priority and ignored signals."""
    _leave_parent(caller)
    script = (
        "pwd; env | sort; ulimit -n; ulimit -c; umask; nice; grep -E 'Sig(Blk|Ign|Cgt)|Groups|Cpus' /proc/self/status"
    )
    before = "ulimit -n 333; ulimit -c 0; umask 027; trap '' HUP USR2; exec nice -n 3"
    seen = []
    for env in (_ALONE, {}):
        argv = [
            "sh",
            "-c",
            f'{before} "$@"',
            "sh",
            *_unionfs(caller, "run", "--rm", "-h", "h", "/", "sh", "-c", script),
        ]
        done = caller.user.run(argv, env={**caller.env, **_store(caller), **env})
        seen.append((done.stdout, done.stderr))
    assert seen[0] == seen[1]
    assert "333" in seen[1][0]
    assert caller.unionfs("ps", "-aq", env=_store(caller)).stdout == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGXFSZ])
def test_signals_of_the_front_reach_the_command(ordinary: Caller, number: signal.Signals) -> None:
    ordinary.user.own(ordinary.directory)
    _leave_parent(ordinary)
    script = "trap 'echo told; exit 9' TERM INT USR2 XFSZ; echo ready; while :; do sleep 0.1; done"
    front = ordinary.user.popen(
        _unionfs(ordinary, "run", "--rm", "/", "sh", "-c", script), env={**ordinary.env, **_store(ordinary)}
    )
    assert front.stdout is not None
    assert front.stdout.readline() == "ready\n"
    assert any(_name(pid) == "unionfs" for pid in _held(front.pid))
    front.send_signal(number)
    assert front.communicate(timeout=limit(PATIENCE_S)) == ("told\n", "")
    assert front.returncode == 9


_WITHOUT_IDS = """
set -e
mount --bind /dev/null /etc/subuid
"$@" true
while ! grep -q "$PARENT" /proc/net/unix; do :; done
"$@" sh -c 'chown 5:6 /etc/hostname; stat -c %u:%g /etc/hostname'
"""


def test_a_daemon_of_a_container_with_one_id_translates_owners(ordinary: Caller) -> None:
    """As the monitor's namespace has it: the translation goes to the parent's process."""
    ordinary.user.own(ordinary.directory)
    ordinary.linger_s = "3"  # it is in another mount namespace, where nothing else would end it
    user, env = ordinary.user, {**ordinary.env, **_store(ordinary)}
    argv = [*user.prefix, "env", f"PATH={os.environ['PATH']}", *user.unionfs_cmd, "run", "/"]
    shell = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _WITHOUT_IDS, "sh", *argv]
    told = {**user.env, **env, "PARENT": f"@unionfs-parent/{user.uid}/"}
    done = subprocess.run(
        shell, check=False, env=told, cwd=user.home, capture_output=True, text=True, timeout=limit(60)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "5:6\n"
    assert "one user id only" in done.stderr
    logs = (ordinary.directory / "store/unionfs/containers").glob("*/daemon.log")
    assert sorted("started by parent" in log.read_text() for log in logs) == [False, True]


@pytest.mark.parametrize("linger", ["1", "0"])
def test_with_a_fault_handler_of_the_interpreter(caller: Caller, linger: str) -> None:
    """Its signals are no handlers of Python's: they cannot be set again, and are not forwarded."""
    env = {**caller.env, **_store(caller), "UNIONFS_LINGER": linger, "PYTHONFAULTHANDLER": "1"}
    for _ in range(2):
        caller.user.run(_unionfs(caller, "run", "--rm", "/", "true"), env=env)
