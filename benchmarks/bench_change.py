"""What does it cost to change: create, copy up a small or a large file, append, rename, remove?"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.ladder import Case, main

_SMALL = b"x" * 4096
_LARGE = 8 << 20


def prepare_nothing(lowers: Sequence[Path], size: int) -> None:
    """One empty directory."""
    (lowers[0] / "d").mkdir()


def prepare_small(lowers: Sequence[Path], size: int) -> None:
    """`size` files of 4 KiB."""
    (lowers[0] / "d").mkdir()
    for number in range(size):
        (lowers[0] / "d" / f"file{number}").write_bytes(_SMALL)


def prepare_large(lowers: Sequence[Path], size: int) -> None:
    """`size` files of 8 MiB."""
    (lowers[0] / "d").mkdir()
    for number in range(size):
        (lowers[0] / "d" / f"file{number}").write_bytes(b"z" * _LARGE)


def create(root: Path, size: int) -> int:
    """Create a file, write 4 KiB, close."""
    for number in range(size):
        fd = os.open(f"{root}/d/new{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, _SMALL)
        os.close(fd)
    return size


def append(root: Path, size: int) -> int:
    """Append one byte to each file; on a union, that is what copies it up."""
    for number in range(size):
        fd = os.open(f"{root}/d/file{number}", os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"!")
        os.close(fd)
    return size


def append_often(root: Path, size: int) -> int:
    """Append one byte `size` times to one new file, as a log is written."""
    fd = os.open(root / "d" / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for _ in range(size):
        os.write(fd, b"!")
    os.close(fd)
    return size


def rename(root: Path, size: int) -> int:
    """Rename each file of a lower within its directory."""
    for number in range(size):
        os.rename(f"{root}/d/file{number}", f"{root}/d/moved{number}")
    return size


def remove(root: Path, size: int) -> int:
    """Remove each file of a lower."""
    for number in range(size):
        os.unlink(f"{root}/d/file{number}")
    return size


CASES = [
    Case("create, write 4 KiB, close", prepare_nothing, create, warm=False),
    Case("first append to a file of 4 KiB", prepare_small, append, warm=False),
    Case("first append to a file of 8 MiB", prepare_large, append, size=8, warm=False),
    Case("append one byte", prepare_nothing, append_often, size=5000),
    Case("rename", prepare_small, rename, warm=False),
    Case("remove", prepare_small, remove, warm=False),
]

if __name__ == "__main__":
    sys.exit(main(CASES))
