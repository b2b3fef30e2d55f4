"""The daemon as a process: what it inherits from its starter, when it ends, and that nothing of it is left then."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from tests.fuse.daemons import PATIENCE_S, daemon_of
from tests.support import mounts
from tests.support.mountinfo import detach, mount_at
from tests.support.timing import limit
from tests.support.users import User
from unionfs.control.server import Reporter
from unionfs.core.options import Options
from unionfs.core.union import Union
from unionfs.daemon import mounted_union
from unionfs.daemon.mounted_union import Service
from unionfs.daemon.options import DaemonOptions
from unionfs.fuse.calls import Calls
from unionfs.fuse.detachment import Mounted
from unionfs.fuse.shutdown import GracefulShutdown
from unionfs.fuse.traffic import Tally
from unionfs.syscalls.mountinfo import topmost_at


@dataclass(frozen=True, slots=True)
class Place:
    """Branches with a file in the lower, and where to mount them."""

    user: User
    transport: str
    lower: Path
    upper: Path
    work: Path
    mountpoint: Path
    log: Path

    def argv(self, *options: str, mountpoint: str | Path | None = None) -> list[str]:
        return mounts.mount_argv(
            [self.lower],
            Path(mountpoint or self.mountpoint),
            user=self.user,
            transport=self.transport,
            upper=self.upper,
            work=self.work,
            options=options,
        )

    def mount(self, *options: str) -> None:
        self.user.run(self.argv("--log", os.fspath(self.log), *options))

    def read(self, name: str = "file") -> str:
        """Read a file of the union in a child process."""
        return self.user.run(["cat", os.fspath(self.mountpoint / name)], timeout_s=PATIENCE_S).stdout

    def litter(self) -> list[str]:
        """What daemons have left in the work directory."""
        return [name for name in os.listdir(self.work) if name.startswith("live-")]

    def complaints(self) -> list[str]:
        return mounts.complaints(self.log)


def _place(scratch: Path, user: User, transport: str) -> Place:
    if not mounts.has_transport(transport):
        pytest.skip(f"the {transport} transport is not part of this version")
    made = {name: scratch / name for name in ("lower", "upper", "work", "mnt")}
    for directory in made.values():
        directory.mkdir()
    (made["lower"] / "file").write_text("content")
    user.own(*made.values())
    return Place(
        user, transport, made["lower"], made["upper"], made["work"], made["mnt"], user.home / f"{scratch.name}.log"
    )


@pytest.fixture
def place(scratch: Path, user: User, transport: str) -> Iterator[Place]:
    """Root's, then an ordinary user's; on each transport."""
    made = _place(scratch, user, transport)
    yield made
    while mount_at(made.mountpoint) is not None:
        detach(made.mountpoint)


@pytest.fixture
def roots_place(scratch: Path, root_user: User, transport: str) -> Place:
    return _place(scratch, root_user, transport)


def test_a_daemon_closes_descriptors_of_its_starter(place: Place) -> None:
    """Whoever reads our output, or any other pipe that we were given, gets the end of it when the command returns."""
    read_fd, write_fd = os.pipe()
    argv = [*place.user.prefix, *place.argv()]
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=place.user.home,
        env=place.user.env,
        pass_fds=[write_fd],
    ) as command:
        os.close(write_fd)
        out, err = command.communicate(timeout=limit(PATIENCE_S))
    assert (command.returncode, out, err) == (0, b"", b"")
    with daemon_of(place.mountpoint) as daemon:
        assert select.select([read_fd], [], [], limit(PATIENCE_S))[0]
        assert os.read(read_fd, 1) == b""
        os.close(read_fd)
        held = daemon.descriptors()
        assert [held[fd] for fd in (0, 1, 2)] == [os.devnull] * 3
        assert os.readlink(f"/proc/{daemon.pid}/cwd") == "/"
        assert os.getsid(daemon.pid) not in (os.getsid(0), command.pid)
        limits = Path(f"/proc/{daemon.pid}/limits").read_text().splitlines()
        soft, hard = next(line for line in limits if line.startswith("Max open files")).split()[3:5]
        assert soft == hard


def test_a_daemon_can_be_started_without_standard_descriptors(place: Place) -> None:
    shell = 'exec "$@" 0<&- 1>&- 2>&-'
    place.user.run(["sh", "-c", shell, "sh", *place.argv()])
    with daemon_of(place.mountpoint) as daemon:
        assert place.read() == "content"
        assert [daemon.descriptors()[fd] for fd in (0, 1, 2)] == [os.devnull] * 3


@pytest.mark.parametrize("how", ["plain", "lazy"])
def test_a_daemon_ends_when_another_program_unmounts(place: Place, how: str) -> None:
    place.mount()
    with daemon_of(place.mountpoint) as daemon:
        assert place.read() == "content"
        lazy = how == "lazy"
        if place.user.kind == "root":
            argv = ["umount", *(["--lazy"] if lazy else []), os.fspath(place.mountpoint)]
        else:
            argv = ["fusermount3", "-u", *(["-z"] if lazy else []), os.fspath(place.mountpoint)]
        place.user.run(argv)
        assert daemon.has_ended()
    assert place.litter() == []
    assert place.complaints() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_daemon_unmounts_at_a_signal(place: Place, number: signal.Signals) -> None:
    place.mount()
    with daemon_of(place.mountpoint) as daemon:
        daemon.kill(number)
        assert daemon.has_ended()
        assert mount_at(place.mountpoint) is None
    assert place.litter() == []
    assert place.complaints() == []


_READER = """
import sys
with open(sys.argv[1]) as file:
    print("open", flush=True)
    input()
    print(file.read(), flush=True)
    input()
"""


def test_users_may_finish_after_a_signal(place: Place) -> None:
    place.mount()
    with daemon_of(place.mountpoint) as daemon:
        program = place.user.popen([sys.executable, "-I", "-S", "-c", _READER, os.fspath(place.mountpoint / "file")])
        with program:
            assert program.stdin is not None
            assert program.stdout is not None
            assert program.stdout.readline() == "open\n"
            daemon.kill(signal.SIGTERM)
            while mount_at(place.mountpoint) is not None:
                assert not daemon.has_ended(0.01)
            program.stdin.write("\n")
            program.stdin.flush()
            assert program.stdout.readline() == "content\n"
            daemon.kill(signal.SIGTERM)  # no more grace
            assert daemon.has_ended()
            program.stdin.close()
            program.wait(limit(PATIENCE_S))
    assert place.litter() == []
    assert place.complaints() == []


def test_sighup_of_a_terminal_that_closes_does_not_end_it(place: Place) -> None:
    place.mount()
    with daemon_of(place.mountpoint) as daemon:
        daemon.kill(signal.SIGHUP)
        assert place.read() == "content"


def _with_helper(place: Place, scratch: Path, script: str) -> dict[str, str]:
    """An environment in which `script` is run as fusermount3; {helper} in it is the real one."""
    helper = scratch / "bin/fusermount3"
    helper.parent.mkdir()
    helper.write_text("#!/bin/sh\n" + script.format(helper=shutil.which("fusermount3")))
    helper.chmod(0o755)
    return {"PATH": f"{helper.parent}:{place.user.env['PATH']}"}


def test_the_process_that_unmounts_does_not_outlive_it(scratch: Path, ordinary_user: User, transport: str) -> None:
    """The connection ends before fusermount3 does."""
    place = _place(scratch, ordinary_user, transport)
    script = f'{{helper}} "$@"\nsleep 0.5\n[ "$1" != -u ] || touch {place.upper}/unmounted\n'
    place.user.run(place.argv(), env=_with_helper(place, scratch, script))
    with daemon_of(place.mountpoint) as daemon:
        daemon.kill(signal.SIGTERM)
        assert daemon.has_ended()
        assert (place.upper / "unmounted").exists()


_IGNORING = ("bash", "-c", "trap '' HUP INT QUIT TERM; exec \"$@\"", "bash")


def test_a_daemon_handles_signals_that_its_starter_ignores(place: Place) -> None:
    """`nohup unionfs mount`, or one in a script's background: daemon(7) wants the defaults, and signals end it."""
    place.user.run([*_IGNORING, *place.argv("--log", os.fspath(place.log))])
    with daemon_of(place.mountpoint) as daemon:
        daemon.kill(signal.SIGINT)
        assert daemon.has_ended()
    assert mount_at(place.mountpoint) is None
    assert place.complaints() == []


def test_in_the_foreground_ignored_signals_stay_ignored(place: Place) -> None:
    """As nohup wants it; SIGTERM ends it nevertheless, with the mount."""
    program = place.user.popen([*_IGNORING, *place.argv("--foreground")])
    with program:
        while mount_at(place.mountpoint) is None:
            assert program.poll() is None
        for number in (signal.SIGINT, signal.SIGHUP):
            os.killpg(program.pid, number)
        assert place.read() == "content"
        os.killpg(program.pid, signal.SIGTERM)
        out, err = program.communicate(timeout=limit(PATIENCE_S))
    assert (program.returncode, out, err) == (0, "", "")
    assert mount_at(place.mountpoint) is None


def test_an_interrupt_does_not_end_fusermount3(scratch: Path, ordinary_user: User, transport: str) -> None:
    """Ctrl-C reaches it, too, and it may have mounted already: the mount would be dead."""
    place = _place(scratch, ordinary_user, transport)
    place.user.run(place.argv(), env=_with_helper(place, scratch, 'kill -INT $$\nexec {helper} "$@"\n'))
    with daemon_of(place.mountpoint):
        assert place.read() == "content"


def test_sigusr1_prints_a_stack_trace(place: Place) -> None:
    place.mount()
    with daemon_of(place.mountpoint) as daemon:
        assert place.read() == "content"  # it serves, so it has prepared for the signal
        daemon.kill(signal.SIGUSR1)
        daemon.kill(signal.SIGTERM)
        assert daemon.has_ended()
    assert "most recent call first" in place.log.read_text()


def test_a_daemon_that_may_start_no_thread_does_slow_work_itself(
    scratch: Path, ordinary_user: User, fuse_device: Path
) -> None:
    """RLIMIT_NPROC does not bind root."""
    del fuse_device
    place = _place(scratch, ordinary_user, "kernel")
    size = 3 << 20  # a copy-up that a thread makes
    (place.lower / "big").write_bytes(b"b" * size)
    place.user.own(place.lower / "big")
    place.mount()
    with daemon_of(place.mountpoint) as daemon:
        assert place.read() == "content"
        place.user.run(["prlimit", f"--pid={daemon.pid}", "--nproc=1:1"])
        threads = os.listdir(f"/proc/{daemon.pid}/task")
        big = place.mountpoint / "big"
        place.user.run(
            ["dd", "if=/dev/zero", f"of={big}", "bs=1", "count=1", "conv=notrunc,fsync"], timeout_s=PATIENCE_S
        )
        assert place.read("big") == "\0" + "b" * (size - 1)
        assert os.listdir(f"/proc/{daemon.pid}/task") == threads
        place.user.unionfs("umount", place.mountpoint)
        assert daemon.has_ended()
    assert (place.upper / "big").stat().st_size == size
    assert place.complaints() == []


def test_a_killed_daemon_leaves_a_mount_that_can_be_removed(place: Place) -> None:
    place.mount("--no-keeper")
    with daemon_of(place.mountpoint) as daemon:
        assert place.read() == "content"
        daemon.kill(signal.SIGKILL)
        assert daemon.has_ended()
        reading = place.user.run(["cat", os.fspath(place.mountpoint / "file")], timeout_s=PATIENCE_S, check=False)
        assert "Transport endpoint is not connected" in reading.stderr
        refused = place.user.run(place.argv(), check=False)
        assert f"unionfs umount {place.mountpoint}" in refused.stderr
        place.user.unionfs("umount", place.mountpoint)
        assert mount_at(place.mountpoint) is None
    assert len(place.litter()) == 1
    place.mount()
    with daemon_of(place.mountpoint):
        assert len(place.litter()) == 1  # the new one's; the dead one's has been swept
        place.user.unionfs("umount", place.mountpoint)
    assert place.litter() == []


def test_a_daemon_in_the_foreground_serves_until_ctrl_c(place: Place) -> None:
    program = place.user.popen(place.argv("--foreground"))
    with program:
        while mount_at(place.mountpoint) is None:
            assert program.poll() is None
        assert place.read() == "content"
        assert program.poll() is None
        os.killpg(program.pid, signal.SIGINT)
        out, err = program.communicate(timeout=limit(PATIENCE_S))
    assert (program.returncode, out, err) == (0, "", "")
    assert mount_at(place.mountpoint) is None
    assert place.litter() == []


_WITH_LIFELINE = """
import os, sys
from unionfs.core.options import Options
from unionfs.daemon.options import DaemonOptions
from unionfs.daemon.start import start
lower, mountpoint, transport = sys.argv[1:]
read_fd, write_fd = os.pipe()
options = Options(lowers=(lower,))
pid = start(DaemonOptions(options, mountpoint, transport, lifeline_fd=read_fd)).pid
assert os.listdir(mountpoint) == ["file"]
print(pid, flush=True)
input()
"""


def test_a_daemon_ends_with_the_holder_of_its_lifeline(place: Place) -> None:
    argv = [sys.executable, "-c", _WITH_LIFELINE, *map(os.fspath, (place.lower, place.mountpoint)), place.transport]
    program = place.user.popen(argv)
    with program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        with daemon_of(place.mountpoint) as daemon:
            assert pid in (daemon.pid, daemon.parent())
            assert not daemon.has_ended(0)
            program.kill()
            program.wait(limit(PATIENCE_S))
            assert daemon.has_ended()
            assert mount_at(place.mountpoint) is None


_IN_NAMESPACE = """
set -e
"$@"
cat "$MOUNTPOINT/file"
for process in /proc/[0-9]*; do
    case $(cat "$process/comm" 2>/dev/null) in
    unionfs:*) [ "$process/ns/user" -ef /proc/self/ns/user ] && echo "$process" ;;
    esac
done
read wait
"""


def test_a_daemon_ends_with_its_mount_namespace(ordinary_user: User, scratch: Path, transport: str) -> None:
    """A daemon that stayed in the namespace would be the last one to keep it."""
    if not shutil.which("unshare"):
        pytest.skip("unshare is missing (Debian package util-linux)")
    place = _place(scratch, ordinary_user, transport)
    argv = ["unshare", "--map-root-user", "--mount", "sh", "-c", _IN_NAMESPACE, "sh", *place.argv()]
    program = place.user.popen(argv, env={"MOUNTPOINT": os.fspath(place.mountpoint)})
    with program:
        assert program.stdin is not None
        assert program.stdout is not None
        found = program.stdout.readline().removeprefix("content").strip()
        pidfd = os.pidfd_open(int(found.removeprefix("/proc/")))
        assert not select.select([pidfd], [], [], 0)[0]
        program.stdin.close()
        program.wait(limit(PATIENCE_S))
    try:
        assert select.select([pidfd], [], [], limit(PATIENCE_S))[0]
    finally:
        os.close(pidfd)
    assert place.litter() == []


def test_a_daemon_keeps_no_other_mount_busy(roots_place: Place, scratch: Path) -> None:
    """A second daemon, whatever namespace it lives in, does not hold the mount of the first."""
    place = roots_place
    second = scratch / "second"
    second.mkdir()
    place.mount()
    with daemon_of(place.mountpoint) as daemon:
        place.user.run(mounts.mount_argv([place.lower], second, user=place.user, transport=place.transport))
        with daemon_of(second):
            place.user.run(["umount", os.fspath(place.mountpoint)])
            assert daemon.has_ended()


_HAND_OVER = """
import os, subprocess, sys
from unionfs.fuse import mounting
fd = mounting.mount_union(sys.argv[1], mounting.MountOptions())
subprocess.run([*sys.argv[2:], f"/dev/fd/{fd}"], pass_fds=[fd], check=True)
"""


def test_a_daemon_serves_a_descriptor_that_another_program_mounted(roots_place: Place) -> None:
    place = roots_place
    argv = place.argv()[:-1]
    place.user.run([sys.executable, "-c", _HAND_OVER, os.fspath(place.mountpoint), *argv])
    try:
        assert place.read() == "content"
    finally:
        place.user.run(["umount", os.fspath(place.mountpoint)])
    while place.litter():  # it is not called after its connection, which it cannot know: wait for its last act
        select.select([], [], [], 0.01)


@pytest.mark.parametrize(
    ("options", "sentence", "hint"),
    [
        (["--log", "/missing/log"], "opening the log failed: /missing/log: No such file or directory", ""),
        (["--lower", "/missing/lower"], "cannot use /missing/lower as a lower: No such file or directory", ""),
    ],
)
def test_nothing_is_mounted_when_the_start_fails(place: Place, options: list[str], sentence: str, hint: str) -> None:
    done = place.user.run(place.argv(*options), check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("unionfs: ")
    assert sentence in done.stderr
    assert hint in done.stderr
    assert mount_at(place.mountpoint) is None
    assert place.litter() == []


_WITHOUT_TRIO = """
import sys
sys.modules["trio"] = None  # as if it were not installed
from unionfs.core.options import Options
from unionfs.daemon.options import DaemonOptions, StartError
from unionfs.daemon.start import start
lower, mountpoint, transport = sys.argv[1:]
try:
    start(DaemonOptions(Options(lowers=(lower,)), mountpoint, transport, watch=True))
except StartError as error:
    print(error, error.hint, sep="\\n")
"""


def test_a_transport_that_cannot_be_imported_is_an_error_before_mounting(roots_place: Place) -> None:
    """Only libfuse's transport needs trio."""
    place = roots_place
    start = [sys.executable, "-c", _WITHOUT_TRIO, os.fspath(place.lower), os.fspath(place.mountpoint)]
    alone = {"UNIONFS_LINGER": "0"}  # a parent has the module
    said = place.user.run([*start, place.transport], env=alone).stdout
    if place.transport == "kernel":
        assert said == ""
        with daemon_of(place.mountpoint):
            assert place.read() == "content"
            assert json.loads(place.user.unionfs("stats", "--json", place.mountpoint).stdout)["transport"] == "kernel"
            place.user.unionfs("umount", place.mountpoint)
    else:
        assert said.splitlines()[0] == f"transport {place.transport} cannot be used: no Python module trio"
        assert "pip install trio" in said
    assert mount_at(place.mountpoint) is None
    assert place.user.run([*start, "x"]).stdout.splitlines()[0] == "unknown transport 'x'"


@pytest.mark.transport("pyfuse3")
def test_a_transport_without_its_library_is_an_error_before_mounting(root_user: User, scratch: Path) -> None:
    lower, mountpoint, modules = (scratch / name for name in ("lower", "mnt", "modules"))
    for made in (lower, mountpoint, modules):
        made.mkdir()
    (modules / "pyfuse3.py").write_text("raise ImportError('libfuse3.so.3: cannot open shared object file')\n")
    path = f"{modules}:{root_user.env['PYTHONPATH']}"
    flags = ("--transport", "pyfuse3", "--lower", str(lower))
    done = root_user.run(
        [*root_user.unionfs_cmd, "mount", *flags, str(mountpoint)], env={"PYTHONPATH": path}, check=False
    )
    assert (done.returncode, done.stderr) == (
        1,
        "unionfs: transport pyfuse3 cannot be used: libfuse3.so.3: cannot open shared object file\n"
        "  pip install 'unionfs[pyfuse3]', or choose another --transport\n",
    )
    assert mount_at(mountpoint) is None


def test_two_daemons_on_one_upper_both_mount_and_the_second_says_so(place: Place, scratch: Path) -> None:
    second = scratch / "second"
    second.mkdir()
    place.user.own(second)
    place.mount()
    with daemon_of(place.mountpoint):
        done = place.user.run(place.argv(mountpoint=second))
        assert "unionfs: warning: another running daemon uses the same upper directory" in done.stderr
        with daemon_of(second) as daemon:
            assert len(place.litter()) == 2
            place.user.unionfs("umount", second)
            assert daemon.has_ended(0)
        assert place.read() == "content"
        assert len(place.litter()) == 1


def test_questions_are_answered_when_the_transport_serves(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    """Else it would seem to be one that cannot record requests, or change branches."""
    served: list[object] = []
    traffic, calls = Tally(), cast(Calls, object())
    monkeypatch.setattr(Reporter, "serve", lambda *_: served.append(traffic.calls))
    with closing(Union(Options((os.fspath(scratch),)))) as union:
        service = Service(
            DaemonOptions(union.options, "/mnt"), union, Mounted("/mnt"), -1, cast(GracefulShutdown, None)
        )
        service.traffic = traffic
        bell, ring = os.pipe()
        os.write(ring, b"a client")
        reporting = threading.Thread(target=mounted_union._report, args=(service, bell, 1))
        reporting.start()
        reporting.join(0.3)
        assert served == []
        traffic.calls = calls
        reporting.join()
        os.close(bell)
        os.close(ring)
    assert served == [calls]


def test_root_reads_far_ahead(root_user: User, scratch: Path, fuse_device: Path) -> None:
    """A file that is read from end to end takes a message a megabyte, not one for every 128 kB."""
    del fuse_device
    for name in ("lower", "mnt"):
        (scratch / name).mkdir()
    (scratch / "lower/big").write_bytes(os.urandom(8 << 20))
    with mounts.mounted([scratch / "lower"], scratch / "mnt", user=root_user, transport="kernel") as mnt:
        there = topmost_at(str(mnt))
        assert there is not None
        if not os.access(f"/sys/class/bdi/0:{there.minor}/read_ahead_kb", os.W_OK):
            pytest.skip("/sys cannot be written here")
        root_user.run(["cat", mnt / "big"])
        messages = json.loads(root_user.unionfs("stats", "--json", mnt).stdout)["messages"]
    assert messages["READ"] <= 16
