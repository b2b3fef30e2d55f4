"""The same container, whatever the driver: what it sees, what it changes, what is listed, committed and left behind."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.drivers.conftest import Commands
from tests.support.marks import as_ordinary_user
from tests.support.mountinfo import mounts
from tests.support.rootfs import as_container_root
from tests.support.timing import limit
from unionfs.syscalls import btrfs

_LISTING = """
find /data /empty /etc/motd -exec stat -c '%n %f %u %g %Y' {} + | sort; cat /empty/* /data/link; ls -a /data/dir
"""
_CHANGES = """
echo more >> /data/kept/deep/down; rm /etc/motd; mkdir /made; echo x > /made/x; ln /made/x /made/y
rm -r /data/dir; mkdir /data/dir; echo y > /data/dir/other; chmod 600 /data/file; mv /empty/three /three
cat /made/x > /dev/null
"""
_DIFF = {
    *("C /data", "C /data/dir", "A /data/dir/other", "C /data/file", "C /data/kept"),
    *("C /data/kept/deep",),
    *("C /data/kept/deep/down", "C /empty", "D /empty/three", "C /etc", "D /etc/motd", "A /made", "A /made/x"),
    *("A /made/y", "A /three"),
}  # fmt: skip


_OTHER_NAME = {"C /data/link"}  # of /data/file: the kernel's overlay copies up one name


def _wait_for(commands: Commands, name: str, path: str) -> None:
    deadline = time.monotonic() + limit(60)
    while commands("exec", name, "test", "-e", path, check=False).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_layers_show_the_same_by_every_driver(commands: Commands) -> None:
    """Whiteouts, replaced directories and owners of layers; `fuse` is what the others are compared with."""
    told = commands("run", "--rm", "layered:1", "sh", "-c", _LISTING).stdout
    again = commands("run", "--rm", "--driver", "fuse", "layered:1", "sh", "-c", _LISTING).stdout
    assert told == again
    assert "/data/gone" not in told
    assert "/data/dir/old" not in told


def test_a_life(commands: Commands, scratch: Path) -> None:
    script = f"test -e /three || {{ {_CHANGES} }}; touch /tmp/ready; trap 'exit 3' TERM; while :; do sleep 0.05; done"
    commands("run", "-d", "--name", "life", "--tmpfs", "/tmp", "layered:1", "sh", "-c", script)
    _wait_for(commands, "life", "/tmp/ready")
    shown = commands.inspect("life")
    assert shown["GraphDriver"]["Name"] == commands.driver
    assert set(commands("diff", "life").stdout.splitlines()) - _OTHER_NAME == _DIFF
    report = json.loads(commands("commit", "--json", "life", "made:1").stdout)
    changed = {f"{one['kind']} {one['path']}" for one in report["changes"]} - {"C /"}
    assert changed - _OTHER_NAME == _DIFF
    commands.user.own(scratch)
    commands("cp", "life:/made", scratch / "out")
    assert (scratch / "out/x").read_text() == "x\n"
    commands("cp", scratch / "out/x", "life:/in")
    commands("stop", "life")
    assert commands("wait", "life").stdout == "3\n"
    commands("cp", "life:/in", scratch / "back")
    assert (scratch / "back").read_text() == "x\n"
    commands("start", "life")
    assert commands("exec", "life", "cat", "/in", "/data/kept/deep/down").stdout == "x\nkept\nmore\n"
    commands("rm", "-f", "life")
    seen = commands(
        "run", "--rm", "made:1", "sh", "-c", "ls /data/dir /empty; cat /three; stat -c %h /made/x /made/y; ls /etc"
    )
    assert seen.stdout.split() == ["/data/dir:", "other", "/empty:", "3", "2", "2", "group", "hostname", "hosts",
                                   "passwd", "resolv.conf"]  # fmt: skip
    commands("rmi", "-f", "made:1")
    _nothing_is_left(commands)


@as_ordinary_user
def test_an_export_has_what_is_there(commands: Commands) -> None:
    commands("run", "--name", "ex", "layered:1", "sh", "-c", "rm /data/file; echo x > /x")
    out = commands.root / "ex.tar"
    commands("export", "-o", out, "ex")
    with tarfile.open(fileobj=io.BytesIO(out.read_bytes())) as tar:
        names = {name.removeprefix("./") for name in tar.getnames()}
    assert {"x", "data/link", "bin/sh", "empty/three"} <= names
    assert not {"data/file", "data/gone"} & names
    assert not [name for name in names if ".wh." in name]
    out.unlink()


@as_ordinary_user
def test_layers_are_as_they_were_unpacked(commands: Commands) -> None:
    commands(
        "run", "--name", "writer", "layered:1", "sh", "-c", "rm -r /data; echo x >> /etc/passwd; chmod 777 /bin/ls"
    )
    commands("rm", "writer")
    verified = commands.user.run(
        [*as_container_root(commands.user), *_layers(commands), "verify", "--root", commands.root, "layered:1"],
        timeout_s=60,
        check=False,
    )
    assert (verified.stdout, verified.returncode) == ("", 0)


@as_ordinary_user
def test_read_only_and_volumes(commands: Commands, scratch: Path) -> None:
    (scratch / "given").write_text("given\n")
    commands.user.own(scratch)
    words = ("-v", f"{scratch}:/v", "-v", f"{scratch}:/aside:O")
    done = commands("run", "--rm", "--read-only", *words, "layered:1", "sh", "-c",
                 "echo x > /x; echo y > /v/y; echo z > /aside/z; cat /aside/given; ls /aside", check=False)  # fmt: skip
    assert "Read-only" in done.stderr
    assert done.stdout == "given\ngiven\ny\nz\n"
    assert sorted(os.listdir(scratch)) == ["given", "y"]


@as_ordinary_user
def test_a_command_that_is_not_there_leaves_nothing(commands: Commands) -> None:
    assert commands("run", "--name", "no", "layered:1", "nosuch", check=False).returncode == 127
    assert commands("ps", "-aq").stdout == ""
    _nothing_is_left(commands)


@as_ordinary_user
def test_what_btrfs_shares_goes_with_its_layers(commands_for: Callable[[str], Commands]) -> None:
    commands = commands_for("btrfs")
    commands("run", "--name", "one", "layered:1", "touch", "/one")
    before = set(os.listdir(commands.root / "btrfs"))
    commands("commit", "one", "own:1")
    commands("rm", "one")
    commands("run", "--rm", "own:1", "cat", "/one")
    assert len(set(os.listdir(commands.root / "btrfs")) - before) == 1
    commands("rmi", "own:1")
    assert set(os.listdir(commands.root / "btrfs")) == before


@as_ordinary_user
def test_five_hundred_layers(commands_for: Callable[[str], Commands], scratch: Path) -> None:
    """As many as the kernel takes, with marks in some of them."""
    commands = commands_for("overlay")
    tiny = _layer(commands, "tiny:1")
    lowers: list[str | Path] = []
    for number in range(490):
        layer = scratch / f"{number:03}"
        (layer / "many").mkdir(parents=True)
        (layer / f"many/{number}").write_text(f"{number}\n")
        lowers += ["--lower", layer]
    (scratch / "000/many/.wh.5").touch()
    commands.user.own(scratch)
    for driver in ("overlay", "fuse", "vfs"):
        told = commands(
            "run", "--rm", "--driver", driver, *lowers, "--lower", tiny, "sh", "-c", "ls /many | wc -l; cat /many/489"
        )
        assert told.stdout == "489\n489\n", driver
    refused = commands("run", "--rm", *lowers, *lowers, "--lower", tiny, "true", check=False)
    assert refused.returncode == 125
    assert "the kernel's overlayfs allows 500 layers" in refused.stderr
    assert commands("ps", "-aq").stdout == ""


@as_ordinary_user
def test_what_a_driver_cannot_do_is_said(commands_for: Callable[[str], Commands], scratch: Path) -> None:
    commands = commands_for("fuse")
    wrong = commands("run", "--driver", "btrfs", "layered:1", "true", check=False)
    if not btrfs.is_on_btrfs(os.fspath(commands.root)):
        assert (wrong.returncode, "is not on a Btrfs" in wrong.stderr) == (125, True)
    for driver in ("overlay", "vfs"):
        refused = commands("run", "--driver", driver, "/", "true", check=False)
        assert (refused.returncode, "only the fuse driver" in refused.stderr) == (125, True)
    assert commands("run", "--driver", "devicemapper", "layered:1", "true", check=False).returncode == 125
    renamed = scratch / "renamed"
    (renamed / "new").mkdir(parents=True)
    os.setxattr(renamed / "new", "user.overlay.redirect", b"/data")
    commands.user.own(scratch)
    told = commands(
        "run", "--driver", "overlay", "--lower", renamed, "--lower", _layer(commands, "tiny:1"), "true", check=False
    )
    assert (told.returncode, "renamed directory" in told.stderr) == (125, True)
    assert commands("ps", "-aq").stdout == ""


@as_ordinary_user
@pytest.mark.parametrize("driver", ["fuse", "overlay", "vfs"])
def test_a_full_disk_leaves_nothing(driver: str, commands_for: Callable[[str], Commands], scratch: Path) -> None:
    """No room for a copy, or for what the command writes: said so, and no container stays."""
    tiny = _layer(commands_for(driver), "tiny:1")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=1777", "tmpfs", scratch], check=True, timeout=limit(30))
    small = Commands(commands_for(driver).user, scratch, driver)
    done = small("run", "--rm", "--lower", tiny, "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=5", check=False)
    if driver == "vfs":
        assert (done.returncode, "copying the layers failed" in done.stderr) == (125, True)
    else:
        assert (done.returncode, "No space left on device" in done.stderr) == (1, True), done.stderr
    _nothing_is_left(small)


def _layer(commands: Commands, image: str) -> str:
    commands("run", "--name", "look", "--driver", "fuse", image, "true")
    data = commands.inspect("look")["GraphDriver"]["Data"]
    commands("rm", "look")
    return str(data["LowerDir"][0])


def _layers(commands: Commands) -> tuple[str, ...]:
    return (*commands.user.unionfs_cmd[:-1], "layers")


def _nothing_is_left(commands: Commands) -> None:
    left = commands.root / "containers"
    assert [name for name in os.listdir(left) if not name.startswith(".lock")] == []
    assert [mount for mount in mounts() if left in mount.mountpoint.parents] == []
