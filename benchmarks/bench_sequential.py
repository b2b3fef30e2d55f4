"""How fast are the data of a large file read and written?"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.materials import Materials
from benchmarks.suite import main
from benchmarks.workload import Context, Phase, Scale, Workload

_SIZE: Final = 1 << 30
_CHUNK: Final = 1 << 20


def lowers(materials: Materials, scale: Scale) -> Sequence[Path]:
    """One large file."""
    return [materials.large_file(scale.of(_SIZE, _CHUNK))]


def write(context: Context) -> None:
    """Write a new file of 1 GiB in calls of 1 MiB."""
    chunk = os.urandom(_CHUNK)
    fd = os.open(context.merged / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    for _ in range(context.scale.of(_SIZE, _CHUNK) // _CHUNK):
        os.write(fd, chunk)
    os.close(fd)


def sync(context: Context) -> None:
    """Write it through to the device."""
    fd = os.open(context.merged / "new", os.O_RDWR)
    os.fsync(fd)
    os.close(fd)


def read(context: Context) -> None:
    """Read a file of 1 GiB that a lower holds in calls of 1 MiB."""
    fd = os.open(context.merged / "large", os.O_RDONLY)
    buffer = bytearray(_CHUNK)
    while os.readv(fd, [buffer]):
        pass
    os.close(fd)


WORKLOADS = [
    Workload(
        "sequential-read",
        "a file of 1 GiB of a lower, read in calls of 1 MiB",
        [Phase("read 1 GiB, cold", read), Phase("read 1 GiB, warm", read, warm=True)],
        lowers,
    ),
    Workload(
        "sequential-write",
        "a new file of 1 GiB, written in calls of 1 MiB",
        [Phase("write 1 GiB", write), Phase("fsync of the 1 GiB", sync)],
        lowers,
        copied=(),
    ),
]

if __name__ == "__main__":
    sys.exit(main(only=WORKLOADS))
