"""Write entries as a layer's tar: equal entries give equal bytes, and every tar program can read them.

Knows the pax format through `tarfile`. Does not know the source of entries. Pax headers are written only for values
that a ustar header cannot hold: long or non-ASCII names, fractions of seconds, extended attributes, large numbers,
sparse files (GNU tar's format 1.0 for pax). User names and access times are not written: they differ between machines.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable
from typing import IO, Final

from layers.compression import compressor
from layers.digest import Digest
from layers.entry import BLOCK, CHARACTER, DIRECTORY, FIFO, FILE, LINK, OPAQUE, SYMLINK, WHITEOUT, Entry
from layers.errors import LayerError
from unionfs import markers

_READ: Final = 1 << 20
_RECORD: Final = tarfile.RECORDSIZE
_TYPES: Final = {
    FILE: tarfile.REGTYPE,
    DIRECTORY: tarfile.DIRTYPE,
    SYMLINK: tarfile.SYMTYPE,
    LINK: tarfile.LNKTYPE,
    CHARACTER: tarfile.CHRTYPE,
    BLOCK: tarfile.BLKTYPE,
    FIFO: tarfile.FIFOTYPE,
}
_SPARSE_NAME: Final = "GNUSparseFile.0/data"  # short and ASCII: a `path` record would contradict GNU.sparse.name
_SPARSE_MAX: Final = 8 << 30  # tarfile misreads the size of larger sparse files


class TarWriter:
    """Writes one tar into `sink`, compressed, and computes its size and both digests."""

    def __init__(
        self,
        sink: IO[bytes],
        compression: str,
        on_read: Callable[[int], None] | None = None,
        on_shrunk: Callable[[str], None] | None = None,
    ) -> None:
        """`on_shrunk` gets the path of a file that became shorter after its header was written; the rest of its data
        is written as zeros, since a header cannot be taken back. None: such a file is an error."""
        self.size = 0  # bytes of the compressed tar
        self.tar_size = 0
        self._sink = sink
        self._compressor = compressor(compression)
        self._compressed = hashlib.sha256()
        self._plain = hashlib.sha256()
        self._on_read = on_read
        self._on_shrunk = on_shrunk

    def add(self, entry: Entry, data_fd: int | None = None) -> None:
        """Write one entry. The data of a FILE come from `data_fd`, opened for reading.

        Raises: LayerError for an entry that no tar can hold, and without `on_shrunk` for a file that became shorter
        meanwhile; OSError.
        """
        header, extents = _header(entry)
        self._put(header)
        if entry.kind != FILE or not entry.size:
            return
        assert data_fd is not None
        written = 0
        for offset, length in extents:
            self._copy(data_fd, offset, length, entry)
            written += length
        self._pad(written)

    def close(self) -> tuple[Digest, Digest]:
        """Write the end of the tar; returns the digests of the compressed tar and of the plain tar (the diff id)."""
        self._put(bytes(2 * tarfile.BLOCKSIZE))
        self._put(bytes(-self.tar_size % _RECORD))
        self._out(self._compressor.flush())
        return Digest(f"sha256:{self._compressed.hexdigest()}"), Digest(f"sha256:{self._plain.hexdigest()}")

    def _copy(self, fd: int, offset: int, length: int, entry: Entry) -> None:
        while length:
            data = os.pread(fd, min(_READ, length), offset)
            if not data:
                if self._on_shrunk is None:
                    raise LayerError("packing", _shown(entry), "it became shorter while it was being read")
                self._on_shrunk(_shown(entry))
                self._put_zeros(length)
                return
            self._put(data)
            offset += len(data)
            length -= len(data)
            if self._on_read is not None:
                self._on_read(len(data))

    def _put_zeros(self, length: int) -> None:
        while length:
            part = min(_READ, length)
            self._put(bytes(part))
            length -= part

    def _pad(self, written: int) -> None:
        self._put(bytes(-written % tarfile.BLOCKSIZE))

    def _put(self, data: bytes) -> None:
        if data:
            self.tar_size += len(data)
            self._plain.update(data)
            self._out(self._compressor.compress(data))

    def _out(self, data: bytes) -> None:
        if data:
            self.size += len(data)
            self._compressed.update(data)
            self._sink.write(data)


def _header(entry: Entry) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    """The header of an entry, and the (offset, length) of the parts of its data that follow it."""
    info = tarfile.TarInfo(_text(b"/".join(entry.path) or b"."))
    pax: dict[str, str] = {}
    extents: tuple[tuple[int, int], ...] = ((0, entry.size),)
    prefix = b""
    if entry.kind in (WHITEOUT, OPAQUE):
        info.name = _text(b"/".join(mark_path(entry)))
        info.mode = 0o600
    else:
        info.type = _TYPES[entry.kind]
        info.mode = entry.mode
        info.uid, info.gid = entry.uid, entry.gid
        info.mtime, fraction = divmod(entry.mtime_ns, 10**9)
        if fraction or info.mtime < 0:
            pax["mtime"] = _decimal(entry.mtime_ns)
            info.mtime = max(info.mtime, 0)
        for name, value in entry.xattrs:
            if "=" in name or "\udc80" <= max(name) <= "\udcff":
                raise LayerError("packing", _shown(entry), f"the attribute {name!r} has a name that no tar can hold")
            pax[f"SCHILY.xattr.{name}"] = _text(value)
    if entry.kind == FILE:
        info.size = entry.size
        if entry.extents is not None and sum(length for _, length in entry.extents) < _SPARSE_MAX:
            extents = entry.extents
            prefix = _sparse_map(extents, entry.size)
            info.size = len(prefix) + sum(length for _, length in extents)
            pax |= {
                "GNU.sparse.major": "1",
                "GNU.sparse.minor": "0",
                "GNU.sparse.name": info.name,
                "GNU.sparse.realsize": str(entry.size),
            }
            info.name = _SPARSE_NAME
    elif entry.kind == SYMLINK:
        info.linkname = _text(entry.target)
    elif entry.kind == LINK:
        info.linkname = _text(b"/".join(entry.link))
    elif entry.kind in (CHARACTER, BLOCK):
        info.devmajor, info.devminor = entry.device
    info.pax_headers = dict(sorted(pax.items()))
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + prefix, extents


def mark_path(entry: Entry) -> tuple[bytes, ...]:
    """The path of the mark that stands for a WHITEOUT or OPAQUE. Raises: LayerError for a name that is too long."""
    if entry.kind == OPAQUE:
        return (*entry.path, markers.OPAQUE_NAME)
    mark = markers.whiteout_name(entry.path[-1])
    if mark is None:
        why = f"a name of more than {markers.NAME_MAX - len(markers.WHITEOUT_PREFIX)} bytes cannot be whited out"
        raise LayerError("packing", _shown(entry), why)
    return (*entry.path[:-1], mark)


def _sparse_map(extents: tuple[tuple[int, int], ...], size: int) -> bytes:
    """GNU tar manual, "Storing Sparse Files", format 1.0: the count, then offset and length of each part."""
    parts = list(extents)
    if not parts or sum(parts[-1]) < size:
        parts.append((size, 0))  # marks the end of the last hole
    text = b"".join(b"%d\n" % number for number in (len(parts), *(n for part in parts for n in part)))
    return text + bytes(-len(text) % tarfile.BLOCKSIZE)


def _decimal(nanoseconds: int) -> str:
    seconds, fraction = divmod(abs(nanoseconds), 10**9)
    text = f"{seconds}.{fraction:09d}".rstrip("0").rstrip(".")
    return f"-{text}" if nanoseconds < 0 else text


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _shown(entry: Entry) -> str:
    return _text(b"/".join(entry.path))
