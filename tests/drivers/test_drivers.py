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

from tests.drivers.conftest import House
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


def _wait_for(house: House, name: str, path: str) -> None:
    deadline = time.monotonic() + limit(60)
    while house("exec", name, "test", "-e", path, check=False).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_layers_show_the_same_by_every_driver(house: House) -> None:
    """Whiteouts, replaced directories and owners of layers; `fuse` is what the others are compared with."""
    told = house("run", "--rm", "layered:1", "sh", "-c", _LISTING).stdout
    again = house("run", "--rm", "--driver", "fuse", "layered:1", "sh", "-c", _LISTING).stdout
    assert told == again
    assert "/data/gone" not in told
    assert "/data/dir/old" not in told


def test_a_life(house: House, scratch: Path) -> None:
    script = f"test -e /three || {{ {_CHANGES} }}; touch /tmp/ready; trap 'exit 3' TERM; while :; do sleep 0.05; done"
    house("run", "-d", "--name", "life", "--tmpfs", "/tmp", "layered:1", "sh", "-c", script)
    _wait_for(house, "life", "/tmp/ready")
    shown = house.inspect("life")
    assert shown["GraphDriver"]["Name"] == house.driver
    assert set(house("diff", "life").stdout.splitlines()) - _OTHER_NAME == _DIFF
    report = json.loads(house("commit", "--json", "life", "made:1").stdout)
    changed = {f"{one['kind']} {one['path']}" for one in report["changes"]} - {"C /"}
    assert changed - _OTHER_NAME == _DIFF
    house.user.own(scratch)
    house("cp", "life:/made", scratch / "out")
    assert (scratch / "out/x").read_text() == "x\n"
    house("cp", scratch / "out/x", "life:/in")
    house("stop", "life")
    assert house("wait", "life").stdout == "3\n"
    house("cp", "life:/in", scratch / "back")
    assert (scratch / "back").read_text() == "x\n"
    house("start", "life")
    assert house("exec", "life", "cat", "/in", "/data/kept/deep/down").stdout == "x\nkept\nmore\n"
    house("rm", "-f", "life")
    seen = house(
        "run", "--rm", "made:1", "sh", "-c", "ls /data/dir /empty; cat /three; stat -c %h /made/x /made/y; ls /etc"
    )
    assert seen.stdout.split() == ["/data/dir:", "other", "/empty:", "3", "2", "2", "group", "hostname", "hosts",
                                   "passwd", "resolv.conf"]  # fmt: skip
    house("rmi", "-f", "made:1")
    _nothing_is_left(house)


@pytest.mark.parametrize("user", ["ordinary"], indirect=True)
def test_an_export_has_what_is_there(house: House) -> None:
    house("run", "--name", "ex", "layered:1", "sh", "-c", "rm /data/file; echo x > /x")
    out = house.root / "ex.tar"
    house("export", "-o", out, "ex")
    with tarfile.open(fileobj=io.BytesIO(out.read_bytes())) as tar:
        names = {name.removeprefix("./") for name in tar.getnames()}
    assert {"x", "data/link", "bin/sh", "empty/three"} <= names
    assert not {"data/file", "data/gone"} & names
    assert not [name for name in names if ".wh." in name]
    out.unlink()


@pytest.mark.parametrize("user", ["ordinary"], indirect=True)
def test_layers_are_as_they_were_unpacked(house: House) -> None:
    house("run", "--name", "writer", "layered:1", "sh", "-c", "rm -r /data; echo x >> /etc/passwd; chmod 777 /bin/ls")
    house("rm", "writer")
    verified = house.user.run(
        [*as_container_root(house.user), *_layers(house), "verify", "--root", house.root, "layered:1"],
        timeout_s=60,
        check=False,
    )
    assert (verified.stdout, verified.returncode) == ("", 0)


@pytest.mark.parametrize("user", ["ordinary"], indirect=True)
def test_read_only_and_volumes(house: House, scratch: Path) -> None:
    (scratch / "given").write_text("given\n")
    house.user.own(scratch)
    words = ("-v", f"{scratch}:/v", "-v", f"{scratch}:/aside:O")
    done = house("run", "--rm", "--read-only", *words, "layered:1", "sh", "-c",
                 "echo x > /x; echo y > /v/y; echo z > /aside/z; cat /aside/given; ls /aside", check=False)  # fmt: skip
    assert "Read-only" in done.stderr
    assert done.stdout == "given\ngiven\ny\nz\n"
    assert sorted(os.listdir(scratch)) == ["given", "y"]


@pytest.mark.parametrize("user", ["ordinary"], indirect=True)
def test_a_command_that_is_not_there_leaves_nothing(house: House) -> None:
    assert house("run", "--name", "no", "layered:1", "nosuch", check=False).returncode == 127
    assert house("ps", "-aq").stdout == ""
    _nothing_is_left(house)


@pytest.mark.parametrize("user", ["ordinary"], indirect=True)
def test_what_btrfs_shares_goes_with_its_layers(house_for: Callable[[str], House]) -> None:
    house = house_for("btrfs")
    house("run", "--name", "one", "layered:1", "touch", "/one")
    before = set(os.listdir(house.root / "btrfs"))
    house("commit", "one", "own:1")
    house("rm", "one")
    house("run", "--rm", "own:1", "cat", "/one")
    assert len(set(os.listdir(house.root / "btrfs")) - before) == 1
    house("rmi", "own:1")
    assert set(os.listdir(house.root / "btrfs")) == before


@pytest.mark.parametrize("user", ["ordinary"], indirect=True)
def test_five_hundred_layers(house_for: Callable[[str], House], scratch: Path) -> None:
    """As many as the kernel takes, with marks in some of them."""
    house = house_for("overlay")
    tiny = _layer(house, "tiny:1")
    lowers: list[str | Path] = []
    for number in range(490):
        layer = scratch / f"{number:03}"
        (layer / "many").mkdir(parents=True)
        (layer / f"many/{number}").write_text(f"{number}\n")
        lowers += ["--lower", layer]
    (scratch / "000/many/.wh.5").touch()
    house.user.own(scratch)
    for driver in ("overlay", "fuse", "vfs"):
        told = house(
            "run", "--rm", "--driver", driver, *lowers, "--lower", tiny, "sh", "-c", "ls /many | wc -l; cat /many/489"
        )
        assert told.stdout == "489\n489\n", driver
    refused = house("run", "--rm", *lowers, *lowers, "--lower", tiny, "true", check=False)
    assert refused.returncode == 125
    assert "the kernel's overlayfs allows 500 layers" in refused.stderr
    assert house("ps", "-aq").stdout == ""


@pytest.mark.parametrize("user", ["ordinary"], indirect=True)
def test_what_a_driver_cannot_do_is_said(house_for: Callable[[str], House], scratch: Path) -> None:
    house = house_for("fuse")
    wrong = house("run", "--driver", "btrfs", "layered:1", "true", check=False)
    if not btrfs.is_on_btrfs(os.fspath(house.root)):
        assert (wrong.returncode, "is not on a Btrfs" in wrong.stderr) == (125, True)
    for driver in ("overlay", "vfs"):
        refused = house("run", "--driver", driver, "/", "true", check=False)
        assert (refused.returncode, "only the fuse driver" in refused.stderr) == (125, True)
    assert house("run", "--driver", "devicemapper", "layered:1", "true", check=False).returncode == 125
    renamed = scratch / "renamed"
    (renamed / "new").mkdir(parents=True)
    os.setxattr(renamed / "new", "user.overlay.redirect", b"/data")
    house.user.own(scratch)
    told = house(
        "run", "--driver", "overlay", "--lower", renamed, "--lower", _layer(house, "tiny:1"), "true", check=False
    )
    assert (told.returncode, "renamed directory" in told.stderr) == (125, True)
    assert house("ps", "-aq").stdout == ""


@pytest.mark.parametrize("user", ["ordinary"], indirect=True)
@pytest.mark.parametrize("driver", ["fuse", "overlay", "vfs"])
def test_a_full_disk_leaves_nothing(driver: str, house_for: Callable[[str], House], scratch: Path) -> None:
    """No room for a copy, or for what the command writes: said so, and no container stays."""
    tiny = _layer(house_for(driver), "tiny:1")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=1777", "tmpfs", scratch], check=True, timeout=limit(30))
    small = House(house_for(driver).user, scratch, driver)
    done = small("run", "--rm", "--lower", tiny, "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=5", check=False)
    if driver == "vfs":
        assert (done.returncode, "copying the layers failed" in done.stderr) == (125, True)
    else:
        assert (done.returncode, "No space left on device" in done.stderr) == (1, True), done.stderr
    _nothing_is_left(small)


def _layer(house: House, image: str) -> str:
    house("run", "--name", "look", "--driver", "fuse", image, "true")
    data = house.inspect("look")["GraphDriver"]["Data"]
    house("rm", "look")
    return str(data["LowerDir"][0])


def _layers(house: House) -> tuple[str, ...]:
    return (*house.user.unionfs_cmd[:-1], "layers")


def _nothing_is_left(house: House) -> None:
    left = house.root / "containers"
    assert [name for name in os.listdir(left) if not name.startswith(".lock")] == []
    assert [mount for mount in mounts() if left in mount.mountpoint.parents] == []
