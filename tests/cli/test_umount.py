"""`unionfs umount`: it waits for the end of the daemon, and says why it cannot unmount."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fuse.daemons import Daemon, daemon_of
from tests.support.marks import as_ordinary_user
from tests.support.mountinfo import mount_at
from tests.support.timing import limit
from tests.support.users import LET_GO, User
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = pytest.mark.transport(DEFAULT_TRANSPORT)


@pytest.fixture
def mountpoint(user: User, scratch: Path, fuse_device: Path) -> Path:
    """A read-only union of one file."""
    del fuse_device
    lower, mnt = scratch / "lower", scratch / "mnt"
    for directory in (lower, mnt):
        directory.mkdir()
        user.own(directory)
    (lower / "file").write_text("content")
    user.unionfs("mount", "--lower", lower, mnt)
    return mnt


@contextmanager
def _user_inside(user: User, mountpoint: Path) -> Iterator[None]:
    code = "import sys; f = open(sys.argv[1]); print(flush=True); input(); print(f.read())"
    program = user.popen([sys.executable, "-I", "-S", "-c", code, os.fspath(mountpoint / "file")])
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == "\n"
        try:
            yield
        finally:
            out, _ = program.communicate("\n", timeout=limit(30))
    assert out == "content\n"


def test_the_daemon_has_ended_when_umount_returns(user: User, mountpoint: Path) -> None:
    with daemon_of(mountpoint) as daemon:
        done = user.unionfs("umount", mountpoint)
        assert daemon.has_ended(0)
    assert (done.stdout, done.stderr) == ("", "")
    assert mount_at(mountpoint) is None


@as_ordinary_user
def test_several_mountpoints_at_once_and_by_other_paths(user: User, mountpoint: Path, scratch: Path) -> None:
    second = scratch / "second"
    second.mkdir()
    user.own(second)
    (scratch / "link").symlink_to("second")
    user.unionfs("mount", "--lower", scratch / "lower", second)
    with daemon_of(second) as other, daemon_of(mountpoint) as daemon:
        user.run([*user.unionfs_cmd, "umount", "mnt/", scratch / "link"], cwd=scratch)
        assert daemon.has_ended(0)
        assert other.has_ended(0)


def test_a_union_in_use_stays(user: User, mountpoint: Path) -> None:
    with daemon_of(mountpoint) as daemon:
        with _user_inside(user, mountpoint):
            done = user.unionfs("umount", mountpoint, check=False)
            assert done.returncode == 1
            assert done.stderr.startswith(f"unionfs: umount failed: {mountpoint}: ")
            assert "busy" in done.stderr
            assert f"unionfs umount --lazy {mountpoint}" in done.stderr
            assert mount_at(mountpoint) is not None
        user.unionfs("umount", mountpoint)
        assert daemon.has_ended(0)


@as_ordinary_user
def test_what_is_in_use_for_a_moment_is_unmounted(user: User, mountpoint: Path) -> None:
    code = "import sys, time; f = open(sys.argv[1]); print(flush=True); time.sleep(0.3)"
    program = user.popen([sys.executable, "-I", "-S", "-c", code, os.fspath(mountpoint / "file")])
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == "\n"
        user.unionfs("umount", mountpoint)
    assert mount_at(mountpoint) is None


@as_ordinary_user
def test_lazy_detaches_the_mount_and_its_users_continue(user: User, mountpoint: Path) -> None:
    with daemon_of(mountpoint) as daemon:
        with _user_inside(user, mountpoint):
            user.unionfs("umount", "--lazy", mountpoint)
            assert mount_at(mountpoint) is None
            assert not daemon.has_ended(0)
        assert daemon.has_ended()


_HOLD = (
    *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
    LET_GO + 'echo; read line; umount "$0"; read line',
)


def test_processes_that_still_have_the_mount_are_named(root_user: User, scratch: Path, fuse_device: Path) -> None:
    """Another mount namespace keeps a union: it is gone here, and the message says whose that is and how to end it."""
    del fuse_device
    mnt = scratch / "m n"
    for directory in (scratch / "lower", mnt):
        directory.mkdir()
    root_user.unionfs("mount", "--lower", scratch / "lower", mnt)
    with daemon_of(mnt) as daemon, root_user.popen([*_HOLD, mnt]) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "\n"
            done = root_user.unionfs("umount", mnt, check=False)
            assert done.returncode == 1
            assert f"umount failed: {mnt}: unmounted here, but other mount namespaces still show it" in done.stderr
            assert f"of process {holder.pid} (sh); its daemon has not ended (process {daemon.pid})" in done.stderr
            assert f"nsenter -t {holder.pid} -m umount '{mnt}'" in done.stderr
            assert mount_at(mnt) is None
            assert not daemon.has_ended(0)
            hint = next(line for line in done.stderr.splitlines() if "nsenter" in line)
            root_user.run(["sh", "-c", hint[hint.index("nsenter") :]])
            assert daemon.has_ended()
        finally:
            holder.kill()


@as_ordinary_user
def test_what_is_not_a_union_is_left_alone(scratch: Path, user: User) -> None:
    done = user.unionfs("umount", scratch, check=False)
    assert (done.returncode, done.stderr) == (1, f"unionfs: umount failed: {scratch}: nothing is mounted there\n")
    done = user.unionfs("umount", "/proc", check=False)
    assert done.returncode == 1
    assert "umount failed: /proc: not a union but proc" in done.stderr
    done = user.unionfs("umount", check=False)
    assert done.returncode == 2


def test_somebody_elses_union_is_refused(root_user: User, ordinary_user: User, scratch: Path) -> None:
    lower, mnt = scratch / "lower", scratch / "mnt"
    lower.mkdir()
    mnt.mkdir()
    root_user.unionfs("mount", "--lower", lower, mnt)
    with daemon_of(mnt) as daemon:
        done = ordinary_user.unionfs("umount", mnt, check=False)
        assert done.returncode == 1
        assert f"umount failed: {mnt}: " in done.stderr
        assert _is_serving(daemon, mnt)


def _is_serving(daemon: Daemon, mountpoint: Path) -> bool:
    return mount_at(mountpoint) is not None and not daemon.has_ended(0)
