"""What does it cost to find a name, present or missing, and does the number of layers matter?"""

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


def stat_present(root: Path, size: int) -> int:
    """stat each file once."""
    for number in range(size):
        os.lstat(f"{root}/d/file{number}")
    return size


def stat_missing(root: Path, size: int) -> int:
    """stat `size` names that are nowhere."""
    for number in range(size):
        if os.path.lexists(f"{root}/d/missing{number}"):
            raise AssertionError(f"missing{number} is there")
    return size


CASES = [
    Case(f"stat of a {kind} name, {lowers} lowers", prepare, run, lowers=lowers)
    for kind, run in (("present", stat_present), ("missing", stat_missing))
    for lowers in (1, 16, 128)
]

if __name__ == "__main__":
    sys.exit(main(CASES))
