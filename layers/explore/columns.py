"""A file of typed columns: written once, then mapped into memory and read in place.

    magic               16 bytes, the last of them the version
    xxh3                 8 bytes, little-endian: XXH3-64 of all that follows
    length               8 bytes, little-endian: of the header
    header              JSON: facts of the writer about the file, and (name, type code, offset, bytes) of each column
    columns             each at an offset that is a multiple of 8

A file that is cut off, damaged, or of another version raises `Damaged`: it is a cache, and its owner makes it again.
Knows bytes only. Columns have the type codes of `array`; "B" is a blob.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import IO, Any, Final

import xxhash

Column = memoryview

_MAGIC: Final = b"unionfs columns1"
"""Contains the version of the content: a file of another version is another kind of file."""

_FIXED: Final = 32
_READ: Final = 1 << 20
_ALIGNED: Final = 8


class Damaged(Exception):  # noqa: N818 - reads as what it says
    """The file is no file of columns, or was changed since it was written. `str()` says why."""


def write(file: IO[bytes], about: Mapping[str, Any], columns: Mapping[str, array[Any] | bytes | bytearray]) -> None:
    """Write `columns` with `about`, which must be JSON, to an empty file that can be read and sought."""
    described = []
    position = 0
    for name, column in columns.items():
        code = column.typecode if isinstance(column, array) else "B"
        size = len(_bytes_of(column))
        described.append([name, code, position, size])
        position += -(-size // _ALIGNED) * _ALIGNED
    header = json.dumps({"about": about, "order": sys.byteorder, "columns": described}).encode("ascii")
    header = header.ljust(-(-len(header) // _ALIGNED) * _ALIGNED)
    hash_ = xxhash.xxh3_64()
    file.write(bytes(_FIXED))
    for data in (header, *columns.values()):
        with _bytes_of(data) as view:
            padding = bytes(-len(view) % _ALIGNED)
            for part in (view, padding):
                hash_.update(part)
                file.write(part)
    file.seek(0)
    file.write(_MAGIC + hash_.intdigest().to_bytes(8, "little") + len(header).to_bytes(8, "little"))
    file.flush()


def _bytes_of(data: array[Any] | bytes | bytearray) -> memoryview:
    return memoryview(data).cast("B") if len(data) else memoryview(b"")  # an empty view cannot be cast


class Columns:
    """The columns of a file, mapped. Names are looked up as `columns[name]`; close it after use."""

    def __init__(self, fd: int) -> None:
        """Map the file, which may be closed or removed afterwards. Raises: Damaged; OSError."""
        size = os.fstat(fd).st_size
        if size < _FIXED:
            raise Damaged("it is cut off")
        self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        self._views: list[memoryview] = []
        self._places: dict[str, tuple[int, int]] = {}  # name -> start and end in the file
        try:
            self.about, self._columns = self._opened(size)
        except BaseException:
            self.close()
            raise

    def _opened(self, size: int) -> tuple[dict[str, Any], dict[str, Column]]:
        whole = self._view(memoryview(self._map))
        if bytes(whole[: len(_MAGIC)]) != _MAGIC:
            raise Damaged("it is another kind of file")
        length = int.from_bytes(whole[24:32], "little")
        hash_ = xxhash.xxh3_64()
        for start in range(_FIXED, size, _READ):
            hash_.update(whole[start : min(start + _READ, size)])
        if hash_.intdigest() != int.from_bytes(whole[16:24], "little"):
            raise Damaged("its checksum is another")
        self._map.madvise(mmap.MADV_DONTNEED)  # pages that are read again come from the page cache
        header = json.loads(bytes(whole[_FIXED : _FIXED + length]))
        if header["order"] != sys.byteorder:
            raise Damaged("it was written on a machine of another byte order")
        start = _FIXED + length
        columns = {}
        for name, code, at, count in header["columns"]:
            self._places[name] = (start + at, start + at + count)
            found = self._view(whole[start + at : start + at + count])
            columns[name] = self._view(found.cast(code)) if count else found
        return header["about"], columns

    def _view(self, view: memoryview) -> memoryview:
        self._views.append(view)
        return view

    def __getitem__(self, name: str) -> Column:
        try:
            return self._columns[name]
        except KeyError:
            raise Damaged(f"it has no column {name!r}") from None

    def find(self, name: str, wanted: bytes, start: int = 0) -> int:
        """The offset of `wanted` in a blob, at `start` or behind it; -1: it is not there."""
        first, end = self._places[name]
        found = self._map.find(wanted, first + start, end)
        return found - first if found >= 0 else -1

    def close(self) -> None:
        """Release the mapping. Columns must not be used any more."""
        for view in reversed(self._views):
            view.release()
        self._views.clear()
        self._map.close()


def text(blob: Column, offsets: Sequence[int], number: int) -> bytes:
    """The item `number` of a blob of items, which begin at `offsets`; one more offset ends the last."""
    return bytes(blob[offsets[number] : offsets[number + 1]])
