"""Mounting without a daemon: descriptors, the mount's entry in mountinfo, and refusals. The mounted trees are never
accessed, since no daemon would answer.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import mountinfo as seen
from tests.support.users import User
from unionfs.fuse import mounting
from unionfs.fuse.mounting import MountError, MountOptions
from unionfs.syscalls import mountinfo

_MOUNT_AND_REPORT = """
import sys
from unionfs.fuse import mounting
from unionfs.fuse.mounting import MountError, MountOptions
try:
    mountpoint = mounting.check_mountpoint(sys.argv[1])
    fd = mounting.mount_union(mountpoint, MountOptions(allow_other=len(sys.argv) > 2 or None))
except MountError as error:
    print(error.errno, error, error.hint, sep="\\n")
    sys.exit(1)
print(*[line.split(" ", 4)[4] for line in open("/proc/self/mountinfo") if f" {mountpoint} " in line])
mounting.unmount(mountpoint)
print(*[line for line in open("/proc/self/mountinfo") if f" {mountpoint} " in line])
"""
"""Run as somebody else: mounts at argv[1], prints the line of mountinfo, unmounts, prints what is left."""


@pytest.fixture
def mountpoint(scratch: Path, fuse_device: Path) -> Path:
    del fuse_device
    directory = scratch / "mnt"
    directory.mkdir()
    directory.chmod(0o755)
    return directory


@contextmanager
def _mounted(mountpoint: Path, options: MountOptions) -> Iterator[int]:
    fd = mounting.mount_union(mounting.check_mountpoint(os.fspath(mountpoint)), options)
    try:
        yield fd
    finally:
        os.close(fd)
        mounting.unmount(os.fspath(mountpoint), lazy=True)


@pytest.mark.usefixtures("root_user")
def test_root_mounts_by_itself(mountpoint: Path) -> None:
    with _mounted(mountpoint, MountOptions(source="some thing")) as fd:
        assert not os.get_inheritable(fd)
        there = mountinfo.topmost_at(os.fspath(mountpoint))
        assert there is not None
        assert (there.fstype, there.source) == ("fuse.unionfs", "some thing")
        assert {"rw", "nodev"} <= set(there.options.split(","))
        assert "nosuid" not in there.options
        assert "default_permissions,allow_other" in _mount_seen_at(mountpoint).options
        assert mounting.connection_at(os.fspath(mountpoint)) == there.minor
    assert seen.mount_at(mountpoint) is None


@pytest.mark.usefixtures("root_user")
@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (MountOptions(read_only=True), {"ro"}),
        (MountOptions(suid=False), {"nosuid"}),
        (MountOptions(exec=False), {"noexec"}),
    ],
)
def test_mount_flags(mountpoint: Path, options: MountOptions, wanted: set[str]) -> None:
    with _mounted(mountpoint, options):
        there = mountinfo.topmost_at(os.fspath(mountpoint))
        assert there is not None
        assert wanted <= set(there.options.split(","))


@pytest.mark.usefixtures("root_user")
def test_dev_lets_device_files_work(mountpoint: Path) -> None:
    with _mounted(mountpoint, MountOptions(dev=True, allow_other=False)):
        there = mountinfo.topmost_at(os.fspath(mountpoint))
        assert there is not None
        assert "nodev" not in there.options
        assert "allow_other" not in _mount_seen_at(mountpoint).options


def test_an_ordinary_user_mounts_through_fusermount3(ordinary_user: User, mountpoint: Path) -> None:
    ordinary_user.own(mountpoint)
    said = _mount_and_report(ordinary_user, mountpoint).splitlines()
    assert f"{mountpoint} rw,nosuid,nodev" in said[0]
    assert f"fuse.unionfs unionfs rw,user_id={ordinary_user.uid}" in said[0]
    assert "allow_other" not in said[0]
    assert said[1] == ""


def test_root_of_a_user_namespace_mounts_by_itself(ordinary_user: User, mountpoint: Path) -> None:
    if not shutil.which("unshare"):
        pytest.skip("unshare is missing (Debian package util-linux)")
    ordinary_user.own(mountpoint)
    said = ordinary_user.run(["unshare", "--map-root-user", "--mount", *_python(mountpoint)]).stdout.splitlines()
    assert "fuse.unionfs unionfs rw,user_id=0,group_id=0,default_permissions,allow_other" in said[0]
    assert said[1] == ""


def test_allow_other_needs_the_administrator(ordinary_user: User, mountpoint: Path) -> None:
    if "\nuser_allow_other" in Path("/etc/fuse.conf").read_text():
        pytest.skip("/etc/fuse.conf allows allow_other to everybody")
    ordinary_user.own(mountpoint)
    said = _mount_and_report(ordinary_user, mountpoint, "allow_other")
    assert f"mount failed: {mountpoint}: option allow_other only allowed" in said
    assert "add a line user_allow_other to /etc/fuse.conf" in said


def test_a_directory_of_another_user_is_refused(ordinary_user: User, mountpoint: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs a directory that belongs to somebody else")
    said = _mount_and_report(ordinary_user, mountpoint)
    assert f"mount failed: {mountpoint}: user has no write access" in said
    assert "directory that it owns" in said


def test_without_fusermount3_the_package_is_named(ordinary_user: User, mountpoint: Path, scratch: Path) -> None:
    ordinary_user.own(mountpoint)
    empty = scratch / "bin"
    empty.mkdir()
    done = ordinary_user.run(["env", f"PATH={empty}", *_python(mountpoint)], check=False)
    code, sentence, hint = done.stdout.splitlines()
    assert int(code) == errno.ENOENT
    assert sentence == f"mount failed: {mountpoint}: fusermount3 cannot be run: No such file or directory"
    assert "install the package fuse3" in hint


def test_a_mountpoint_must_be_a_directory_that_exists(scratch: Path) -> None:
    missing = os.fspath(scratch / "missing")
    with pytest.raises(MountError, match=f"mount failed: {missing}: the mountpoint does not exist") as refused:
        mounting.check_mountpoint(missing)
    assert refused.value.hint == f"make it: mkdir -p {missing}"
    file = scratch / "file"
    file.touch()
    with pytest.raises(MountError, match="is not a directory") as refused:
        mounting.check_mountpoint(os.fspath(file))
    assert refused.value.errno == errno.ENOTDIR


@pytest.mark.usefixtures("root_user")
def test_a_union_is_not_covered_by_another_unless_asked(mountpoint: Path) -> None:
    with _mounted(mountpoint, MountOptions()):
        with pytest.raises(MountError, match="a union is mounted there already") as refused:
            mounting.check_mountpoint(f"{mountpoint}/")
        assert refused.value.errno == errno.EBUSY
        assert refused.value.hint == f"unmount it first: unionfs umount {mountpoint}/"


def test_symlinks_are_resolved(scratch: Path) -> None:
    (scratch / "real" / "mnt").mkdir(parents=True)
    (scratch / "link").symlink_to("real")
    (scratch / "last").symlink_to("real/mnt")
    wanted = os.fspath(scratch / "real" / "mnt")
    assert mounting.check_mountpoint(os.fspath(scratch / "link" / "mnt")) == wanted
    assert mounting.check_mountpoint(os.fspath(scratch / "last")) == wanted


@pytest.mark.usefixtures("root_user")
def test_a_failed_unmount_gives_the_reason(mountpoint: Path) -> None:
    with pytest.raises(MountError, match=r"umount failed: .*: nothing is mounted there") as refused:
        mounting.unmount(os.fspath(mountpoint))
    assert refused.value.errno == errno.EINVAL


@pytest.mark.usefixtures("root_user")
def test_an_inherited_descriptor_is_used_unchanged(mountpoint: Path) -> None:
    with _mounted(mountpoint, MountOptions()) as fd:
        name = f"/dev/fd/{fd}"
        assert mounting.inherited_fd(name) == fd
        assert mounting.check_mountpoint(name) == name
        assert mounting.mount_union(name, MountOptions()) == fd


def test_an_inherited_descriptor_must_be_fuse() -> None:
    with open(os.devnull) as other, pytest.raises(MountError, match="is not an open /dev/fuse"):
        mounting.mount_union(f"/dev/fd/{other.fileno()}", MountOptions())
    with pytest.raises(MountError, match="no such descriptor was inherited"):
        mounting.mount_union("/dev/fd/99999", MountOptions())
    assert mounting.inherited_fd("/dev/fd/1/x") is None


def _mount_seen_at(mountpoint: Path) -> seen.Mount:
    mount = seen.mount_at(mountpoint)
    assert mount is not None
    return mount


def _python(mountpoint: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", _MOUNT_AND_REPORT, os.fspath(mountpoint), *more]


def _mount_and_report(user: User, mountpoint: Path, *more: str) -> str:
    return user.run(_python(mountpoint, *more), check=False).stdout
