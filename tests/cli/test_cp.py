"""`unionfs cp`: both directions, of containers that run and that do not, and never out of the container."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Box
from tests.support import tiny
from tests.support.marks import as_ordinary_user
from tests.support.rootfs import unpack
from tests.support.users import User


@pytest.fixture(params=["running", "stopped"])
def target(request: pytest.FixtureRequest, box: Box) -> Iterator[str]:
    """A container named so, with a few files."""
    script = "mkdir -p /d/e; echo x > /d/e/f; ln -s f /d/e/link; chown -R games /d; touch /ready"
    box("run", "--name", "c", "debian:1", "sh", "-c", f"test -e /ready && sleep 1000; {script}")
    if request.param == "running":
        box("start", "c")
    yield "c"
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "/images/" in line]


@pytest.fixture
def place(user: User, scratch: Path) -> Path:
    """A directory of the user."""
    user.own(scratch)
    return scratch


def test_out_of_the_container(box: Box, target: str, place: Path, user: User) -> None:
    box("cp", f"{target}:/d", place / "new")
    assert (place / "new/e/f").read_text() == "x\n"
    assert os.readlink(place / "new/e/link") == "f"
    assert (place / "new/e/f").stat().st_uid == user.uid
    box("cp", f"{target}:/d/e/f", place)
    box("cp", f"{target}:d/e/f", place / "named")
    (place / "into").mkdir()
    user.own(place / "into")
    box("cp", f"{target}:/d/.", place / "into")
    assert sorted(os.listdir(place)) == ["f", "into", "named", "new"]
    assert os.listdir(place / "into") == ["e"]


def test_into_the_container(box: Box, target: str, place: Path, user: User) -> None:
    (place / "t/u").mkdir(parents=True)
    (place / "t/u/v").write_text("v\n")
    (place / "t/u/v").chmod(0o741)
    user.own(place)
    box("cp", place / "t", f"{target}:/srv")
    box("cp", place / "t/u/v", f"{target}:/d/e/f")
    box("cp", place / "t/.", f"{target}:/other")
    if box("ps", "-q").stdout == "":
        box("start", target)
    script = "cat /srv/t/u/v /d/e/f /other/u/v; stat -c '%u %g %a' /srv/t/u/v"
    assert box("exec", target, "sh", "-c", script).stdout == "v\nv\nv\n0 0 741\n"


def test_no_symlink_leads_out(box: Box, target: str, place: Path, user: User) -> None:
    box("start", target)
    script = f"ln -s {place} /srv/out; ln -s ../../../../../../../..{place} /srv/up; mkdir -p {place}"
    box("exec", target, "sh", "-c", script)
    (place / "secret").write_text("secret\n")
    user.own(place)
    assert box("cp", f"{target}:/srv/out/secret", place / "got", check=False).returncode == 1
    for way in ("out", "up"):
        box("cp", place / "secret", f"{target}:/srv/{way}/planted-{way}")
    assert sorted(os.listdir(place)) == ["secret"]


@as_ordinary_user
def test_what_cannot_be(box: Box, target: str, place: Path) -> None:
    for words in (("a", "b"), ("x:/a", "y:/b")):
        assert box("cp", *words, check=False).returncode == 2
    missing = box("cp", f"{target}:/nosuch", place, check=False)
    assert (missing.returncode, "/nosuch: No such file or directory" in missing.stderr) == (1, True)
    assert box("cp", place / "nosuch", f"{target}:/", check=False).returncode == 1
    assert box("cp", f"{target}:/d", "/dev/null", check=False).returncode == 1
    assert box("cp", "nobody:/d", place, check=False).returncode == 1


@as_ordinary_user
def test_a_file_is_written_where_the_links_lead(box: Box, target: str, place: Path, user: User) -> None:
    """As cp(1) and docker write through a symlink; inside the container's root, and outside of it likewise."""
    (place / "new").write_text("new\n")
    (place / "old").write_text("old\n")
    (place / "link").symlink_to("old")
    (place / "absolute").symlink_to("/d/e/link")
    (place / "loop").symlink_to("loop")
    user.own(place)
    box("cp", place / "absolute", f"{target}:/d/absolute")
    box("cp", place / "loop", f"{target}:/d/loop")
    box("cp", place / "new", f"{target}:/d/absolute")
    assert box("cp", place / "new", f"{target}:/d/loop", check=False).returncode == 1
    box("cp", f"{target}:/d/e/f", place / "link")
    assert (os.readlink(place / "link"), (place / "old").read_text()) == ("old", "new\n")
    if box("ps", "-q").stdout == "":
        box("start", target)
    script = "readlink /d/absolute /d/e/link; cat /d/e/f"
    assert box("exec", target, "sh", "-c", script).stdout == "/d/e/link\nf\nnew\n"


@as_ordinary_user
def test_files_that_do_not_say_their_size(box: Box, place: Path) -> None:
    """Those of /proc say 0 and those of /sys 4096."""
    box("run", "-d", "--name", "c", "debian:1", "sleep", "1000")
    for path in ("/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/sys/kernel/ostype"):
        expected = box("exec", "c", "cat", path).stdout
        assert expected
        box("cp", f"c:{path}", place / "copy")
        assert (place / "copy").read_text() == expected
        stream = box("cp", f"c:{path}", "-").stdout.encode()
        with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
            content = archive.extractfile(archive.getmembers()[0])
            assert content is not None
            assert content.read().decode() == expected


@as_ordinary_user
def test_the_whole_of_a_container_that_runs(user: User, place: Path, fuse_device: Path) -> None:
    """Without the live /proc, /sys and /dev, as of one that does not run."""
    lower = unpack(tiny.make(place / "tiny.tar"), place / "root", user)
    user.unionfs("run", "-d", "--name", "c", "--lower", lower, "sh", "-c", "echo new >/etc/new; sleep 1000")
    try:
        to_file = ("sh", "-c", 'file=$1; shift; exec "$@" >"$file"', "sh", os.fspath(place / "all.tar"))
        user.run([*to_file, *user.unionfs_cmd, "cp", "c:/", "-"])
        user.unionfs("cp", "c:/.", place / "all")
    finally:
        user.unionfs("rm", "-f", "c")
    with tarfile.open(place / "all.tar") as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
    assert {"etc/new", "bin/sh", "proc", "sys", "dev"} <= names
    assert not [name for name in names if name.startswith(("proc/", "sys/", "dev/"))]
    assert names - {"."} == {str(path.relative_to(place / "all")) for path in (place / "all").rglob("*")}
