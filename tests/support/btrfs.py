"""A Btrfs on a file, for the tests alone, mounted by root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.timing import limit


class NoBtrfsError(Exception):
    """No Btrfs can be mounted here; the message says why."""


@contextmanager
def mounted(directory: Path, gigabytes: float = 0.25) -> Iterator[Path]:
    """A new, empty Btrfs at `directory`/mnt, in which all users may make directories. Raises: NoBtrfsError."""
    if os.geteuid() != 0:
        raise NoBtrfsError("only root can mount a Btrfs")
    if not shutil.which("mkfs.btrfs"):
        raise NoBtrfsError("mkfs.btrfs is not installed (Debian package btrfs-progs)")
    directory.mkdir(exist_ok=True)
    image, mountpoint = directory / "btrfs.img", directory / "mnt"
    mountpoint.mkdir()
    with image.open("wb") as file:
        file.truncate(int(gigabytes * (1 << 30)))
    subprocess.run(["mkfs.btrfs", "-q", image], check=True, timeout=limit(60), capture_output=True)
    done = subprocess.run(
        ["mount", "-o", "loop", image, mountpoint], check=False, timeout=limit(60), capture_output=True, text=True
    )
    if done.returncode:
        raise NoBtrfsError(f"the kernel does not mount a Btrfs here: {done.stderr.strip()}")
    mountpoint.chmod(0o1777)
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", "-l", mountpoint], check=False, timeout=limit(60))
        image.unlink()
