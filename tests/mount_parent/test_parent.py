"""The first mount leaves a parent, which forks the daemons of further mounts; these equal mounts without a parent."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from tests.fuse.daemons import daemon_of, parent_of
from tests.mount_parent.callers import PATIENCE_S, Caller, caller_of, ends
from tests.support.mountinfo import mount_at
from tests.support.timing import limit
from tests.support.users import User
from unionfs.mount_parent.parent import NAME
from unionfs.syscalls.namespaces import io_priority


@pytest.fixture
def caller(scratch: Path, user: User, fuse_device: Path) -> Iterator[Caller]:
    """Root, then an ordinary user."""
    with caller_of(user, scratch) as made:
        yield made


def test_the_first_mount_leaves_a_parent_and_further_ones_are_forked_by_it(caller: Caller) -> None:
    first = caller.mount("first")
    assert caller.started_by(first) == "itself: there was no parent"
    parent = caller.parent()
    assert cast(dict[str, int], caller.stats(first)["keeper"])["pid"] == parent
    for name in ("second", "third"):
        mountpoint = caller.mount(name)
        found = caller.stats(mountpoint)
        assert found["started_by"] == f"parent {parent}"
        assert found["compiled"] == caller.stats(caller.directory / "first")["compiled"]
        with daemon_of(mountpoint) as daemon:
            keeper = cast(dict[str, int], found["keeper"])["pid"]
            assert [parent_of(daemon.pid), keeper] == [parent, parent]
    assert caller.parents() == [parent]


def _held(process: Path) -> list[str]:
    held = []
    for fd in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            held.append(os.readlink(fd).partition(":")[0])
    return sorted(held)


def test_a_parent_holds_nothing_of_others_than_the_mounts_that_it_keeps(caller: Caller) -> None:
    caller.mount("first")
    caller.mount("second")
    process = Path(f"/proc/{caller.parent()}")
    for name in ("second", "first"):
        assert caller.unionfs("umount", caller.directory / name).returncode == 0
    until = time.monotonic() + limit(PATIENCE_S)
    while (held := _held(process)) != ["/dev/null"] * 3 + ["socket"]:
        assert time.monotonic() < until, held
    assert os.readlink(process / "cwd") == "/"
    assert (process / "comm").read_text() == f"{NAME}\n"
    assert (process / "cmdline").read_bytes().strip(b"\0").decode() == NAME
    assert (process / "environ").read_bytes().strip(b"\0") == b""
    assert os.getsid(int(process.name)) not in (0, os.getsid(0))


def test_it_ends_some_time_after_its_last_mount(caller: Caller) -> None:
    caller.linger_s = "0.2"
    first = caller.mount("first")
    parent = caller.parent()
    assert caller.unionfs("umount", first).returncode == 0
    assert ends(parent)


def test_it_stays_while_a_mount_is_there(caller: Caller) -> None:
    caller.linger_s = "0.1"
    caller.mount("first")
    parent = caller.parent()
    second = caller.mount("second")
    assert caller.started_by(second) == f"parent {parent}"
    assert caller.unionfs("umount", second).returncode == 0
    assert caller.started_by(caller.mount("third")) == f"parent {parent}"


def test_its_daemons_outlive_it(caller: Caller) -> None:
    first, second = caller.mount("first"), caller.mount("second")
    parent = caller.parent()
    os.kill(parent, signal.SIGKILL)
    assert ends(parent)
    for mountpoint in (first, second):
        assert caller.run("cat", mountpoint / "file").stdout == mountpoint.name
    assert caller.started_by(caller.mount("third")) == "itself: there was no parent"
    assert caller.started_by(caller.mount("fourth")) == f"parent {caller.parent()}"
    assert caller.unionfs("umount", second).returncode == 0


def test_with_a_linger_of_0_no_parent_is_started_or_asked(caller: Caller) -> None:
    off = {"UNIONFS_LINGER": "0"}
    assert caller.started_by(caller.mount("first", env=off)) == "itself: UNIONFS_LINGER is 0"
    assert caller.parents() == []
    caller.mount("second")
    assert caller.started_by(caller.mount("third", env=off)) == "itself: UNIONFS_LINGER is 0"


def test_a_malformed_linger_is_reported(root: Caller) -> None:
    lower, mountpoint = root.directories("first")
    done = root.unionfs("mount", "--lower", lower, mountpoint, env={"UNIONFS_LINGER": "soon"})
    sentence = "UNIONFS_LINGER=soon: not a number of seconds; no parent is left behind"
    assert (done.returncode, done.stderr) == (0, f"unionfs: warning: {sentence}\n")
    assert root.started_by(mountpoint) == "itself: UNIONFS_LINGER is not a number of seconds"


def test_a_parent_that_does_not_answer_is_not_waited_for(root: Caller) -> None:
    root.mount("first")
    parent = root.parent()
    os.kill(parent, signal.SIGSTOP)
    try:
        assert root.started_by(root.mount("second")) == f"itself: parent {parent} does not answer: timed out"
    finally:
        os.kill(parent, signal.SIGCONT)
    assert root.started_by(root.mount("third")) == f"parent {parent}"


def test_many_first_mounts_at_once_leave_one(root: Caller) -> None:
    pairs = [root.directories(f"m{number}") for number in range(6)]
    argv = [*root.user.prefix, *root.user.unionfs_cmd, "mount"]
    script = " & ".join(f'"$@" --lower {lower} {mountpoint}' for lower, mountpoint in pairs)
    done = root.run("sh", "-c", f"{script} & wait", "sh", *argv)
    assert (done.returncode, done.stderr) == (0, "")
    for _, mountpoint in pairs:
        assert root.run("cat", mountpoint / "file").stdout == mountpoint.name
        assert cast(dict[str, bool], root.stats(mountpoint)["keeper"])["alive"]
    root.parent()


_COMMAND_LINES = {
    "relative paths": ["mount", "--lower", "lower", "--upper", "upper", "mnt"],
    "mount helper": ["-o", "lowerdir=lower,upperdir=upper,workdir=work", "mnt"],
    "mount(8)": ["overlay", "{here}/mnt", "-o", "lowerdir=lower"],
    "unknown option": ["-o", "lowerdir=lower,sideways", "mnt"],
    "no lower": ["mount", "mnt"],
    "no such lower": ["mount", "--lower", "missing", "mnt"],
    "no such mountpoint": ["mount", "--lower", "lower", "missing"],
    "no such flag": ["mount", "--sideways", "--lower", "lower", "mnt"],
    "a work of its own that is removed": ["mount", "--lower", "lower", "--upper", "upper", "missing"],
    "no lowerdir": ["-o", "ro", "mnt"],
    "a log that cannot be": ["mount", "--lower", "lower", "--log", "missing/log", "mnt"],
    "no transport": ["mount", "--lower", "lower", "--transport", "x", "mnt"],
}


@pytest.mark.parametrize("command_line", _COMMAND_LINES)
def test_what_a_caller_sees_is_the_same_with_a_parent(caller: Caller, command_line: str) -> None:
    """Exit code, output, mount line and the directories afterwards."""
    caller.mount("first")
    seen = []
    for linger in ("0", "20"):
        here = caller.directory / "place"
        for name in ("", "lower", "upper", "work", "mnt"):
            (here / name).mkdir()
        caller.user.own(here)
        argv = [word.format(here=here) for word in _COMMAND_LINES[command_line]]
        done = caller.unionfs(*argv, cwd=here, env={"UNIONFS_LINGER": linger})
        line = [
            line.split(" - ")[1]
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if f" {here}/mnt " in line
        ]
        seen.append((done.returncode, done.stdout, done.stderr, line, sorted(os.listdir(here))))
        if line:
            assert caller.started_by(here / "mnt").startswith("itself: UNIONFS" if linger == "0" else "parent")
            assert caller.unionfs("umount", here / "mnt").returncode == 0
        shutil.rmtree(here)
    assert seen[0] == seen[1]


def test_a_daemon_has_what_its_caller_has(root: Caller) -> None:
    """Limits, priorities, processors, the order in which memory is freed, and what is seen in the list of processes."""
    root.mount("first")
    before = (
        "nice",
        "-n",
        "5",
        "ionice",
        "-c2",
        "-n7",
        "choom",
        "-n",
        "300",
        "--",
        "prlimit",
        "--core=4096",
        "--nproc=5000:6000",
        "taskset",
        "1",
    )
    alone = root.mount("alone", *before, env={"UNIONFS_LINGER": "0"})
    forked = root.mount("forked", *before)
    assert root.started_by(forked) == f"parent {root.parent()}"
    seen = []
    for mountpoint in (alone, forked):
        with daemon_of(mountpoint) as daemon:
            process = Path(f"/proc/{daemon.pid}")
            status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
            told = ("Umask", "Groups", "CapEff", "CapBnd", "SigBlk", "SigIgn", "Cpus_allowed", "NoNewPrivs", "Seccomp")
            links = [
                os.readlink(process / name) for name in ("cwd", "root", "fd/0", "fd/1", "fd/2", "ns/net", "ns/pid")
            ]
            files = [(process / name).read_text() for name in ("limits", "oom_score_adj", "cgroup")]
            priorities = os.getpriority(os.PRIO_PROCESS, daemon.pid), io_priority(daemon.pid)
            seen.append(([status[name] for name in told], links, files, priorities))
            command_line = (process / "cmdline").read_bytes().strip(b"\0").replace(b"\0", b" ").decode()
            assert command_line.endswith(f"-o lowerdir={mountpoint}.lower {mountpoint}")
    assert seen[0] == seen[1]
    assert seen[1][3] == (os.getpriority(os.PRIO_PROCESS, 0) + 5, 2 << 13 | 7)


def test_a_daemon_has_the_environment_of_its_caller(root: Caller) -> None:
    root.mount("first")
    log = root.directory / "log"
    second = root.mount("second", env={"UNIONFS_LOG": os.fspath(log)})
    assert root.unionfs("umount", second).returncode == 0
    assert f"INFO unionfs.daemon: started by parent {root.parent()}\n" in log.read_text()


_LIBRARY = """
import sys
import unionfs
lower, mountpoint = sys.argv[1:]
with unionfs.mount([lower], mountpoint) as mounted:
    print(mounted.stats()["started_by"], open(f"{mountpoint}/file").read())
try:
    unionfs.mount([f"{lower}/missing"], mountpoint)
except unionfs.MountError as error:
    print(error)
unionfs.mount([lower], mountpoint)  # goes with this process
"""


def test_a_mount_of_the_library_is_forked_and_ends_with_its_program(caller: Caller) -> None:
    caller.mount("first")
    lower, mountpoint = caller.directories("second")
    parent = caller.parent()
    done = caller.run(sys.executable, "-c", _LIBRARY, lower, mountpoint)
    assert done.stderr == ""
    started_by, failure = done.stdout.splitlines()
    assert started_by == f"parent {parent} second"
    assert failure == f"mount failed: {mountpoint}: cannot use {lower}/missing as a lower: No such file or directory"
    until = time.monotonic() + limit(PATIENCE_S)
    while mount_at(mountpoint) is not None:
        assert time.monotonic() < until


def test_a_mount_in_the_foreground_is_none_of_a_parents(root: Caller) -> None:
    root.mount("first")
    lower, mountpoint = root.directories("second")
    argv = [*root.user.unionfs_cmd, "mount", "-f", "--lower", os.fspath(lower), os.fspath(mountpoint)]
    program = root.user.popen(argv, env=root.env)
    with program:
        while not os.path.ismount(mountpoint):
            assert program.poll() is None
        assert root.started_by(mountpoint) == "itself: in the foreground"
        os.killpg(program.pid, signal.SIGINT)
        assert program.communicate() == ("", "")


_IMPORTED = """
import sys
before = set(sys.modules)
from unionfs import __main__
import os
def end(status):
    print(status, *sorted({*sys.modules} - before))
    sys.exit()
os._exit = end
sys.argv = ["unionfs", *sys.argv[1:]]
__main__.main()
"""


def test_a_client_imports_next_to_nothing(root: Caller) -> None:
    root.mount("first")
    root.parent()
    lower, mountpoint = root.directories("second")
    said = root.run(sys.executable, "-c", _IMPORTED, "mount", "--lower", lower, mountpoint).stdout.split()
    assert said == [
        "0",
        *("__future__", "_ctypes", "_socket", "binascii"),
        *("unionfs", "unionfs.__main__", "unionfs.cli", "unionfs.cli.mount_forms"),
        *("unionfs.mount_parent", "unionfs.mount_parent.client", "unionfs.mount_parent.identity"),
        *("unionfs.mount_parent.messages", "unionfs.standard_descriptors"),
    ]
    assert root.started_by(mountpoint).startswith("parent ")
