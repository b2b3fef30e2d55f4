"""Images that are one file: saved, run, read by other tools, and what is refused."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.layers.test_image_file import squash, write_sif  # noqa: F401 - a fixture
from tests.support import tiny
from tests.support.marks import as_ordinary_user
from tests.support.timing import limit
from tests.support.users import User

pytestmark = [
    pytest.mark.usefixtures("fuse_device"),
    pytest.mark.skipif(not shutil.which("sqfstar"), reason="sqfstar is missing (Debian package squashfs-tools)"),
    pytest.mark.skipif(not shutil.which("squashfuse_ll"), reason="squashfuse is missing (Debian package squashfuse)"),
]

_IMAGE = "tiny:1"


@pytest.fixture(scope="session")
def saved(run_dir: Path) -> dict[str, tuple[Path, Path]]:
    return {}


@pytest.fixture
def files(user: User, saved: dict[str, tuple[Path, Path]]) -> tuple[Path, Path]:
    """An image of two layers as a file: merged, and with the layers separate. The second layer changes and hides."""
    if user.kind not in saved:
        home = user.home / "files"
        home.mkdir()
        user.own(home)
        tar = tiny.make(home / "tiny.tar")
        user.own(home)
        base = ("--change", 'CMD ["sh", "-c", "echo $COLOUR; cat /data/file"]', "--change", "ENV COLOUR=red")
        user.unionfs("import", "--compression", "none", *base, tar, "base:1")
        script = "echo second > /data/file; rm -r /data/dir /data/gone; mkdir /data/dir; ln /etc/motd /m"
        user.unionfs("run", "--name", "made", "base:1", "sh", "-c", script)
        user.unionfs("commit", "-q", "made", _IMAGE, "-c", 'CMD ["sh", "-c", "echo $COLOUR; cat /data/file"]')
        user.unionfs("rm", "made")
        whole, separate = home / "whole.sqfs", home / "separate.sqfs"
        user.unionfs("save", "-q", "--format", "squashfs", _IMAGE, whole)
        user.unionfs("save", "-q", "--format", "squashfs", "--layers", _IMAGE, "-o", separate)
        saved[user.kind] = whole, separate
    return saved[user.kind]


_LIST = """cd /; find . -xdev ! -path './proc*' ! -path './sys*' ! -path './dev*' ! -path './.un*' ! -path './etc/*' |
sort | while read f; do stat -c '%n %F %a %u:%g %h' $f; done; cat /data/file /data/kept/deep/down"""


def test_a_container_of_an_image_file_equals_one_of_the_image(user: User, files: tuple[Path, Path]) -> None:
    shown = user.unionfs("run", "--rm", _IMAGE, "sh", "-c", _LIST).stdout
    assert "second\nkept\n" in shown
    for file in files:
        assert user.unionfs("run", "--rm", file).stdout == "red\nsecond\n"
        listed = user.unionfs("run", "--rm", file, "sh", "-c", _LIST).stdout
        # Directories of a squashfs count their subdirectories, as layers on disk do; the root has one more.
        assert _without_root(listed) == _without_root(shown)
    other = files[0].with_name("other.sqfs")  # as other programs write it: without the copy of the configuration
    content = files[0].read_bytes()
    other.write_bytes(content[: content.rindex(b"unionfs\n")])
    user.own(other)
    assert user.unionfs("run", "--rm", other).stdout == "red\nsecond\n"
    assert b"image" not in subprocess.run(["cat", "/proc/self/mounts"], capture_output=True, check=True).stdout


def _without_root(listed: str) -> list[str]:
    return [line for line in listed.splitlines() if not line.startswith(". ")]


def test_equal_images_give_equal_files_and_other_tools_read_them(user: User, files: tuple[Path, Path]) -> None:
    digests = {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    again = files[0].with_name("again.sqfs")
    time.sleep(1.1)  # the present time is in no file
    user.unionfs("save", "-q", "--format", "squashfs", _IMAGE, again)
    assert hashlib.sha256(again.read_bytes()).hexdigest() in digests
    again.unlink()
    told = subprocess.run(["unsquashfs", "-cat", files[0], "data/file"], capture_output=True, text=True, check=True)
    assert told.stdout == "second\n"
    listed = subprocess.run(["unsquashfs", "-l", files[1]], capture_output=True, text=True, check=True).stdout
    assert "squashfs-root/layers/001/data/.wh.gone" in listed
    assert "squashfs-root/layers/000/data/gone" in listed


def test_changes_of_a_container_of_a_file(user: User, files: tuple[Path, Path]) -> None:
    for number, file in enumerate(files):
        name = f"box{number}"
        script = "echo new > /data/file; rm -f /data/kept/deep/down; touch /t"
        user.unionfs("run", "--name", name, file, "sh", "-c", script)
        assert user.unionfs("start", "-a", name).returncode == 0
        changed = "C /data\nC /data/file\nC /data/kept\nC /data/kept/deep\nD /data/kept/deep/down\nC /data/link\nA /t\n"
        assert user.unionfs("diff", name).stdout == changed
        assert user.unionfs("cp", f"{name}:/data/file", "-").stdout.find("new\n") > 0
        user.unionfs("commit", "-q", name, "of-file:1")
        assert user.unionfs("run", "--rm", "of-file:1", "cat", "/data/file", "/etc/motd").stdout == "new\nwelcome\n"
        refused = user.unionfs("freeze", name, check=False)
        assert "its image is a file, mounted for this container only" in refused.stderr
        user.unionfs("rmi", "of-file:1")
        user.unionfs("rm", name)


def test_a_file_that_was_replaced_is_noticed(user: User, files: tuple[Path, Path]) -> None:
    place = files[0].with_name("place.sqfs")
    shutil.copy(files[0], place)
    user.own(place)
    user.unionfs("create", "--name", "kept", place)
    assert user.unionfs("start", "-a", "kept").stdout == "red\nsecond\n"
    shutil.copy(files[1], place)
    done = user.unionfs("start", "-a", "kept", check=False)
    assert (done.returncode, "it is another image now than when the container was made" in done.stderr) == (125, True)
    place.unlink()
    done = user.unionfs("start", "-a", "kept", check=False)
    assert (done.returncode, f"{place}: No such file or directory" in done.stderr) == (125, True)
    user.unionfs("rm", "kept")


def test_nothing_is_left_of_a_container_whose_monitor_is_killed(user: User, files: tuple[Path, Path]) -> None:
    words = [*user.prefix, *user.unionfs_cmd, "run", "--rm", str(files[0]), "sh", "-c", "echo ready; sleep 100"]
    environment = dict(user.env)
    with subprocess.Popen(words, env=environment, cwd=user.home, stdout=subprocess.PIPE, start_new_session=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        servers = _servers(user)
        assert (len(servers), user.kind) in ((1, "ordinary"), (0, "root"))  # the kernel mounts the file of root
        os.killpg(run.pid, signal.SIGKILL)
    deadline = time.monotonic() + limit(20)
    while _servers(user) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _servers(user) == []
    left = user.unionfs("ps", "-a", "-q").stdout.split()
    if left:
        user.unionfs("rm", "-f", *left, check=False)  # which may go by itself meanwhile
    assert str(files[0]) not in subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout


def _servers(user: User) -> list[str]:
    found = subprocess.run(["pgrep", "-u", str(user.uid), "squashfuse_ll"], capture_output=True, text=True, check=False)
    return found.stdout.split()


@as_ordinary_user
def test_a_sif_is_run_with_its_environment_and_runscript(user: User, files: tuple[Path, Path], scratch: Path) -> None:
    tree = scratch / "tree"
    subprocess.run(["unsquashfs", "-q", "-n", "-d", tree, files[0]], check=True, stdout=subprocess.DEVNULL)
    own = tree / ".singularity.d"
    (own / "env").mkdir(parents=True)
    (own / "env/10-a.sh").write_text("export A=one\n")
    (own / "env/90-b.sh").write_text('export B="$A two $SINGULARITY_NAME"\n')
    (own / "runscript").write_text('#!/bin/sh\necho "run: $B: $*"\n')
    (own / "runscript").chmod(0o755)
    subprocess.run(["mksquashfs", tree, scratch / "t.sqfs", "-quiet", "-no-progress", "-all-root"], check=True)
    image = write_sif(scratch / "image.sif", (scratch / "t.sqfs").read_bytes(), signed=True)
    user.own(image)
    assert user.unionfs("run", "--rm", image, "x", "y").stdout == "run: one two image.sif: x y\n"
    told = user.unionfs("run", "--rm", "--entrypoint", "", image, "sh", "-c", "echo $B; cat /data/file").stdout
    assert told == "one two image.sif\nsecond\n"
    bad = write_sif(scratch / "bad.sif", b"hsqs" + bytes(200))
    user.own(bad)
    done = user.unionfs("run", "--rm", bad, check=False)
    assert (done.returncode, "its squashfs has version 0.0" in done.stderr) == (125, True)


@as_ordinary_user
def test_a_missing_or_failing_tool_is_named(user: User, files: tuple[Path, Path], scratch: Path) -> None:
    path = ("env", f"PATH={scratch}")
    for name in ("newuidmap", "newgidmap"):
        (scratch / name).symlink_to(str(shutil.which(name)))
    done = user.run([*path, *user.unionfs_cmd, "run", "--rm", files[0]], check=False)
    assert "squashfuse_ll is not installed\n  install the package squashfuse" in done.stderr
    out = user.home / "out.sqfs"
    done = user.run([*path, *user.unionfs_cmd, "save", "--format", "squashfs", _IMAGE, out], check=False)
    assert "sqfstar is not installed" in done.stderr
    done = user.unionfs("save", "-q", "--format", "squashfs", "nosuch:1", out, check=False)
    assert (done.returncode, out.exists()) == (5, False)
    data = bytearray(files[0].read_bytes())
    data[200:-200] = bytes(len(data) - 400)  # the tables are gone
    (scratch / "torn.sqfs").write_bytes(data)
    done = user.unionfs("run", "--rm", scratch / "torn.sqfs", check=False)
    assert done.returncode != 0
    assert f"if {scratch}/torn.sqfs is damaged, copy or download it again" in done.stderr
    assert _servers(user) == []


_SHOW = "import os; print({name: sorted(os.listxattr(name)) for name in ('/data/file', '/data')})"


@as_ordinary_user
@pytest.mark.parametrize("option", ["-xattrs", "-no-xattrs"])
def test_extended_attributes_of_an_image_file(user: User, files: tuple[Path, Path], scratch: Path, option: str) -> None:
    tree, image = scratch / "tree", user.home / f"{option[1:]}.sqfs"
    subprocess.run(["unsquashfs", "-q", "-n", "-d", tree, files[0]], check=True, stdout=subprocess.DEVNULL)
    os.setxattr(tree / "data/file", "user.x", b"1")
    os.setxattr(tree / "data", "user.y", b"1")
    subprocess.run(["mksquashfs", tree, image, "-quiet", "-no-progress", "-all-root", option], check=True)
    user.own(image)
    host = [word for path in ("/usr", "/lib", "/lib64") for word in ("-v", f"{path}:{path}:ro")]
    shown = user.unionfs("run", "--rm", *host, "--entrypoint", "", image, "/usr/bin/python3", "-ISc", _SHOW).stdout
    names = (["user.x"], ["user.y"]) if option == "-xattrs" else ([], [])
    assert shown == f"{dict(zip(('/data/file', '/data'), names, strict=True))}\n"
