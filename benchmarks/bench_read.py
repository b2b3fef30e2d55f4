"""What does it cost to read: many small files, as a program that starts does, and one large file?"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.ladder import Case, main

_SMALL = b"x" * 4096
_CHUNK = 1 << 20  # a large read(2), as cp does them; also the unit in which a large file is counted


def prepare_small(lowers: Sequence[Path], size: int) -> None:
    """`size` files of 4 KiB."""
    for number in range(size):
        (lowers[number % len(lowers)] / f"file{number}").write_bytes(_SMALL)


def read_small(root: Path, size: int) -> int:
    """open, read to the end, close."""
    for number in range(size):
        fd = os.open(f"{root}/file{number}", os.O_RDONLY)
        if os.read(fd, len(_SMALL) + 1) != _SMALL:
            raise AssertionError(f"file{number} has other content")
        os.close(fd)
    return size


def prepare_large(lowers: Sequence[Path], size: int) -> None:
    """One file of `size` MiB."""
    with (lowers[0] / "large").open("wb") as large:
        for _ in range(size):
            large.write(b"y" * _CHUNK)


def read_large(root: Path, size: int) -> int:
    """Read it from beginning to end in chunks of 1 MiB."""
    fd = os.open(root / "large", os.O_RDONLY)
    seen = 0
    while chunk := os.read(fd, _CHUNK):
        seen += len(chunk)
    os.close(fd)
    if seen != size * _CHUNK:
        raise AssertionError(f"{seen} bytes instead of {size} MiB")
    return size


CASES = [
    Case("open, read 4 KiB, close", prepare_small, read_small, lowers=4),
    Case("read of 1 MiB of a large file", prepare_large, read_large, size=128),
]

if __name__ == "__main__":
    sys.exit(main(CASES))
