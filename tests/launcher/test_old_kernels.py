"""Containers on kernels that lack newer system calls, as if this one did."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.old_kernel import MOUNT_SETATTR, OPENAT2
from tests.support.timing import limit
from tests.support.users import CHECKOUT, User
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = pytest.mark.transport(DEFAULT_TRANSPORT)

ATTRIBUTES = r"""
for path in / /sys /proc/sys /dev/full /volume /sys/fs/cgroup; do
    echo $path $(awk -v p=$path '$5 == p { found = $6 } END { print found }' /proc/self/mountinfo)
done"""


def unionfs(user: User, first: int, *arguments: str | Path) -> str:
    """What the command prints for `user` where system calls from `first` on are missing."""
    argv = [sys.executable, "-m", "tests.support.old_kernel", str(first), *user.prefix, *user.unionfs_cmd, *arguments]
    done = subprocess.run(
        argv, env=user.env, cwd=CHECKOUT, capture_output=True, text=True, timeout=limit(120), check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("first", [MOUNT_SETATTR, OPENAT2])
def test_mounts_have_their_attributes(first: int, user: User, debian: Path, scratch: Path, tidy: None) -> None:
    """Before Linux 5.12 a mount that is not in place yet cannot be changed: it gets its attributes when it is."""
    command: list[str | Path] = ["run", "--rm", "-v", f"{scratch}:/volume:ro", debian, "sh", "-c", ATTRIBUTES]
    old = [set(line.replace(",", " ").split()) for line in unionfs(user, first, *command).splitlines()]
    new = [set(line.replace(",", " ").split()) for line in user.unionfs(*command).stdout.splitlines()]
    assert old == new
    assert {"ro", "nosuid", "nodev"} <= new[4]
    assert "ro" in new[1] & new[2]


def test_a_view_of_the_machine(user: User, tidy: None) -> None:
    assert unionfs(user, MOUNT_SETATTR, "try", "--discard", "echo", "ran").startswith("ran\n")
