"""Compress and decompress gzip and zstd streams (bzip2 and xz: decompress only) in bounded memory.

Does not know the content of the streams. Decompressed data come in chunks of at most CHUNK bytes, whatever the ratio.
Compressing is deterministic: equal input gives equal bytes with one version of the library.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, cast

from layers.errors import Refused
from layers.limits import ZSTD_WINDOW_MAX

CHUNK: Final = 1 << 20
"""Bytes of one chunk: large enough that the cost per chunk does not matter, small enough to queue several."""
_READ: Final = 256 << 10

NONE: Final = "none"
GZIP: Final = "gzip"
ZSTD: Final = "zstd"
WRITABLE: Final = (NONE, GZIP, ZSTD)

_GZIP_LEVEL: Final = 6  # what gzip(1) and Docker use
_ZSTD_LEVEL: Final = 3  # zstd(1)'s own default
_MAGIC: Final = (
    (b"\x1f\x8b", GZIP),
    (b"\x28\xb5\x2f\xfd", ZSTD),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
)
_WHAT: Final = "decompressing"


class Readable(Protocol):
    """A source of bytes: a file, a pipe, a response."""

    def read(self, size: int, /) -> bytes: ...


class CountingReader:
    """A Readable that counts the bytes read from `source` and passes each read's number to `on_read` (for progress)."""

    def __init__(self, source: Readable, on_read: Callable[[int], None] | None = None) -> None:
        self.count = 0  # grows only
        self._source = source
        self._on_read = on_read

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self.count += len(data)
        if self._on_read is not None:
            self._on_read(len(data))
        return data


def detect(head: bytes) -> str:
    """The compression of data that begin with `head`, by their magic number."""
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:
        return ZSTD  # a skippable frame (RFC 8878, 3.1.2)
    return next((name for magic, name in _MAGIC if head.startswith(magic)), NONE)


def decompressed(source: Readable) -> Iterator[bytes]:
    """Decompress `source` into chunks of at most CHUNK bytes. Raises Refused when it is damaged or cut off."""
    head = source.read(_READ)
    while 0 < len(head) < 8 and (more := source.read(_READ)):
        head += more
    kind = detect(head)
    whole = _Prefixed(head, source)
    try:
        if kind == NONE:
            while chunk := whole.read(CHUNK):
                yield chunk
        elif kind == ZSTD:
            yield from _zstd(whole)
        else:
            yield from _members(whole, _DECODERS[kind])
    except (zlib.error, lzma.LZMAError, EOFError, _zstd_error()) as error:
        raise Refused(_WHAT, "", f"damaged {kind} data: {error}") from None
    except OSError as error:
        if error.errno is None:  # bz2 raises OSError without an errno for damaged data
            raise Refused(_WHAT, "", f"damaged {kind} data: {error}") from None
        raise


class Compressor(Protocol):
    """The interface of zlib's and zstandard's compressors."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def compressor(kind: str) -> Compressor:
    """A new compressor; `kind` is one of WRITABLE."""
    if kind == GZIP:
        # zlib writes the header itself (wbits 31): no time, no name, so equal input gives equal output.
        return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31)
    if kind == ZSTD:
        import zstandard

        # Without threads: the output of several would depend on their number.
        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj()
    assert kind == NONE, kind
    return _Plain()


class _Prefixed:
    """A Readable that gives `head`, then the rest of a source from which `head` was read."""

    def __init__(self, head: bytes, rest: Readable) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._rest.read(size)


class _Zlib:
    """zlib's decompressor with the interface that bz2's and lzma's have."""

    def __init__(self) -> None:
        self._object = zlib.decompressobj(31)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._object.decompress(self._object.unconsumed_tail + data, max_length)

    @property
    def needs_input(self) -> bool:
        return not self._object.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data


_DECODERS: Final[dict[str, Callable[[], Any]]] = {
    GZIP: _Zlib,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(memlimit=256 << 20),
}


def _members(source: Readable, make: Callable[[], Any]) -> Iterator[bytes]:
    """All members of a gzip, bzip2 or xz stream; zeros may follow the last one (RFC 1952 allows several members)."""
    data = source.read(_READ)
    while data:
        decoder = make()
        while not decoder.eof:
            if decoder.needs_input and not data:
                data = source.read(_READ)
                if not data:
                    raise EOFError("it ends in the middle")
            chunk = decoder.decompress(data, CHUNK)
            data = b""
            if chunk:
                yield chunk
        data = decoder.unused_data or source.read(_READ)
        while data and not data.strip(b"\0"):
            data = source.read(_READ)


def _zstd(source: Readable) -> Iterator[bytes]:
    import zstandard

    # No error is raised here for a stream that is cut off; the reader of the tar in it finds the tar cut off.
    decoder = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX)
    with decoder.stream_reader(cast(Any, source), read_size=_READ, read_across_frames=True) as reader:
        while chunk := reader.read(CHUNK):
            yield chunk


def _zstd_error() -> type[Exception]:
    import zstandard

    return zstandard.ZstdError
