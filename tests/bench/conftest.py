"""One run of all benchmarks at their smallest, shared by the tests that check its results."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import mountinfo, scratch
from tests.support.users import User

TIMEOUT_S = 240

Bench = Callable[..., subprocess.CompletedProcess[str]]


def bench(user: User, where: Path, *args: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`unionfs bench copyup ARGS`, its temporary files below `where`; nothing of it may be left there."""
    done = user.unionfs("bench", "copyup", "--dir", where, *args, timeout_s=TIMEOUT_S, check=check)
    nothing_left(where)
    return done


def nothing_left(where: Path) -> None:
    """No file, no mount, no process, no loop device of a run below `where`."""
    assert list(where.iterdir()) == []
    assert [mount for mount in mountinfo.mounts() if where in mount.mountpoint.parents] == []
    assert scratch.processes_below(where) == {}
    assert [name for name in loop_files() if name.startswith(f"{where}/")] == []


def loop_files() -> Sequence[str]:
    """The files behind loop devices."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.append(backing.read_text().strip())
        except OSError:
            continue
    return found


@pytest.fixture(scope="session")
def whole_run(root_user: User, run_dir: Path, fuse_device: Path) -> dict[str, Any]:
    """What a run of every series on every system and filesystem found, files of 1 MB at most."""
    del fuse_device
    where = run_dir / "bench"
    where.mkdir()
    size = ("--max-size", "1M", "--max-files", "10", "--rounds", "1", "--minutes", "5")
    found: dict[str, Any] = json.loads(bench(root_user, where, *size, "--json").stdout)
    os.rmdir(where)
    return found
