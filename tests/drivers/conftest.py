"""Containers of a small layered image, by each driver.

commands    `commands("run", ...)` with a driver; the store has tiny:1 and layered:1, which has marks
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import btrfs, thin_devices, tiny
from tests.support.timing import limit
from tests.support.users import User

TIMEOUT_S = 120.0

_CHANGES = (
    "rm /data/gone; rm -r /data/dir; mkdir /data/dir; echo new > /data/dir/new; rm -r /empty; echo file > /empty",
    "rm /data/dir/new /empty; mkdir /empty; echo 3 > /empty/three; chmod 700 /data/kept; chown games /data/kept/deep",
)
"""What the layers of layered:1 do, from the second up."""


@dataclass(frozen=True, slots=True)
class Commands:
    """`commands("run", ...)` is `unionfs run ...` on the store at `root`; `run` has the driver named already."""

    user: User
    root: Path
    driver: str

    def __call__(self, verb: str, *words: str | os.PathLike[str], **more: object) -> subprocess.CompletedProcess[str]:
        environment = {"UNIONFS_ROOT": os.fspath(self.root), "UNIONFS_DRIVER": self.driver}
        return self.user.run(
            [*self.user.unionfs_cmd, verb, *words], env=environment, timeout_s=TIMEOUT_S, **more  # type: ignore[arg-type]
        )  # fmt: skip

    def inspect(self, name: str) -> dict[str, Any]:
        (found,) = json.loads(self("inspect", name).stdout)
        return dict(found)


@pytest.fixture(scope="session")
def tiny_tar(run_dir: Path) -> Path:
    """The tar of a very small root filesystem."""
    return tiny.make(run_dir / "tiny.tar")


@pytest.fixture(scope="session")
def btrfs_dir(run_dir: Path) -> Iterator[Path]:
    """A Btrfs that everybody can use."""
    try:
        with btrfs.mounted(run_dir / "btrfs") as mountpoint:
            yield mountpoint
    except btrfs.NoBtrfsError as why:
        pytest.skip(str(why))


@pytest.fixture(scope="session")
def stores() -> dict[tuple[str, bool], Path]:
    """The stores of this run: by kind of user, and whether they are on a Btrfs. Filled by `commands_for`."""
    return {}


@pytest.fixture
def commands_for(
    user: User, stores: dict[tuple[str, bool], Path], tiny_tar: Path, request: pytest.FixtureRequest, fuse_device: Path
) -> Iterator[Callable[[str], Commands]]:
    """`commands_for(driver)`: the commands for it. Afterwards no container is left."""
    used: list[Commands] = []

    def make(driver: str) -> Commands:
        on_btrfs = driver == "btrfs"
        owner: User = request.getfixturevalue("root_user") if driver == "devicemapper" else user
        key = (owner.kind, on_btrfs)
        place = request.getfixturevalue("btrfs_dir") / owner.kind if on_btrfs else owner.home / "drivers"
        commands = Commands(owner, stores.get(key, place), driver)
        used.append(commands)
        if key not in stores:
            place.mkdir(exist_ok=True)
            owner.own(place)
            _fill(Commands(owner, place, "fuse"), tiny_tar)
            stores[key] = place
        return commands

    yield make
    for commands in used:
        left = [one["id"] for one in json.loads(commands("ps", "-a", "--json").stdout)]
        if left:
            commands("rm", "-f", *left)
        assert [name for name in os.listdir(commands.root / "containers") if not name.startswith(".lock")] == []


@pytest.fixture(params=["fuse", "overlay", "vfs", "btrfs", *(["devicemapper"] if thin_devices.KERNEL_HAS else [])])
def commands(request: pytest.FixtureRequest, commands_for: Callable[[str], Commands]) -> Iterator[Commands]:
    """`unionfs VERB ...` with each driver; with devicemapper as root. Afterwards no device is left."""
    yield commands_for(request.param)
    if request.param == "devicemapper":
        assert thin_devices.left() == []


def _fill(commands: Commands, tar: Path) -> None:
    with tar.open("rb") as file:
        made = subprocess.run(
            [*commands.user.prefix, *commands.user.unionfs_cmd, "import", "--root", commands.root, "-", "tiny:1"],
            stdin=file, env=dict(commands.user.env), cwd=commands.user.home, capture_output=True, text=True,
            timeout=limit(300), check=False,
        )  # fmt: skip
    assert made.returncode == 0, made.stderr
    base = "tiny:1"
    for number, script in enumerate(_CHANGES):
        commands("run", "--name", f"step{number}", base, "sh", "-c", script)
        base = "layered:1" if number == len(_CHANGES) - 1 else f"step:{number}"
        commands("commit", "--compression", "none", f"step{number}", base)
        commands("rm", f"step{number}")
