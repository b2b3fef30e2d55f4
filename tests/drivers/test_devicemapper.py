"""The driver devicemapper on a kernel that has thin pools: `make test-guests` boots one.

What it shares with the other drivers is in test_drivers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.drivers.conftest import Commands
from tests.support import thin_devices
from tests.support.timing import limit
from tests.support.users import User
from unionfs.core.options import Options
from unionfs.drivers import device_tools, devicemapper
from unionfs.drivers.driver import MountRequest
from unionfs.drivers.thin_pool import READY, Pool
from unionfs.launcher.monitor import RootfsMounts
from unionfs.syscalls import mounts
from unionfs.syscalls.namespaces import CLONE_NEWNS, unshare

pytestmark = [
    pytest.mark.skipif(not thin_devices.KERNEL_HAS, reason="the kernel has no dm_thin_pool (make test-guests)"),
    pytest.mark.parametrize("user", ["root"], indirect=True),
]


@pytest.fixture
def dm(commands_for: Callable[[str], Commands]) -> Iterator[Commands]:
    """The store of root. Afterwards the pool and its record have the same devices, and the kernel none."""
    commands = commands_for("devicemapper")
    yield commands
    assert thin_devices.left() == []
    place = commands.root / "devicemapper"
    record = json.loads((place / "devices.json").read_text())["devices"]
    assert thin_devices.numbers(place / "meta") == {one["number"] for one in record.values()}


def _usage(commands: Commands) -> dict[str, Any]:
    return dict(json.loads(commands("stats", "--pool", "--json").stdout))


def test_layers_are_shared_and_blocks_are_given_back(dm: Commands) -> None:
    """One device for each layer and container; a small write to a large file takes blocks, not the file."""
    make = "dd if=/dev/zero of=/big bs=1M count=24; echo end >> /big"
    dm("run", "--name", "maker", "--driver", "fuse", "layered:1", "sh", "-c", make)
    dm("commit", "--compression", "none", "maker", "big:1")
    dm("rm", "maker")
    dm("run", "--name", "one", "big:1", "true")
    first = _usage(dm)
    assert first["devices"] == {"base": 1, "layer": 4, "container": 1}
    small = "echo x | dd of=/big bs=1 seek=9000000 conv=notrunc; echo y | dd of=/big bs=1 seek=9000 conv=notrunc"
    dm("run", "--name", "two", "big:1", "sh", "-c", small)
    second = _usage(dm)
    assert second["devices"] == {"base": 1, "layer": 4, "container": 2}
    assert second["data"] - first["data"] < 4 << 20
    assert dm("diff", "two").stdout == "C /big\n"
    more = "dd if=/dev/zero of=/more bs=1M count=16 conv=fsync; rm /more"
    dm("run", "--rm", "big:1", "sh", "-c", more)
    dm("rm", "two")
    after = _usage(dm)
    assert (after["data"], after["devices"]) == (first["data"], first["devices"])
    assert after["disk"] <= first["disk"] + (1 << 20)
    dm("rm", "one")
    dm("rmi", "big:1")
    assert _usage(dm)["devices"] == {"base": 1, "layer": 3}
    words = dm("stats", "--pool").stdout
    assert f"files in {dm.root}/devicemapper" in words
    assert "state     ready" in words


def test_a_killed_container_leaves_no_device(dm: Commands) -> None:
    """The launcher and the monitor are killed: the kernel removes mount, device, pool and loop devices by itself."""
    script = "echo kept | dd of=/kept conv=fsync; touch /run/ready; sleep 1000"
    dm("run", "-d", "--name", "killed", "--tmpfs", "/run", "layered:1", "sh", "-c", script)
    deadline = time.monotonic() + limit(60)
    while dm("exec", "killed", "test", "-e", "/run/ready", check=False).returncode:
        assert time.monotonic() < deadline
    assert len(thin_devices.found()) == 4
    assert dm("diff", "killed").stdout == "A /kept\n"
    out = dm.root / "killed.tar"
    dm("export", "-o", out, "killed")
    out.unlink()
    record = json.loads((dm.root / "containers" / dm.inspect("killed")["Id"] / "container.json").read_text())
    os.kill(record["state"]["monitor"], signal.SIGKILL)
    assert thin_devices.left(60) == []
    dm("start", "killed")
    assert dm("exec", "killed", "cat", "/kept").stdout == "kept\n"
    dm("rm", "-f", "killed")


def test_killed_at_each_step(scratch: Path, user: User) -> None:
    """A process that makes layers and a container is killed before or after a program that it runs, at every fifth of
    them; the next process completes the device. No device is lost, in the record or in the pool.

    The store is on a mount, of which each process has a copy in its namespace: the kernel then shows the path of a loop
    device's file from the mount's root on, once the namespace has ended."""
    subprocess.run(["mount", "--bind", scratch, scratch], check=True, timeout=limit(30))
    layers = [scratch / "layers" / key / "tree" for key in ("one", "two")]
    for number, layer in enumerate(layers):
        (layer / "d").mkdir(parents=True)
        (layer / "d" / f"file{number}").write_text(f"{number}\n")
    container = scratch / "containers" / "c"
    for name in ("upper", "work", "merged"):
        (container / name).mkdir(parents=True)
    upper, work = (os.fspath(container / name) for name in ("upper", "work"))
    union = Options(lowers=tuple(map(os.fspath, layers)), upper=upper, work=work)
    request = MountRequest(union, os.fspath(container), os.fspath(scratch), "c", os.devnull, "kernel")
    place, pool, at = scratch / "devicemapper", Pool(os.fspath(scratch)), 0
    while _forked(lambda: _mount_until(request, at)) == -signal.SIGKILL:  # noqa: B023
        assert _forked(lambda: _check_whole(request)) == 0
        record = json.loads((place / "devices.json").read_text())["devices"]
        assert [one["state"] for one in record.values()] == [READY] * 4  # the base, two layers, the container
        assert thin_devices.left() == []
        assert thin_devices.numbers(place / "meta") == {one["number"] for one in record.values()}
        pool.remove(*record)
        at += 5
    assert at > 30  # there are so many programs in a row


def _forked(body: Callable[[], None]) -> int:
    """The exit code of a process that calls `body`; negative: the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            unshare(CLONE_NEWNS)
            mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
            body()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _mount_until(request: MountRequest, at: int) -> None:
    left, run = [at], device_tools.run

    def counted(program: str, *words: str) -> str:
        is_last = left[0] == 0
        if is_last and at % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        told = run(program, *words)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return told

    device_tools.run = counted
    devicemapper.mount(request, RootfsMounts(-1))


def _check_whole(request: MountRequest) -> None:
    devicemapper.mount(request, RootfsMounts(-1))
    assert sorted(os.listdir(f"{request.merged}/d")) == ["file0", "file1"]
    assert sorted(os.listdir(request.merged)) == ["d"]


def test_a_full_pool_is_told(scratch: Path, commands_for: Callable[[str], Commands]) -> None:
    layer = commands_for("fuse")  # its store has the image
    layer("run", "--name", "look", "layered:1", "true")
    lowers = layer.inspect("look")["GraphDriver"]["Data"]["LowerDir"]
    layer("rm", "look")
    words = [word for lower in lowers for word in ("--lower", lower)]
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", scratch], check=True, timeout=limit(30))
    small = Commands(layer.user, scratch, "devicemapper")
    fill = "dd if=/dev/zero of=/fill bs=1M count=200 conv=fsync"
    full = small("run", "--name", "full", *words, "sh", "-c", fill, check=False)
    assert full.returncode == 1
    refused = small("run", "--name", "next", *words, "true", check=False)
    assert (refused.returncode, "takes no new device" in refused.stderr) == (125, True)
    assert "takes no new device: it is full" in small("stats", "--pool").stdout
    small("rm", "full")
    small("run", "--rm", *words, "true")
    assert "state     ready" in small("stats", "--pool").stdout
    assert thin_devices.left() == []


def test_a_pool_of_the_machine(scratch: Path, commands_for: Callable[[str], Commands]) -> None:
    """--pool names a thin pool that the administrator has made; it stays, without our devices."""
    commands = Commands(commands_for("devicemapper").user, scratch / "store", "devicemapper")
    lower = scratch / "lower"
    (lower / "bin").mkdir(parents=True)
    (lower / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (lower / "bin/busybox").chmod(0o755)
    words = ("--lower", lower, "busybox", "true")
    loops = []
    for name, size in (("meta", 16 << 20), ("data", 256 << 20)):
        (scratch / name).touch()
        os.truncate(scratch / name, size)
        loops.append(_told("losetup", "--find", "--show", scratch / name))
    try:
        table = f"0 {(256 << 20) // 512} thin-pool {loops[0]} {loops[1]} 256 0"
        _told("dmsetup", "create", "vg-pool", "--table", table)
        _told("dmsetup", "message", "vg-pool", "0", "create_thin 1")
        refused = commands("run", "--pool", loops[1], *words, check=False)
        assert (refused.returncode, "is not a thin pool" in refused.stderr) == (125, True)
        commands("run", "--name", "one", "--pool", "/dev/mapper/vg-pool", *words)
        assert "pool      /dev/mapper/vg-pool" in commands("stats", "--pool").stdout
        commands("start", "-a", "one")
        other = commands("run", "--pool", loops[1], *words, check=False)
        assert (other.returncode, "this store has another pool: /dev/mapper/vg-pool" in other.stderr) == (125, True)
        commands("rm", "one")
        assert thin_devices.left() == []
        record = json.loads((commands.root / "devicemapper/devices.json").read_text())["devices"]
        assert list(record) == ["base"]
        assert record["base"]["number"] != 1
        with pytest.raises(subprocess.CalledProcessError, match="vg-pool"):  # device 1, which is not ours, still exists
            _told("dmsetup", "message", "vg-pool", "0", "create_thin 1")
        assert not (commands.root / "devicemapper/data").exists()
    finally:
        subprocess.run(["dmsetup", "remove", "vg-pool"], check=False, timeout=limit(30))
        for loop in loops:
            _told("losetup", "--detach", loop)


def _told(*command: str | Path) -> str:
    environment = {**os.environ, "DM_DISABLE_UDEV": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=limit(30))
    return done.stdout.strip()


def test_only_root_and_only_its_own_store(ordinary_user: User, scratch: Path, user: User) -> None:
    refused = ordinary_user.unionfs("run", "--driver", "devicemapper", "--lower", "/usr", "true", check=False)
    assert refused.stderr.splitlines()[0] == "unionfs: the devicemapper driver works only as root of the machine"
    assert refused.returncode == 125
    open_to_all = scratch / "open"
    open_to_all.mkdir()
    os.chown(open_to_all, 4321, 4321)
    with pytest.raises(Exception, match="user 4321 can replace the store"):
        devicemapper.check(os.fspath(open_to_all), ())
    assert not Pool(os.fspath(open_to_all)).exists()
