"""Volumes with and without a name, and tars through `unionfs cp`: of containers that run and that do not."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.cli.conftest import Box
from tests.support.marks import as_ordinary_user
from tests.support.users import User
from unionfs.cli.errors import CommandError
from unionfs.cli.mount_flags import volume_from
from unionfs.containers.volumes import VolumeStore


@pytest.fixture(autouse=True)
def clear(box: Box) -> None:
    names = box("volume", "ls", "-q").stdout.split()
    if names:
        box("volume", "rm", *names)


def names(box: Box) -> list[str]:
    return box("volume", "ls", "-q").stdout.split()


def test_a_named_volume_begins_as_the_image_and_outlives_containers(box: Box) -> None:
    told = box("run", "--rm", "-v", "data:/etc/apt", "debian:1", "sh", "-c", "ls /etc/apt; echo x > /etc/apt/mine")
    assert "sources.list" in told.stdout
    assert names(box) == ["data"]
    told = box("run", "--name", "user", "--mount", "type=volume,src=data,dst=/m,readonly", "debian:1", "sh", "-c",
               "cat /m/mine; touch /m/no", check=False)  # fmt: skip
    assert (told.stdout, "Read-only" in told.stderr) == ("x\n", True)
    refused = box("volume", "rm", "data", check=False)
    assert (refused.returncode, "in use by user" in refused.stderr) == (1, True)
    (shown,) = json.loads(box("inspect", "user").stdout)[0]["Mounts"]
    assert (shown["Type"], shown["Name"], shown["RW"]) == ("volume", "data", False)
    assert json.loads(box("volume", "ls", "--json").stdout)[0]["UsedBy"] == ["user"]
    box("rm", "-v", "user")
    assert names(box) == ["data"]  # it has a name
    box("volume", "rm", "data")
    assert box("volume", "inspect", "data", check=False).returncode == 1


@as_ordinary_user
def test_volumes_without_a_name(box: Box) -> None:
    box("run", "--name", "an", "-v", "/srv/own", "set:1", "touch /etc/apt/new /srv/own/new")
    assert len(names(box)) == 2
    box("start", "-a", "an")
    box("rm", "an")
    assert len(names(box)) == 2
    box("volume", "prune")
    assert names(box) == []
    box("run", "--name", "an", "set:1", "true")
    box("rm", "-v", "an")
    box("run", "--rm", "set:1", "true")
    assert names(box) == []


@as_ordinary_user
def test_tmpfs_with_options(box: Box) -> None:
    script = "stat -c %a /t; dd if=/dev/zero of=/t/x bs=1M count=2 2>&1 | grep -c 'No space'"
    assert box("run", "--rm", "--tmpfs", "/t:size=1m,mode=700", "debian:1", "sh", "-c", script).stdout == "700\n1\n"
    for wrong in ("/t:colour=red", "/t:dev", "relative", "/"):
        assert box("run", "--rm", "--tmpfs", wrong, "debian:1", "true", check=False).returncode == 125


@as_ordinary_user
def test_the_inner_mount_shows_whatever_the_order_of_the_flags(box: Box, scratch: Path, user: User) -> None:
    user.own(scratch)
    binds = ("-v", f"{scratch}:/x", "-v", f"{scratch}:/a/b/c")
    asked = ("--read-only", "--tmpfs", "/a/b", "--tmpfs", "/a", *binds, "--tmpfs", "/x/t", "--tmpfs", "/run/app")
    script = "for path in /a /a/b /x /x/t /run /run/app; do touch $path/new && stat -f -c %T $path; done"
    shown = box("run", "--rm", *asked, "debian:1", "sh", "-c", f"{script}; ls /a/b/c").stdout
    assert [line == "tmpfs" for line in shown.splitlines()] == [True, True, False, True, True, True, False, False]
    assert shown.splitlines()[-2:] == ["new", "t"]


@as_ordinary_user
@pytest.mark.parametrize("runtime", ["unionfs", "crun"])
def test_options_are_applied(box: Box, scratch: Path, user: User, runtime: str) -> None:
    user.own(scratch)
    if not shutil.which(runtime) and runtime != "unionfs":
        pytest.skip(f"{runtime} is not installed")
    asked = (
        *("--tmpfs", "/t/a:noexec", "--tmpfs", "/t/b:ro,noatime,size=1m", "--mount", "type=tmpfs,dst=/t/c,ro"),
        *("-v", f"{scratch}:/t/b/in:cached", "-v", f"{scratch}:/t/d:ro,delegated"),
    )
    script = r"sed -nE 's,^\S+ (/t\S*) \S+ (\S+) .*,\1 \2,p' /proc/self/mounts"
    lines = box("run", "--rm", "--runtime", runtime, *asked, "debian:1", "sh", "-c", script).stdout.splitlines()
    shown = {path: set(options.split(",")) for path, options in map(str.split, lines)}
    assert {"rw", "nosuid", "nodev", "noexec"} <= shown["/t/a"]
    assert {"ro", "nosuid", "nodev", "noatime", "size=1024k"} <= shown["/t/b"]
    assert "rw" in shown["/t/b/in"]
    assert "ro" in shown["/t/c"]
    assert "ro" in shown["/t/d"]


@as_ordinary_user
def test_options_without_effect_are_refused(user: User) -> None:
    for wrong in (
        ("-v", "/etc:/x:rshared"),
        ("-v", "/etc:/x:slave"),
        ("--mount", "type=bind,src=/etc,dst=/x,bind-propagation=rslave"),
        ("--mount", "type=bind,src=/etc,dst=/x,tmpfs-size=1m"),
        ("--mount", "type=bind,src=/etc,dst=/x,readonly=perhaps"),
        ("--mount", "type=tmpfs,src=/etc,dst=/x"),
        ("--mount", "type=volume,dst=/x,readonly"),
        ("--mount", "type=npipe,src=/etc,dst=/x"),
    ):
        refused = user.run([*user.unionfs_cmd, "run", "--rm", *wrong, "/", "true"], check=False)
        assert (refused.returncode, refused.stderr[:18]) == (125, "unionfs: run: bad ")


@as_ordinary_user
@pytest.mark.parametrize("state", ["running", "stopped"])
def test_cp_reaches_volumes(box: Box, state: str, scratch: Path, user: User) -> None:
    user.own(scratch)
    script = "test -e /v/x && sleep 1000; echo in > /v/x"
    box("run", "--name", "c", "-v", "data:/v", "-v", f"{scratch}:/h:ro", "debian:1", "sh", "-c", script)
    (scratch / "there").write_text("there\n")
    user.own(scratch)
    if state == "running":
        box("start", "c")
    tar = box("cp", "c:/v/x", "-")
    with tarfile.open(fileobj=io.BytesIO(tar.stdout.encode("utf-8", "surrogateescape"))) as archive:
        assert archive.getnames() == ["x"]
    box("cp", scratch / "there", "c:/v/there")
    assert box("cp", scratch / "there", "c:/h/no", check=False).returncode == 1
    assert box("cp", "c:/h/there", scratch / "back").returncode == 0
    assert (scratch / "back").read_text() == "there\n"
    box("rm", "-f", "c")
    assert box("run", "--rm", "-v", "data:/v", "debian:1", "ls", "/v").stdout == "there\nx\n"


@as_ordinary_user
def test_tars_in_and_out(box: Box) -> None:
    script = "mkdir -p /d/e; echo x > /d/e/f; ln /d/e/f /d/e/g; ln -s f /d/e/l; chmod 751 /d/e; mkfifo /d/p"
    script += "; touch -d @7 /d/e"
    box("run", "--name", "t", "debian:1", "sh", "-c", script)
    tar = box("cp", "t:/d", "-").stdout
    with tarfile.open(fileobj=io.BytesIO(tar.encode("utf-8", "surrogateescape"))) as archive:
        assert sorted(archive.getnames()) == ["d", "d/e", "d/e/f", "d/e/g", "d/e/l", "d/p"]
    box("cp", "-", "t:/srv", stdin=tar)
    box("start", "t")
    tar = box("cp", "t:/srv/d/.", "-").stdout
    with tarfile.open(fileobj=io.BytesIO(tar.encode("utf-8", "surrogateescape"))) as archive:
        inside = archive.getmember("./e")
        assert (inside.mode, inside.mtime) == (0o751, 7)
        assert archive.getmember("./e/g").islnk()
    wrong = box("cp", "-", "t:/srv", stdin="this is not a tar" * 100, check=False)
    assert (wrong.returncode, "this is not a tar" in wrong.stderr) == (1, True)
    assert box("cp", "-", "t:/etc/passwd", stdin=tar, check=False).returncode == 1


@as_ordinary_user
def test_a_hostile_tar_stays_in_the_container(box: Box, scratch: Path, user: User) -> None:
    user.own(scratch)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(scratch)
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("out/planted"))
        archive.addfile(tarfile.TarInfo("../up"))
    box("run", "--name", "h", "debian:1", "true")
    done = box("cp", "-", "h:/srv", stdin=data.getvalue().decode("latin-1"), check=False)
    assert done.returncode == 1
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("text", ["a b:/x", "name:/x:O", "name:relative", ":/x", "name:/"])
def test_volumes_that_are_none(text: str, tmp_path: Path) -> None:
    with pytest.raises(CommandError):
        volume_from(text, VolumeStore(str(tmp_path)))
