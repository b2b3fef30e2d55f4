"""A mount outlives its daemon: killed at any time, and no program on it sees an error.

The whole suite of this room runs under kills with $UNIONFS_TEST_CHAOS=50-500 (tests.support.chaos).
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.mounted import trees
from tests.mounted.agent import command
from tests.mounted.checking import fails, read, same, write
from tests.mounted.mounted_subject import MountedSubject
from tests.mounted.stands import kernel_subjects, unmounted
from tests.support import chaos, kernel_caches
from tests.support.timing import limit

_SUBJECTS = kernel_subjects("scattered")


@pytest.fixture(params=_SUBJECTS)
def stand(request: pytest.FixtureRequest, scratch: Path) -> Iterator[MountedSubject]:
    """A union of two lowers and an upper, with a keeper; as root and as an ordinary user."""
    with unmounted(request, scratch, request.param, lowers=2) as built:
        built.agent.call(trees.make, trees.parse("f=hello d/g=1 d/e/x=2 h1=link h2==h1"), built.lowers[0])
        built.agent.call(write, f"{built.lowers[0]}/big", b"z" * 300_000)
        built.agent.call(trees.make, trees.parse("low=beneath d/low=3"), built.lowers[1])
        built.mount()
        yield built


def _mount(stand: MountedSubject) -> str:
    return chaos.mount(f"{stand.base}/")


def kill_daemon(mount: str) -> None:
    """Kill the daemon of a mount, and wait until there is another one."""
    before = chaos.wait_for_daemon(mount)
    os.kill(before, signal.SIGKILL)
    chaos.wait_for_daemon(mount, after=before)


def _stats(stand: MountedSubject) -> dict[str, object]:
    done = stand.agent.call(command, [*stand.user.unionfs_cmd, "stats", "--json", str(stand.merged)])
    found: dict[str, object] = json.loads(done.stdout)
    return found


def _mount_with(stand: MountedSubject, scratch: Path, fault: str, *, is_pure: bool = True) -> Path:
    """Mount again, so that daemons and keeper begin with the program `fault`, in which "{path!r}" is a file that all
    may write to. Returns its path. `is_pure`: nothing is compiled, so that functions can be replaced."""
    stand.unmount()
    broken = scratch / "broken"
    broken.mkdir()
    deaths = broken / "deaths"
    deaths.touch()
    deaths.chmod(0o666)
    (broken / "sitecustomize.py").write_text(fault.replace("{path!r}", repr(str(deaths))))
    env = {"PYTHONPATH": f"{broken}:{stand.user.env['PYTHONPATH']}", "UNIONFS_LINGER": "0"}
    stand._env = {**env, "UNIONFS_PURE": "1"} if is_pure else env
    stand.mount()
    return deaths


def test_open_files_stay_open(stand: MountedSubject) -> None:
    mount = _mount(stand)
    # The agent's child kills the daemon: it runs as the daemon's user.
    stand.run(_use_across_a_death, mount)
    stand.unmount()


def _use_across_a_death(mount: str) -> None:
    use_across(partial(kill_daemon, mount))


def use_across(change_daemon: Callable[[], None]) -> None:
    """Use files, open before and without a name by now, mappings, locks and listings while the daemon is changed."""
    fds = {name: os.open(name, os.O_RDONLY) for name in ("f", "low", "d/e/x", "h1")}
    up = os.open("new", os.O_RDWR | os.O_CREAT)
    os.write(up, b"before")
    fcntl.flock(os.open("lock", os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
    gone_dir = os.open("d/e", os.O_RDONLY | os.O_DIRECTORY)
    listing = os.scandir("d")
    first = next(listing).name
    mapped = mmap.mmap(os.open("big", os.O_RDWR), 300_000)
    mapped[0:1] = b"A"
    os.unlink("low")  # a lower file without a copy
    os.unlink("new")
    os.unlink("d/e/x")
    os.rmdir("d/e")
    os.rename("d/g", "moved")
    os.link("f", "f2")
    number = os.stat("f").st_ino
    nameless = os.open(".", os.O_RDWR | os.O_TMPFILE, 0o600)
    os.write(nameless, b"nameless")
    for _ in range(3):
        change_daemon()
        same(os.pread(fds["low"], 99, 0), b"beneath")
        same(os.pread(fds["d/e/x"], 99, 0), b"2")
        same(os.pread(fds["f"], 99, 0), b"hello")
        same(os.pread(up, 99, 0), b"before")
        same(os.fstat(up).st_nlink, 0)
        same(os.pread(nameless, 99, 0), b"nameless")
        same(stat.S_ISDIR(os.fstat(gone_dir).st_mode), True)
        same(os.listdir(gone_dir), [])
        same((os.stat("f").st_ino, os.stat("f2").st_ino), (number, number))
        same(os.stat("f").st_nlink, 2)
        same(read("moved"), b"1")
        fails(errno.ENOENT, os.stat, "d/g")
        mapped[1:2] = b"B"
        mapped.flush()
        same(read("big")[:3], b"ABz")
    os.write(fds_up := os.open("h1", os.O_WRONLY), b"LINK")
    os.close(fds_up)
    change_daemon()
    same((read("h1"), read("h2"), os.pread(fds["h1"], 9, 0)), (b"LINK", b"LINK", b"LINK"))
    rest = [entry.name for entry in listing]
    assert {first, *rest} <= {"e", "g", "low"}, (first, rest)
    other = os.open("lock", os.O_RDWR)
    fails(errno.EWOULDBLOCK, fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_descriptor_table_is_large_from_the_start(stand: MountedSubject) -> None:
    # A table that has to grow stops a daemon, which has several threads by then, for 5 to 25 ms each time.
    mount = _mount(stand)
    for name in ("none", "neither"):
        assert not stand.run(os.path.lexists, name)  # the daemon answers
        assert _table_size(chaos.wait_for_daemon(mount)) == 4096
        kill_daemon(mount)
    stand.unmount()


def _table_size(pid: int) -> int:
    """The entries of the table of descriptors of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("FDSize:"))


def test_a_database_under_kills(stand: MountedSubject) -> None:
    killer = chaos.Killer(_mount(stand), "30-120").start()
    try:
        stand.run(transactions, timeout_s=120)
    finally:
        kills = killer.stop()
    assert kills > 0
    found = _stats(stand)["keeper"]
    assert isinstance(found, dict)
    assert found["alive"]
    assert found["replaced"] > kills // 2  # some kill a daemon that is dead already
    assert found["last_reason"] == "killed by signal 9 (Killed)"
    stand.unmount()


def transactions() -> None:
    for mode in ("wal", "delete"):
        database = sqlite3.connect(f"{mode}.db", isolation_level=None)
        database.execute(f"pragma journal_mode={mode}")
        database.execute("create table t (n integer primary key, text text)")
        for number in range(150):
            database.execute("insert into t values (?, ?)", (number, "x" * (number % 50) * 100))
        same(database.execute("pragma integrity_check").fetchone(), ("ok",))
        same(database.execute("select count(*), max(n) from t").fetchone(), (150, 149))
        database.close()


def test_the_daemon_continues_if_the_keeper_is_killed(stand: MountedSubject) -> None:
    stand.unmount()
    stand._env = {"UNIONFS_LINGER": "0"}  # a parent of mounts may be the keeper of others
    stand.mount()
    keeper = chaos.keeper_of(_mount(stand))
    stand.agent.call(os.kill, keeper, signal.SIGKILL)
    deadline = time.monotonic() + limit(10)
    while "the keeper" not in stand.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stand.run(write, "f", b"changed")
    found = _stats(stand)["keeper"]
    assert isinstance(found, dict)
    assert found["alive"] is False
    stand.unmount()


def test_without_a_keeper_stats_show_none(stand: MountedSubject) -> None:
    stand.unmount()
    stand._keeper = False
    stand.mount()
    assert _stats(stand)["keeper"] is None
    stand.unmount()


def test_an_exception_that_escapes_is_a_death(stand: MountedSubject, scratch: Path) -> None:
    """A request that ends three daemons in a row is answered EIO, and named in the log."""
    _mount_with(stand, scratch, _BROKEN)
    stand.run(_meet_the_fault)
    log = stand.log.read_text()
    assert log.count("this one continues after") == 3
    assert "READLINK is answered EIO" in log
    stand.unmount()


_BROKEN = """
from unionfs.core import union

class Escaping(BaseException):
    pass

def readlink(self, nodeid):
    raise Escaping

union.Union.readlink = readlink
"""


def _meet_the_fault() -> None:
    os.symlink("target", "link")
    fails(errno.EIO, os.readlink, "link")
    same(read("f"), b"hello")


_TAKEOVER = """
from unionfs.core import takeover
from unionfs.fuse import daemon_history

daemon_history._PAUSE_MOST_S = 0.01

def take_over(union):
    raise ZeroDivisionError

takeover.take_over = take_over
"""
_FIRST_MOMENT = """
from unionfs.fuse import daemon_history
from unionfs.fuse.kernel import server

daemon_history._PAUSE_MOST_S = 0.01

def begin(engine):
    if engine._dispatcher.continues:
        raise ZeroDivisionError

server._Engine.begin = begin
"""


@pytest.mark.parametrize("fault", [_TAKEOVER, _FIRST_MOMENT], ids=["takeover", "first moment"])
def test_daemons_that_fail_before_their_first_request_end_the_mount(
    stand: MountedSubject, scratch: Path, fault: str
) -> None:
    _mount_with(stand, scratch, fault)
    stand.agent.call(os.kill, chaos.wait_for_daemon(_mount(stand)), signal.SIGKILL)
    assert stand.wait_for_daemons() == {}
    assert not stand.is_mounted()
    assert "no daemon can continue" in stand.log.read_text()


_KILLED = """
import os, signal
from unionfs.core import takeover, union

readlink, take_over = union.Union.readlink, takeover.take_over

def killed(function, first, last):
    def call(*arguments):
        with open({path!r}, "ab") as file:
            if first <= file.tell() < last:
                file.write(b".")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return call

union.Union.readlink = killed(readlink, 0, 1)
takeover.take_over = killed(take_over, 1, 26)
"""


def test_daemons_that_are_killed_in_their_takeovers_are_replaced_without_an_error(
    stand: MountedSubject, scratch: Path
) -> None:
    """25 in a row, while a program waits for the answer to a request."""
    deaths = _mount_with(stand, scratch, _KILLED)
    stand.run(_read_a_link)
    assert deaths.stat().st_size == 26
    stand.unmount()


def _read_a_link() -> None:
    os.symlink("target", "link")
    same(os.readlink("link"), "target")


_BEFORE_THE_ANSWER = """
import os, signal
from unionfs.fuse.kernel import turn

answer = turn.answer

def killed(device, reply):
    opcode = int.from_bytes(device.request[4:8], "little")
    with open({path!r}, "a+") as file:
        file.seek(0)
        if opcode in (1, 8, 9, 44) and str(opcode) not in file.read().split():  # LOOKUP, MKNOD, MKDIR, READDIRPLUS
            file.write(str(opcode) + " ")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    answer(device, reply)

turn.answer = killed
"""


def test_what_a_daemon_has_counted_and_not_answered_is_not_counted_twice(stand: MountedSubject, scratch: Path) -> None:
    deaths = _mount_with(stand, scratch, _BEFORE_THE_ANSWER)
    stand.run(_look_up)
    assert sorted(deaths.read_text().split()) == ["1", "44", "8", "9"]
    deadline = time.monotonic() + limit(20)
    while (nodes := _stats(stand)["nodes"]) != 1 and time.monotonic() < deadline:
        kernel_caches.drop("2")
    assert nodes == 1  # the kernel has forgotten all others
    stand.unmount()


def _look_up() -> None:
    same(os.lstat("f").st_size, 5)
    same(sorted(os.listdir("d")), ["e", "g", "low"])
    os.mkdir("made")
    os.mknod("made/file")


_NO_PROCESS = """
import errno
from unionfs.fuse import daemon_history, keeper

daemon_history._PAUSE_MOST_S = 0.01
fork, calls = keeper._fork, []

def _fork(history):
    calls.append(None)
    if len(calls) in (1, 7):
        return fork(history)
    raise OSError(errno.EAGAIN, "no process")

keeper._fork = _fork
"""


def test_a_keeper_that_can_start_no_process_tries_again_and_unmounts_in_the_end(
    stand: MountedSubject, scratch: Path
) -> None:
    """Five times it fails after the first death; after the second it always does."""
    _mount_with(stand, scratch, _NO_PROCESS, is_pure=False)
    kill_daemon(_mount(stand))
    stand.run(_meet_no_fault)
    stand.agent.call(os.kill, chaos.wait_for_daemon(_mount(stand)), signal.SIGKILL)
    assert stand.wait_for_daemons() == {}
    assert not stand.is_mounted()
    assert "and no other process can be started: no process): the union is unmounted" in stand.log.read_text()


def _meet_no_fault() -> None:
    same(read("f"), b"hello")


def test_a_daemon_without_descriptors_answers_requests_for_statistics_later(stand: MountedSubject) -> None:
    stand.unmount()
    stand._env = {"UNIONFS_LINGER": "0"}  # a parent of mounts has imported what that needs
    stand.mount()
    kill_daemon(_mount(stand))
    daemon = chaos.wait_for_daemon(_mount(stand))
    stand.agent.call(_limit, daemon, 0)
    log, deadline = stand.log, time.monotonic() + limit(20)
    while "get no answer yet" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    stand.agent.call(_limit, daemon, 1000)
    assert _stats(stand)["pid"] == daemon
    stand.unmount()


def _limit(daemon: int, most: int) -> None:
    hard = resource.prlimit(daemon, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(daemon, resource.RLIMIT_NOFILE, (most, hard))
