"""Read the data of one file of a layer, from its directory or from its tar, which is decompressed up to the file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import IO, Final, Protocol

import xxhash

from layers.attributes import Options
from layers.entry import FILE, LINK
from layers.errors import LayerError, NotFound, Refused
from layers.explore.layer_index import LACKING, LayerIndex
from layers.safe_open import Path
from layers.tarstream import TarStream, cut_off
from layers.tree import LayerTrees

_READ: Final = 1 << 18


class Readable(Protocol):
    """A layer whose data can be read."""

    @property
    def directory(self) -> str | None:
        """The host path of a layer directory; None for a tar."""

    def opened(self) -> IO[bytes]:
        """Open its tar, as it is stored."""


def parts(layer: Readable, index: LayerIndex, record: int) -> Iterator[bytes]:
    """Yield the data of a regular file, or of the file that a hard link leads to, in parts; holes are zero bytes.

    Raises: Refused when the layer is damaged or was changed meanwhile; NotFound when it has gone; LayerError as
    `refuse_lacking`; OSError.
    """
    record = first_name(index, record)
    entry = index.entry(record)
    if entry.kind != FILE:
        return
    refuse_lacking(index, record)
    if layer.directory is not None:
        yield from _of_directory(layer.directory, entry.path)
        return
    with layer.opened() as source, TarStream(source, Options().limits) as stream:
        yield from of_stream(stream, index, record)


def of_stream(stream: TarStream, index: LayerIndex, record: int) -> Iterator[bytes]:
    """Yield the data of a regular file of a tar. Preconditions: `stream` is not behind them. Raises: Refused."""
    entry = index.entry(record)
    if not stream.skip_to(index.offset[record]):
        raise cut_off()
    position = 0
    hash_ = xxhash.xxh3_128()
    for offset, length in entry.extents if entry.extents is not None else ((0, entry.size),):
        yield from _zeros(offset - position)
        left = length
        for part in stream.parts(length):
            left -= len(part)
            hash_.update(part)
            yield bytes(part)
        if left:
            raise cut_off()
        position = offset + length
    yield from _zeros(entry.size - position)
    expected = index.content(record)
    if entry.extents is None and expected and hash_.digest() != expected:
        why = "the tar has changed since it was indexed"
        raise Refused("reading a file", os.fsdecode(index.path(record)), why, hint="start the explorer again")


def refuse_lacking(index: LayerIndex, record: int) -> None:
    """Raise LayerError for a file whose data are partly in a lower layer: only a union can read it."""
    if any(name in index.extra(record) for name in LACKING):
        hint = "read it on the mounted union, or bring its data to the layer by `unionfs complete MOUNTPOINT`"
        path = os.fsdecode(index.path(record))
        raise LayerError("reading a file", path, "some or all of its data are in a lower layer", hint=hint)


def first_name(index: LayerIndex, record: int) -> int:
    """Return the record of the file that a hard link of the same layer leads to; other records are returned unchanged.

    Raises: Refused where the layer has no such file.
    """
    return first_names(index, [record])[record] if index.kind_of(record) == LINK else record


def first_names(index: LayerIndex, links: Iterable[int]) -> dict[int, int]:
    """Return for records of hard links that of the file that each leads to. Reads all paths of the layer once.

    Raises: Refused where the layer has no such file.
    """
    targets = {record: bytes.fromhex(index.extra(record)["link"]) for record in links}
    wanted = set(targets.values())
    files: dict[bytes, int] = {}
    for at in range(len(index)) if wanted else ():
        if index.kind_of(at) == FILE and (path := index.path(at)) in wanted:
            files[path] = at  # the last of a path is the one that shows
    for record, target in targets.items():
        if target not in files:
            why = "the file that it is a name of is in another layer"
            raise Refused("reading a file", os.fsdecode(index.path(record)), why)
    return {record: files[target] for record, target in targets.items()}


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield bytes(min(count, _READ))
        count -= _READ


def _of_directory(directory: str, path: Path) -> Iterator[bytes]:
    with LayerTrees() as trees:
        try:
            fd = trees.open(directory).open_path(path)
        except FileNotFoundError:
            raise NotFound("reading a file", os.fsdecode(b"/".join(path)), "it has been removed meanwhile") from None
        try:
            with open(f"/proc/self/fd/{fd}", "rb", buffering=0) as file:
                while part := file.read(_READ):
                    yield part
        finally:
            os.close(fd)


def beginning(layer: Readable, index: LayerIndex, record: int, most: int) -> bytes:
    """Return at most the first `most` bytes of the data. Raises: as `parts` does."""
    found = bytearray()
    for part in parts(layer, index, record):
        found += part
        if len(found) >= most:
            break
    return bytes(found[:most])


_TYPES: Final = (
    (b"\x7fELF", "elf"), (b"#!", "script"), (b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"), (b"PK\x03\x04", "zip"), (b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"),
    (b"%PDF", "pdf"), (b"SQLite", "sqlite"), (b"-----BEG", "pem"), (b"!<arch>", "ar"), (b"\xca\xfe\xba\xbe", "class"),
    (b"\0asm", "wasm"), (b"<?xml", "xml"), (b"\xde\x12\x04\x95", "mo"),
)  # fmt: skip
TYPES: Final = (*[name for _, name in _TYPES], "text", "data", "empty")


def content_type(head: bytes, size: int) -> str:
    """Return the content type by a file's first bytes, one of TYPES."""
    if not size:
        return "empty"
    head = head[:size]
    for beginning_, name in _TYPES:
        if head.startswith(beginning_):
            return name
    is_text = all(byte >= 0x20 or byte in (9, 10, 13) for byte in head)
    return "text" if is_text else "data"
