"""The parent of mounts is their keeper: when a daemon dies, it forks the next one."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.fuse.daemons import parent_of
from tests.mount_parent.callers import PATIENCE_S, Caller, caller_of, ends
from tests.support import chaos, machine
from tests.support.mountinfo import detach, mount_at
from tests.support.timing import limit
from tests.support.users import User
from unionfs.fuse import mounting

pytestmark = pytest.mark.skipif(machine.lacks_keeper() != "", reason=machine.lacks_keeper())

_PIDFD_GETFD = 438  # of all architectures


@pytest.fixture
def caller(scratch: Path, user: User, fuse_device: Path) -> Iterator[Caller]:
    """Root, then an ordinary user, with a parent."""
    user.own(scratch)
    with caller_of(user, scratch) as made:
        made.mount("first")
        made.parent()
        yield made


def _mount(caller: Caller, name: str) -> Path:
    """A union with an upper, a work directory and a log."""
    lower, mountpoint = caller.directories(name)
    made = [caller.directory / f"{name}.{part}" for part in ("upper", "work")]
    for directory in made:
        directory.mkdir()
    caller.user.own(*made)
    told = ("--upper", made[0], "--work", made[1], "--log", caller.directory / f"{name}.log")
    done = caller.unionfs("mount", "--lower", lower, *told, mountpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return mountpoint


def _keeper(caller: Caller, mountpoint: Path) -> dict[str, Any]:
    return cast(dict[str, Any], caller.stats(mountpoint)["keeper"])


def _name(caller: Caller, mountpoint: Path) -> str:
    return Path(f"/proc/{caller.stats(mountpoint)['pid']}/comm").read_text().strip()


def _wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + limit(PATIENCE_S)
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


def _kill(mount: str) -> None:
    before = chaos.wait_for_daemon(mount)
    os.kill(before, signal.SIGKILL)
    chaos.wait_for_daemon(mount, after=before)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing (Debian package strace)")
def test_the_descriptor_table_grows_before_there_is_a_second_thread(caller: Caller) -> None:
    """Else the kernel makes the daemon wait for 5 to 25 ms, and with it the first request."""
    trace = caller.directory / "trace"
    argv = ["strace", "-f", "-o", str(trace), "-e", "trace=fcntl,clone,clone3", "-p", str(caller.parent())]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as tracing:
        assert tracing.stderr is not None
        said = tracing.stderr.readline()
        if "attached" not in said:
            pytest.skip(f"the parent cannot be traced: {said}")
        pid = caller.stats(_mount(caller, "traced"))["pid"]
        tracing.send_signal(signal.SIGINT)
        tracing.wait(limit(60))
    calls = re.findall(rf"^{pid} +(fcntl\(0, F_DUPFD_CLOEXEC|clone3?\(.*CLONE_THREAD)", trace.read_text(), re.MULTILINE)
    assert [call.partition("(")[0] for call in calls[:2]] in (["fcntl", "clone3"], ["fcntl", "clone"])


_USE = """
import os, sys, time
opened = os.open("file", os.O_RDWR)  # copied up
removed = os.open("removed", os.O_RDWR | os.O_CREAT)
os.write(removed, b"removed")
os.unlink("removed")
print("open", flush=True)
for line in sys.stdin:
    print(os.pread(opened, 99, 0), os.pread(removed, 99, 0), sorted(os.listdir(".")), flush=True)
"""


def test_mounts_outlive_their_daemons(caller: Caller) -> None:
    """Each with what is open on it, and with all that its caller had. Of two mounts the other one notices nothing."""
    parent = caller.parent()
    mounts = [_mount(caller, name) for name in ("second", "third")]
    names = [_name(caller, mountpoint) for mountpoint in mounts]
    argv = ["sh", "-c", 'cd "$1"; exec python3 -c "$2"', "sh", os.fspath(mounts[0]), _USE]

    def seen() -> list[list[object]]:
        return [_seen(chaos.wait_for_daemon(name), at) for name, at in zip(names, mounts, strict=True)]

    with caller.user.popen(argv, env=caller.env) as program:
        assert program.stdout is not None
        assert program.stdin is not None
        assert program.stdout.readline() == "open\n"
        before, other = seen(), chaos.wait_for_daemon(names[1])
        for _ in range(3):
            _kill(names[0])
            program.stdin.write("look\n")
            program.stdin.flush()
            assert program.stdout.readline() == "b'second' b'removed' ['file']\n"
        for was, now in zip(before, seen(), strict=True):
            for one, two in zip(was, now, strict=True):
                assert one == two
        assert chaos.wait_for_daemon(names[1]) == other
        program.stdin.close()
        assert program.wait() == 0
    found = _keeper(caller, mounts[0])
    assert (found["pid"], found["alive"], found["replaced"]) == (parent, True, 3)
    assert [one["reason"] for one in found["replacements"]] == ["killed by signal 9 (Killed)"] * 3
    assert (caller.directory / "second.log").read_text().count("this one continues after") == 3
    for mountpoint, name in zip(mounts, names, strict=True):
        assert caller.unionfs("umount", mountpoint).returncode == 0
        assert chaos.daemon_of(name) is None


def test_a_mount_that_has_ended_before_its_daemon_is_let_go(caller: Caller) -> None:
    """Its number may be that of another mount soon, and its branches may be removed: no daemon is tried twice."""
    parent, mountpoint = caller.parent(), _mount(caller, "second")
    daemon = chaos.wait_for_daemon(_name(caller, mountpoint))
    os.kill(daemon, signal.SIGSTOP)
    device = _device(daemon)
    detach(mountpoint)
    _wait_until(lambda: mounting.has_ended(device))  # a new namespace may have a copy of the mount for a moment
    os.close(device)
    for part in ("upper", "work"):
        shutil.rmtree(caller.directory / f"second.{part}")
    os.kill(daemon, signal.SIGKILL)
    _wait_until(lambda: not any("second." in held for held in _descriptors(parent)))
    log = (caller.directory / "second.log").read_text()
    assert (log.count("the takeover fails"), log.count("no daemon can continue")) == (1, 0)
    assert caller.parent() == parent


def _device(daemon: int) -> int:
    """A copy of the daemon's descriptor of its connection (pidfd_getfd(2))."""
    (fd,) = (
        int(fd) for fd in os.listdir(f"/proc/{daemon}/fd") if os.readlink(f"/proc/{daemon}/fd/{fd}") == "/dev/fuse"
    )
    pidfd = os.pidfd_open(daemon)
    try:
        copy = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, pidfd, fd, 0)
        assert copy >= 0, os.strerror(ctypes.get_errno())
        return int(copy)
    finally:
        os.close(pidfd)


def _descriptors(pid: int) -> list[str]:
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


def _seen(daemon: int, own: Path) -> list[object]:
    """What a daemon has of its caller, and that it has nothing else."""
    process = Path(f"/proc/{daemon}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    told = ("Uid", "Gid", "Groups", "CapEff", "CapBnd", "SigIgn", "Cpus_allowed", "NoNewPrivs", "Seccomp")
    links = [os.readlink(process / name) for name in ("cwd", "root", "fd/0", "fd/1", "fd/2", "ns/net", "ns/mnt")]
    files = [(process / name).read_text() for name in ("limits", "oom_score_adj", "cgroup", "cmdline")]
    held = [os.readlink(fd) for fd in (process / "fd").iterdir()]
    others = [one for one in held if one.startswith(f"{own.parent}/") and not one.startswith(f"{own}.")]
    return [parent_of(daemon), [status[name] for name in told], links, files, others]


def test_mounts_outlive_the_parent_without_a_keeper(caller: Caller) -> None:
    mountpoint = _mount(caller, "second")
    assert _keeper(caller, mountpoint)["alive"]
    parent = caller.parent()
    os.kill(parent, signal.SIGKILL)
    assert ends(parent)
    log = caller.directory / "second.log"
    _wait_until(lambda: f"the keeper (process {parent}) was killed" in log.read_text())
    assert _keeper(caller, mountpoint)["alive"] is False
    assert caller.run("cat", mountpoint / "file").stdout == "second"
    assert caller.unionfs("umount", mountpoint).returncode == 0


def test_a_mount_that_none_can_continue_is_unmounted_and_others_go_on(caller: Caller) -> None:
    """In each daemon after the first, the takeover of that mount fails."""
    caller.end()
    (caller.directory / "sitecustomize.py").write_text(_BROKEN)
    broken = {"PYTHONPATH": f"{caller.directory}:{caller.user.env['PYTHONPATH']}", "UNIONFS_PURE": "1"}
    caller.user = replace(caller.user, env={**caller.user.env, **broken})
    caller.mount("another first")
    caller.parent()
    second, third = _mount(caller, "broken"), _mount(caller, "third")
    os.kill(chaos.wait_for_daemon(_name(caller, second)), signal.SIGKILL)
    _wait_until(lambda: mount_at(second) is None)
    said = (caller.directory / "broken.log").read_text()
    assert said.count("ZeroDivisionError") == 20
    assert "no daemon can continue (ended by an exception): the union is unmounted" in said
    _kill(_name(caller, third))
    assert caller.run("cat", third / "file").stdout == "third"
    assert (_keeper(caller, third)["pid"], _keeper(caller, third)["replaced"]) == (caller.parent(), 1)


_BROKEN = """
from unionfs.core import takeover
from unionfs.fuse import daemon_history
daemon_history._PAUSE_MOST_S = 0.01
real = takeover.take_over
def take_over(union):
    return 1 / 0 if "broken" in union.options.upper else real(union)
takeover.take_over = take_over
"""


def test_a_mount_for_which_no_process_can_be_started_ends_at_the_last_of_many_attempts(caller: Caller) -> None:
    """Five times it fails after the first death; after the second it always does. Others go on."""
    caller.end()
    (caller.directory / "sitecustomize.py").write_text(_NO_PROCESS)
    broken = {"PYTHONPATH": f"{caller.directory}:{caller.user.env['PYTHONPATH']}"}
    caller.user = replace(caller.user, env={**caller.user.env, **broken})
    caller.mount("another first")
    caller.parent()
    second, third = _mount(caller, "broken"), _mount(caller, "third")
    name = _name(caller, second)
    _kill(name)
    assert caller.run("cat", second / "file").stdout == "broken"
    os.kill(chaos.wait_for_daemon(name), signal.SIGKILL)
    log = caller.directory / "broken.log"
    _wait_until(lambda: "no other process can be started: no process): the mount ends" in log.read_text())
    _kill(_name(caller, third))
    assert caller.run("cat", third / "file").stdout == "third"
    assert (_keeper(caller, third)["pid"], _keeper(caller, third)["replaced"]) == (caller.parent(), 1)


_NO_PROCESS = """
import errno
from unionfs.fuse import daemon_history
from unionfs.mount_parent import kept

daemon_history._PAUSE_MOST_S = 0.01
fork, calls = kept.Child._fork, []

def _fork(child, given, *more):
    if b"broken" in given.values:
        calls.append(None)
        if len(calls) != 6:
            raise OSError(errno.EAGAIN, "no process")
    fork(child, given, *more)

kept.Child._fork = _fork
"""


def test_an_upgrade_gives_a_mount_a_keeper_of_its_own(caller: Caller) -> None:
    """The parent goes on to keep the others."""
    second, third = _mount(caller, "second"), _mount(caller, "third")
    assert caller.unionfs("upgrade", second).returncode == 0
    found = _keeper(caller, second)
    assert [one["reason"] for one in found["replacements"]] == ["a keeper of its own", "an upgrade"]
    assert (found["upgrades"], found["alive"], found["pid"] != caller.parent()) == (1, True, True)
    _kill(_name(caller, second))
    assert caller.run("cat", second / "file").stdout == "second"
    assert _keeper(caller, third)["pid"] == caller.parent()
    for mountpoint in (second, third):
        assert caller.unionfs("umount", mountpoint).returncode == 0
    assert ends(found["pid"])
