"""The root filesystem of a container: layers, volumes, and that nothing in it leads out of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.launcher.conftest import Run
from tests.support.users import User
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = pytest.mark.transport(DEFAULT_TRANSPORT)


def test_layers_are_merged_and_stay_as_they_are(run: Run, debian: Path, user: User, scratch: Path) -> None:
    (scratch / "top/etc").mkdir(parents=True)
    (scratch / "top/etc/motd").write_text("from the top\n")
    (scratch / "top/etc/.wh.issue").touch()
    user.own(scratch / "top")
    script = "cat /etc/motd; test -e /etc/issue || echo hidden; echo changed > /etc/motd; rm /etc/passwd; cat /etc/motd"
    told = run("--lower", scratch / "top", "--lower", debian, "sh", "-c", script)
    assert told.stdout == "from the top\nhidden\nchanged\n"
    assert (scratch / "top/etc/motd").read_text() == "from the top\n"
    assert (debian / "etc/passwd").exists()


def test_read_only(run: Run, debian: Path) -> None:
    script = "for dir in / /etc /tmp /run /var/tmp /dev/shm; do touch $dir/file && echo $dir; done"
    assert run("--read-only", debian, "sh", "-c", script, check=False).stdout.split() == [
        "/tmp",
        "/run",
        "/var/tmp",
        "/dev/shm",
    ]


def test_volumes(run: Run, debian: Path, user: User, scratch: Path) -> None:
    (scratch / "dir").mkdir()
    (scratch / "dir/file").write_text("of the host\n")
    user.own(scratch)
    volumes = ("-v", f"{scratch}/dir:/new/rw", "-v", f"{scratch}/dir:/ro:ro", "-v", f"{scratch}/dir:/aside:O")
    script = """
        cat /new/rw/file /file; echo written > /new/rw/made
        touch /ro/made || echo refused
        rm /aside/file; echo aside > /aside/made; ls /aside; cat /ro/made
        grep -o ' /new/rw [^ ]* [^,]*,nosuid,nodev' /proc/self/mounts | wc -l"""
    told = run(*volumes, "-v", f"{scratch}/dir/file:/file", debian, "sh", "-c", script)
    assert told.stdout == "of the host\nof the host\nrefused\nmade\nwritten\n1\n"
    assert (scratch / "dir/made").read_text() == "written\n"
    assert (scratch / "dir/file").read_text() == "of the host\n"
    assert (scratch / "dir/made").stat().st_uid == user.uid


def test_volumes_in_volumes_and_relative_ones(run: Run, debian: Path, user: User, scratch: Path) -> None:
    (scratch / "a/b").mkdir(parents=True)
    (scratch / "c").mkdir()
    (scratch / "c/mark").touch()
    user.own(scratch)
    told = run("-v", "./c:/x/b", "-v", "./a:/x", debian, "ls", "/x/b", cwd=scratch)
    assert told.stdout == "mark\n"


def test_a_target_never_leads_out_of_the_container(run: Run, debian: Path, user: User, scratch: Path) -> None:
    top = scratch / "top"
    top.mkdir()
    (top / "up").symlink_to("../../../../../../../../../.." + os.fspath(scratch))
    (top / "absolute").symlink_to(scratch)
    (scratch / "source").mkdir()
    user.own(scratch)
    volumes = (
        "-v",
        f"{scratch}/source:/up/one",
        "-v",
        f"{scratch}/source:/absolute/two",
        "-v",
        f"{scratch}/source:/three/../../../four",
    )
    script = f"ls -d {scratch}/one {scratch}/two /four"
    told = run(*volumes, "--lower", top, "--lower", debian, "sh", "-c", script)
    assert told.stdout.split() == ["/four", f"{scratch}/one", f"{scratch}/two"]
    assert sorted(os.listdir(scratch)) == ["source", "top"]


def test_what_is_mounted_is_no_change(user: User, debian: Path, scratch: Path, tidy: None) -> None:
    (scratch / "dir").mkdir()
    (scratch / "file").touch()
    user.own(scratch)
    volumes = (
        "-v",
        f"{scratch}/dir:/new/dir",
        "-v",
        f"{scratch}/file:/other/new/file",
        "-v",
        f"{scratch}/dir:/aside:O",
    )
    user.unionfs(
        "run", "--name", "still", *volumes, "--tmpfs", "/t/m", debian, "ls", "/new/dir", "/other/new/file", "/t/m"
    )
    assert user.unionfs("diff", "still").stdout == ""
    user.unionfs("rm", "still")


def test_tmpfs(run: Run, debian: Path) -> None:
    assert run("--tmpfs", "/opt", debian, "sh", "-c", "stat -f -c %T /opt; stat -c %a /opt").stdout == "tmpfs\n1777\n"


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
def test_a_symlink_for_a_mountpoint_of_ours_is_refused(
    run: Run, user: User, fuse_device: Path, scratch: Path, name: str
) -> None:
    (scratch / "root").mkdir()
    (scratch / "root" / name).symlink_to("/etc")
    user.own(scratch)
    ended = run(scratch / "root", "true", check=False)
    assert ended.returncode == 125
    assert f"/{name}: a symlink" in ended.stderr


def test_strange_files_for_passwd_are_not_read(run: Run, debian: Path, user: User, scratch: Path) -> None:
    top = scratch / "top"
    (top / "etc").mkdir(parents=True)
    (top / "etc/passwd").symlink_to("/dev/zero")
    os.mkfifo(top / "etc/group")
    user.own(scratch)
    ended = run("-u", "www-data", "--lower", top, "--lower", debian, "true", check=False)
    assert (ended.returncode, "no such user" in ended.stderr) == (125, True)
    assert run("-u", "33:34", "--lower", top, "--lower", debian, "id", "-u").stdout == "33\n"


def test_an_empty_directory_becomes_a_root_filesystem(run: Run, user: User, fuse_device: Path, scratch: Path) -> None:
    (scratch / "root").mkdir()
    user.own(scratch)
    ended = run(scratch / "root", "/bin/sh", check=False)
    assert (ended.returncode, os.listdir(scratch / "root")) == (127, [])


def test_names_of_the_machine(run: Run, debian: Path) -> None:
    script = "cat /etc/hostname; tail -1 /etc/hosts; cat /etc/resolv.conf"
    hostname, address, *resolver = run("--hostname", "castle", debian, "sh", "-c", script).stdout.splitlines()
    assert (hostname, address) == ("castle", "127.0.1.1 castle")
    assert resolver == Path("/etc/resolv.conf").read_text().splitlines()
    without = run("--network", "none", debian, "grep", "-c", " /etc/", "/proc/self/mounts", check=False)
    assert without.stdout == "0\n"
