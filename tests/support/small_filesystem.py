"""A filesystem with little room, for tests of a full disk. Mounting it needs root."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import pytest

from tests.support.timing import limit

MIB: Final = 1 << 20


@contextmanager
def small_filesystem(kind: Literal["tmpfs", "ext4"], top: Path) -> Iterator[Path]:
    """Mount a filesystem with some 8 MiB of room in the directory `top`. Skips the test where that is not possible."""
    where = top / "small"
    where.mkdir()
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=2000", "none", str(where)]
    else:
        image = top / "image"
        with open(image, "wb") as file:
            os.truncate(file.fileno(), 12 * MIB)
        make = ["mkfs.ext4", "-q", "-b", "4096", "-m", "0", str(image)]
        made = subprocess.run(make, capture_output=True, timeout=limit(60), check=False)
        if made.returncode != 0:
            pytest.skip(f"mkfs.ext4 does not work here: {made.stderr.decode()}")
        command = ["mount", "-o", "loop", str(image), str(where)]
    mounted = subprocess.run(command, capture_output=True, text=True, timeout=limit(60), check=False)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small {kind}: {mounted.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True, timeout=limit(60))


def fill(where: Path, leave: int = 0) -> None:
    """Take all room but `leave` bytes, and all inodes but a few."""
    with open(where / "filler", "wb") as file:
        for size in (MIB, 65536, 4096, 1):
            while _write(file.fileno(), size):
                continue
        if leave:
            os.truncate(file.fileno(), max(0, os.fstat(file.fileno()).st_size - leave))


def _write(fd: int, size: int) -> bool:
    """Write at the end of a file. Returns whether there was room for some of it. Raises OSError but for ENOSPC."""
    try:
        return os.write(fd, b"\xff" * size) > 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False


def make_room(where: Path) -> None:
    """Remove the files that took all room. ext4 reuses blocks only when its journal is written, so that is forced."""
    (where / "filler").unlink()
    directory_fd = os.open(where, os.O_RDONLY)
    os.fsync(directory_fd)
    os.close(directory_fd)
