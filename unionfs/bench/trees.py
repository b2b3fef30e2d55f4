"""Make the lowers that the cases need, once for each branch filesystem and never changed.

The caller makes the first directory of each lower: a plain one, or a btrfs subvolume.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from unionfs.bench.cases import MB, Point, Series

FIRST_CHANGED: Final = "settle"
"""A file in every lower; it is changed before anything is measured."""

_IN_A_DIRECTORY: Final = 100
_SPARSE_DATA: Final = 1 * MB
_BLOCK: Final = hashlib.sha256(b"unionfs").digest() * (1 << 15)  # 1 MB that is neither zeros nor equal block by block

MakeDirectory = Callable[[Path], None]


def make(series: Series, below: Path, make_directory: MakeDirectory) -> None:
    """Make the lowers of a series that are not there yet, with all files of its points. Raises: OSError."""
    for group in series.groups:
        for lower in group.lowers:
            top = below / lower
            if not top.exists():
                top.parent.mkdir(parents=True, exist_ok=True)
                make_directory(top)
            _fill(top, lower, group.points)


def space(all_series: Iterable[Series]) -> int:
    """Return the bytes that the lowers of these series take."""
    files = {}
    for series in all_series:
        for group in series.groups:
            for point in group.points:
                size = min(point.size, _SPARSE_DATA) if group.lowers[0] == "sparse" else point.size
                files[group.lowers[-1], point.path] = size + 4096 * point.files
    return sum(files.values())


def _fill(top: Path, lower: str, points: Iterable[Point]) -> None:
    if not (top / FIRST_CHANGED).exists():
        write(top / FIRST_CHANGED, 1)
    if lower.startswith("layers-"):
        number = int(lower.rpartition("/")[2])
        (top / "d").mkdir(exist_ok=True)
        write(top / "d" / f"f{number}", next(iter(points)).size)
        return
    for point in points:
        path = top / point.path
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if point.files > 1:
            _storm(path, point.files, point.size // point.files)
        elif lower == "sparse":
            _sparse(path, point.size)
        elif lower == "links":
            write(path, point.size)
            for number in range(1, int(point.x)):
                os.link(path, path.parent / f"n{number}")
        else:
            write(path, point.size)


def write(path: Path, size: int) -> None:
    """Write a file of `size` bytes without holes."""
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, len(_BLOCK)):
            file.write(_BLOCK[: size - start])


def _storm(top: Path, files: int, size: int) -> None:
    for number in range(files):
        directory = top / f"d{number // _IN_A_DIRECTORY}"
        if number % _IN_A_DIRECTORY == 0:
            directory.mkdir(parents=True)
        write(directory / f"f{number}", size)


def _sparse(path: Path, size: int) -> None:
    """Write half of the data at the beginning, half at the end, and leave a hole between them."""
    half = min(size, _SPARSE_DATA) // 2
    with path.open("wb", buffering=0) as file:
        file.write(_BLOCK[:half])
        file.seek(size - half)
        file.write(_BLOCK[:half])
