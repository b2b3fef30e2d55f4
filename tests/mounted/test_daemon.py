"""The daemon's life: bugs in it, its death, many branches, several of it on one upper, and its leaving.

What must never happen: a hang, a process left behind, data lost that was written, a mount that cannot be removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.mounted import trees
from tests.mounted.agent import command
from tests.mounted.checking import fails, names, read, same, write
from tests.mounted.mounted_subject import MountedSubject
from tests.mounted.subjects import OURS, Subject, unavailable
from tests.support.timing import limit
from tests.support.users import User

_BROKEN = '''
"""Loaded by the interpreter at its start: readlink has a bug, and so has the removal of one name."""
from unionfs.core import union

def readlink(self, nodeid):
    raise ZeroDivisionError("a bug in readlink")

def unlink(self, parent, name, unlink=union.Union.unlink):
    if name == b"cursed":
        return {}["a bug in unlink"]
    return unlink(self, parent, name)

union.Union.readlink = readlink
union.Union.unlink = unlink
'''


def _subjects(*whos: str) -> list[ParameterSet]:
    made = [Subject(transport, who, "plain") for transport in OURS for who in whos]
    return [
        pytest.param(one, id=str(one), marks=[pytest.mark.transport(one.transport), pytest.mark.runs_as(one.runs_as)])
        for one in made
    ]


@pytest.fixture(params=_subjects("root", "user"))
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each transport as root and as an ordinary user."""
    chosen: Subject = request.param
    if reason := unavailable(chosen):
        pytest.skip(reason)
    request.getfixturevalue("fuse_device")
    return chosen


@pytest.fixture
def user(subject: Subject, request: pytest.FixtureRequest) -> User:
    """Whom the subject is mounted by."""
    found: User = request.getfixturevalue("root_user" if subject.who == "root" else "ordinary_user")
    return found


@pytest.fixture
def stand(subject: Subject, user: User, scratch: Path) -> Iterator[MountedSubject]:
    """A union of an empty upper and one lower with a small tree."""
    with MountedSubject(subject, user, scratch / "stand", mounted=False, keeper=False) as built:
        built.agent.call(_build, "f=hello d/g=1 l->f", built.lowers[0])
        built.mount()
        yield built


def _build(text: str, top: Path) -> None:
    trees.make(trees.parse(text), top)


def _daemon_of(stand: MountedSubject) -> int:
    deadline = time.monotonic() + limit(10)
    while len(found := stand.daemons()) != 1:  # what has started it may be about to leave
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return next(iter(found))


# -- bugs --------------------------------------------------------------------------------------------------------------


def test_a_bug_is_an_io_error_and_no_more(subject: Subject, user: User, scratch: Path) -> None:
    """An unexpected exception: EIO to the caller, a traceback in the log, and everything else goes on."""
    broken = scratch / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(_BROKEN)
    paths = f"{broken}:{user.env['PYTHONPATH']}"
    env = {"PYTHONPATH": paths, "UNIONFS_PURE": "1"}  # compiled code does not let its methods be replaced
    with MountedSubject(subject, user, scratch / "stand", env=env, mounted=False, keeper=False) as stand:
        stand.agent.call(_build, "f=hello l->f cursed=1 d/g=1", stand.lowers[0])
        stand.mount()
        pid = _daemon_of(stand)
        stand.run(_meet_the_bugs)
        assert _daemon_of(stand) == pid
        log = stand.log.read_text()
        assert log.count("Traceback") >= 2
        assert "a bug in readlink" in log
        assert "a bug in unlink" in log
        stand.unmount()


def _meet_the_bugs() -> None:
    for _ in range(3):
        fails(errno.EIO, os.readlink, "l")
        fails(errno.EIO, os.unlink, "cursed")
        same(read("f"), b"hello")
    same(read("cursed"), b"1")
    write("d/g", b"changed")
    os.unlink("f")
    same(names(), ["cursed", "d", "l"])


# -- branches ----------------------------------------------------------------------------------------------------------


def test_128_lowers(subject: Subject, user: User, scratch: Path) -> None:
    """As many lowers as images may have layers."""
    _many_lowers(128, subject, user, scratch)


@pytest.mark.parametrize("subject", _subjects("root"), indirect=True)
def test_500_lowers(subject: Subject, user: User, scratch: Path) -> None:
    """As many lowers as the kernel's overlayfs can stack."""
    _many_lowers(500, subject, user, scratch)


def _many_lowers(count: int, subject: Subject, user: User, scratch: Path) -> None:
    with MountedSubject(subject, user, scratch / "stand", lowers=count, mounted=False) as stand:
        for number, lower in enumerate(stand.lowers):
            (lower / f"only-{number:03}").write_text(str(number))
            (lower / "d").mkdir()
            (lower / "d" / f"in-{number:03}").write_text(str(number))
            (lower / "everywhere").write_text(str(number))
        user.own(*stand.lowers)
        before = stand.agent.call(trees.snapshot, stand.lowers[-1])
        stand.mount()
        stand.run(_use_many, count)
        stand.remount()
        stand.run(_use_many_again, count)
        assert trees.differences(before, stand.agent.call(trees.snapshot, stand.lowers[-1])) == []
        assert stand.complaints() == []


def _use_many(count: int) -> None:
    same(names(), ["d", "everywhere", *(f"only-{number:03}" for number in range(count))])
    same(names("d"), [f"in-{number:03}" for number in range(count)])
    same(read("everywhere"), b"0", "the topmost counts")
    for number in (0, count // 2, count - 1):
        same(read(f"only-{number:03}"), b"%d" % number)
        write(f"d/in-{number:03}", b"changed")
    os.unlink("everywhere")
    os.unlink(f"only-{count - 1:03}")
    os.rename("d", "moved")


def _use_many_again(count: int) -> None:
    same(names(), ["moved", *(f"only-{number:03}" for number in range(count - 1))])
    same(len(names("moved")), count)
    same(read(f"moved/in-{count - 1:03}"), b"changed")
    same(read("moved/in-001"), b"1")


def test_two_daemons_on_one_upper(subject: Subject, user: User, scratch: Path) -> None:
    """Container tools mount an upper twice: both must work, and neither may throw away what the other is building."""
    one, two = (
        MountedSubject(subject, user, scratch / "one"),
        MountedSubject(subject, user, scratch / "two", mounted=False),
    )
    with one, two:
        two.upper, two.work, two.lowers = one.upper, one.work, one.lowers
        held = one.agent.try_call(_write_in_two_steps, str(one.merged), two.mount_argv())
        held.result()
        same(two.run(names), ["from one", "held", "other"])
        two.run(write, "from two", b"2")
        two.unmount()
        one.remount()
        same(one.run(names), ["from one", "from two", "held", "other"])
        same(one.run(read, "held"), b"before and after")
        assert one.complaints() == []


def _write_in_two_steps(mountpoint: str, mount_again: list[str]) -> None:
    """With a removed file and a half written one in hand, another daemon starts on the same branches."""
    os.chdir(mountpoint)
    write("from one", b"1")
    write("other", b"x")
    removed = os.open("removed", os.O_RDWR | os.O_CREAT)
    os.write(removed, b"still here")
    os.unlink("removed")
    with open("held", "wb", buffering=0) as held:
        held.write(b"before")
        done = subprocess.run(mount_again, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        held.write(b" and after")
    same(os.pread(removed, 100, 0), b"still here")
    os.pwrite(removed, b"STILL", 0)
    same(os.pread(removed, 100, 0), b"STILL here")


# -- leaving -----------------------------------------------------------------------------------------------------------


def test_unmount_while_busy(stand: MountedSubject) -> None:
    """umount(8): EBUSY while somebody works in the mount, and nothing is lost by having asked; then it works."""
    holder = stand.agent.call(_spawn_holder, str(stand.merged))
    try:
        argv = [*stand.user.unionfs_cmd, "umount", str(stand.merged)]
        done = stand.agent.call(command, argv)
        assert done.returncode != 0
        assert "busy" in done.stderr.lower(), done.stderr
        assert done.stderr.startswith("unionfs: umount failed: "), done.stderr
        stand.run(write, "f", b"after the refusal")
        same(stand.run(read, "f"), b"after the refusal")
    finally:
        os.kill(holder, signal.SIGKILL)
        _wait_for(holder)
    stand.unmount()
    assert stand.daemons() == {}


def _spawn_holder(directory: str) -> int:
    """A process that has its current directory and an open file in the mount, and outlives this job."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.close(reader)
        os.chdir(directory)
        held = os.open("f", os.O_RDONLY)
        os.write(writer, b"ready")
        os.close(writer)
        signal.pause()
        os.close(held)
        os._exit(0)
    os.close(writer)
    same(os.read(reader, 5), b"ready")
    return pid


def _wait_for(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([pidfd], [], [], limit(20))
    os.close(pidfd)


def test_killed_daemon(stand: MountedSubject) -> None:
    """kill -9: whoever uses the mount gets ENOTCONN, not a hang; it can be unmounted and mounted anew, data kept."""
    stand.run(write, "d/new", b"written before")
    stand.run(write, "f", b"changed before")
    os.kill(_daemon_of(stand), signal.SIGKILL)
    assert stand.wait_for_daemons() == {}
    stand.agent.call(_finds_it_dead, str(stand.merged))
    stand.unmount()
    stand.mount()
    same(stand.run(read, "d/new"), b"written before")
    same(stand.run(read, "f"), b"changed before")
    stand.unmount()
    assert list(stand.work.rglob("*orphan*/*")) == []


def _finds_it_dead(mountpoint: str) -> None:
    # The connection ends a moment after the process: a request sent in between is aborted.
    fails((errno.ENOTCONN, errno.ECONNABORTED), os.stat, f"{mountpoint}/f")
    fails(errno.ENOTCONN, os.listdir, mountpoint)
    fails(errno.ENOTCONN, os.open, f"{mountpoint}/new", os.O_WRONLY | os.O_CREAT)


def test_killed_daemon_with_a_request_in_flight(stand: MountedSubject) -> None:
    """fuse(4): a request that was not answered ends with an error when the daemon is gone; nobody waits for ever."""
    pid = _daemon_of(stand)
    failure = stand.agent.call(_read_until_it_fails, str(stand.merged), pid, timeout_s=60)
    assert failure in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO), errno.errorcode.get(failure)
    stand.unmount()
    assert stand.daemons() == {}


def _read_until_it_fails(mountpoint: str, daemon: int) -> int:
    """Several threads make and remove files; the daemon is killed among it. The errno that they all end with."""
    os.chdir(mountpoint)
    ended: list[int] = []

    def work(number: int) -> None:
        turn = 0
        while True:
            try:
                write(f"n{number}-{turn % 10}", b"x" * 10_000)
                os.unlink(f"n{number}-{turn % 10}")
            except OSError as failure:
                ended.append(failure.errno or 0)
                return
            turn += 1
            if number == 0 and turn == 50:
                os.kill(daemon, signal.SIGKILL)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == 4
    return ended[0]


def test_terminated_daemon(stand: MountedSubject) -> None:
    """SIGTERM: the daemon unmounts and leaves; what was written is there at the next mount."""
    stand.run(write, "f", b"changed")
    pid = _daemon_of(stand)
    stand.agent.call(os.kill, pid, signal.SIGTERM)
    _wait_for(pid)
    assert stand.daemons() == {}
    assert not stand.is_mounted()
    stand.mount()
    same(stand.run(read, "f"), b"changed")


def test_lazy_unmount(stand: MountedSubject) -> None:
    """umount(2), MNT_DETACH: the name is free at once; who is inside goes on, and the daemon leaves after the last."""
    holder = stand.agent.call(_spawn_holder, str(stand.merged))
    done = stand.agent.call(command, [*stand.user.unionfs_cmd, "umount", "--lazy", str(stand.merged)])
    assert done.returncode == 0, done.stderr
    assert not stand.is_mounted()
    same(stand.agent.call(os.stat, f"/proc/{holder}/cwd/f").st_size, 5)
    os.kill(holder, signal.SIGKILL)
    _wait_for(holder)
    assert stand.wait_for_daemons() == {}


@pytest.mark.parametrize("transport", OURS)
def test_a_daemon_in_another_namespace_keeps_no_mount_busy(
    transport: str, root_user: User, ordinary_user: User, fuse_device: Path, scratch: Path
) -> None:
    """mount_namespaces(7): a daemon in a user namespace has copies of all mounts; what is unmounted goes there too.

    Otherwise the superblock lives on there, and with it the daemon of somebody else's union.
    """
    assert fuse_device.exists()
    theirs = Subject(transport, "userns", "plain")
    if reason := unavailable(theirs):
        pytest.skip(reason)
    with MountedSubject(Subject(transport, "root", "plain"), root_user, scratch / "ours") as ours:
        with MountedSubject(theirs, ordinary_user, scratch / "theirs"):
            ours.unmount()
        assert ours.daemons() == {}


def test_no_descriptor_or_session_of_the_caller_is_kept(stand: MountedSubject) -> None:
    """daemon(7): a session of its own, the root directory, no descriptor of the caller, no controlling terminal."""
    pid = _daemon_of(stand)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert fields[4] == "0", "no controlling terminal (proc_pid_stat(5), tty_nr)"
    assert os.getsid(pid) != os.getsid(stand.agent.pid)
    facts = stand.agent.call(_descriptors, pid)
    assert facts["cwd"] == "/"
    for target in facts["fds"]:
        assert not target.startswith("/dev/pts"), facts
        assert "agent" not in target, facts
    assert facts["stdio"] <= {"/dev/null", str(stand.log)}, facts


def _descriptors(pid: int) -> dict[str, object]:
    targets = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed again meanwhile
            targets[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
    return {
        "cwd": os.readlink(f"/proc/{pid}/cwd"),
        "fds": sorted(targets.values()),
        "stdio": {targets[fd] for fd in ("0", "1", "2") if fd in targets},
    }


def test_mounted_again_and_again(stand: MountedSubject) -> None:
    """Five mounts of the same branches, each changing something, leave a tree that holds all of it and a clean work."""
    for number in range(5):
        stand.run(write, f"n{number}", b"%d" % number)
        stand.run(write, "f", b"%d" % number)
        stand.remount()
    same(stand.run(names), ["d", "f", "l", *(f"n{number}" for number in range(5))])
    same(stand.run(read, "f"), b"4")
    stand.unmount()
    left = [path for path in stand.work.rglob("*") if not path.is_dir() and path.parent.name != "index"]
    assert left == []


# -- serving -----------------------------------------------------------------------------------------------------------


def test_a_long_copy_up_does_not_delay_other_requests(stand: MountedSubject) -> None:
    """A large file is copied up while others go on: many answers come before the write returns."""
    size = 256 << 20
    stand.unmount()
    stand.agent.call(_make_large, str(stand.lowers[0] / "large"), size)
    stand.mount()
    answers = stand.run(_work_during_a_copy_up, size, timeout_s=120)
    # If they waited for it: one, or two when the first came before it.
    assert answers > 2, f"only {answers} answers during the copy-up"


def _make_large(path: str, size: int) -> None:
    with open(path, "wb") as file:
        file.writelines(number.to_bytes(4, "big") * (1 << 18) for number in range(size >> 20))


def _work_during_a_copy_up(size: int) -> int:
    """Change a large file in one thread; count what else gets done until that returns."""
    done = threading.Event()

    def change() -> None:
        with open("large", "r+b", buffering=0) as file:
            file.write(b"X")
        done.set()

    thread = threading.Thread(target=change)
    thread.start()
    answers = 0
    while not done.is_set():
        write(f"n{answers}", b"x")
        os.stat(f"n{answers}")
        answers += 1
    thread.join()
    same(os.stat("large").st_size, size)
    with open("large", "rb") as file:
        same(file.read(4), b"X\0\0\0")
        file.seek(size - 4)
        same(file.read(), ((size >> 20) - 1).to_bytes(4, "big"))
    return answers
