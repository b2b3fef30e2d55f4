"""Read the entries of a layer from its tar or directory, with the stored size and a fingerprint of each, for reports.

Knows tars and directories. Does not know images, nor how layers hide each other's files: see `size_report`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

import xxhash

from layers.attributes import Options
from layers.compression import Readable
from layers.digest import Digest
from layers.entry import DIRECTORY, FILE, LINK, OPAQUE, SYMLINK, WHITEOUT, Entry
from layers.limits import Limits
from layers.safe_open import Path
from layers.tarread import entries
from layers.tarstream import TarStream
from layers.tree import LayerTree, Node, View, content, target
from unionfs import markers

OCI: Final = "oci"  # the dialect of a tar's marks


class Piece(NamedTuple):
    """One entry of a layer, with the size and fingerprint of its data."""

    entry: Entry
    stored: int = 0  # bytes of data in the layer: less than the entry's size if the file has holes
    content: str = ""  # XXH3-128 of a file's data; empty when it was not computed
    dialect: str = ""  # of a mark
    redirect: Path | None = None  # of a directory: the path of its content in the layers beneath
    offset: int = 0  # of the data in a tar, decompressed
    head: bytes = b""  # the first bytes of the data, which show the type of many files
    metacopy: bool = False  # a file of a directory of which only the attributes are here
    partial: bool = False  # ... of which only a part of the data is here; only its union knows which


HEAD: Final = 8
"""The most bytes of `Piece.head`."""


class TarPieces:
    """The pieces of a tar. Can be iterated once, after which `diff_id` is set."""

    def __init__(self, source: Readable, limits: Limits | None = None) -> None:
        self.diff_id = Digest("")  # set once, at the end
        self._source = source
        self._limits = limits or Options().limits

    def __iter__(self) -> Iterator[Piece]:
        """Raises: Refused."""
        with TarStream(self._source, self._limits) as stream:
            for entry in entries(stream, self._limits):
                if entry.kind == FILE:
                    yield _file(stream, entry)
                else:
                    yield Piece(entry, dialect=OCI if entry.kind in (WHITEOUT, OPAQUE) else "")
            self.diff_id, _ = stream.finish()


def _file(stream: TarStream, entry: Entry) -> Piece:
    stored = entry.size if entry.extents is None else sum(length for _, length in entry.extents)
    hash_ = xxhash.xxh3_128()
    offset, head = stream.tell(), b""
    for part in stream.parts(stored):
        head = head or bytes(part[:HEAD])
        hash_.update(part)
    # Two files with holes at different offsets may have the same data.
    if entry.extents is not None:
        hash_.update(repr((entry.size, entry.extents)).encode())
    return Piece(entry, stored, hash_.hexdigest(), offset=offset, head=head)


def of_directory(branch: LayerTree, *, fingerprints: bool = True) -> Iterator[Piece]:
    """The pieces of a layer directory with marks of any dialect."""
    first: dict[tuple[int, int], Path] = {}
    for path, node in View([branch]).walk():
        if node.is_dir:
            yield from _directory(branch, path, node)
            continue
        if node.nlink > 1 and first.setdefault(node.inode, path) != path:
            yield Piece(_entry(path, node)._replace(kind=LINK, link=first[node.inode], size=0))
            continue
        if node.kind != stat.S_IFREG:
            yield Piece(_entry(path, node))
            continue
        lacks = _lacking(branch, path, node)
        if lacks:
            yield Piece(_entry(path, node), _stored(node), metacopy=lacks == _ALL, partial=lacks == _SOME)
        elif fingerprints and node.size:
            yield Piece(_entry(path, node), _stored(node), content(node), head=_head(node))
        else:
            yield Piece(_entry(path, node), _stored(node))


_ALL: Final = 1
_SOME: Final = 2


def _lacking(branch: LayerTree, path: Path, node: Node) -> int:
    """Which part of a file's data is in a layer beneath: 0, _SOME or _ALL. The file has holes in its place."""
    if _stored(node) >= node.size:
        return 0
    names = branch.xattr_names(path[:-1], path[-1])
    if not any(mark in names for mark in markers.METACOPY_XATTRS):
        return 0
    return _SOME if markers.is_partial(branch.xattrs(path)) else 0 if _stored(node) else _ALL


def _head(node: Node) -> bytes:
    fd = node.data.branch.open_path(node.data.path)
    try:
        with open(f"/proc/self/fd/{fd}", "rb", buffering=0) as file:
            return file.read(HEAD)
    finally:
        os.close(fd)


def _directory(branch: LayerTree, path: Path, node: Node) -> Iterator[Piece]:
    scan = branch.scan(path)
    yield Piece(_entry(path, node), redirect=_from(path, scan.redirect))
    if scan.opaque:
        yield Piece(Entry(path, OPAQUE), dialect=scan.opaque)
    for name, dialect in sorted(scan.whiteouts.items()):
        yield Piece(Entry((*path, name), WHITEOUT), dialect=dialect)


def _from(path: Path, redirect: bytes | None) -> Path | None:
    if redirect is None:
        return None
    components = markers.redirect_components(redirect)
    return (*path[:-1], redirect) if components is None else tuple(components)


def _stored(node: Node) -> int:
    fd = node.data.branch.open_path(node.data.path)
    try:
        return min(node.size, os.fstat(fd).st_blocks * 512)  # st_blocks is in units of 512 bytes (stat(2))
    finally:
        os.close(fd)


def _entry(path: Path, node: Node) -> Entry:
    return Entry(
        path,
        DIRECTORY if node.is_dir else node.kind,
        node.mode,
        node.uid,
        node.gid,
        node.mtime_ns,
        node.size,
        target(node) if node.kind == SYMLINK else b"",
        device=node.device,
    )
