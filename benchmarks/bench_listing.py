"""What does it cost to list a large merged directory, per entry?"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.ladder import Case, main


def prepare(lowers: Sequence[Path], size: int) -> None:
    """`size` empty files, spread over the lowers in one merged directory."""
    for lower in lowers:
        (lower / "d").mkdir()
    for number in range(size):
        (lowers[number % len(lowers)] / "d" / f"file{number}").touch()


def names(root: Path, size: int) -> int:
    """List the names, as `ls`."""
    return _all_seen(len(os.listdir(root / "d")), size)


def names_and_attributes(root: Path, size: int) -> int:
    """List the names and stat each, as `ls -l`."""
    with os.scandir(root / "d") as entries:
        return _all_seen(len([entry.stat(follow_symlinks=False) for entry in entries]), size)


def _all_seen(seen: int, size: int) -> int:
    if seen != size:
        raise AssertionError(f"{seen} entries instead of {size}")
    return seen


CASES = [
    Case(f"{what}, {lowers} lowers", prepare, run, lowers=lowers, size=10_000)
    for what, run in (("ls of an entry", names), ("ls -l of an entry", names_and_attributes))
    for lowers in (1, 16)
]

if __name__ == "__main__":
    sys.exit(main(CASES))
