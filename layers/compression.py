"""Streams in and out of gzip and zstd (and, for reading, bzip2 and xz), in bounded memory.

Knows compressed bytes. Does not know what is in them. What is decompressed comes in chunks of at most CHUNK bytes,
however well it was compressed. Compressing is deterministic: equal input gives equal bytes on one version of the
library.
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
"""Bytes handed on at once: enough that the cost of handing on does not show, little enough to have several."""
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
    """What bytes come from."""

    def read(self, size: int, /) -> bytes: ...


class Counted:
    """A Readable that counts what was read, and tells somebody (for progress)."""

    def __init__(self, source: Readable, tell: Callable[[int], None] | None = None) -> None:
        self.count = 0  # grows only
        self._source = source
        self._tell = tell

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self.count += len(data)
        if self._tell is not None:
            self._tell(len(data))
        return data


def detect(head: bytes) -> str:
    """How something that begins with `head` is compressed."""
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:
        return ZSTD  # a skippable frame (RFC 8878, 3.1.2)
    return next((name for magic, name in _MAGIC if head.startswith(magic)), NONE)


def decompressed(source: Readable) -> Iterator[bytes]:
    """The content of `source` in chunks of at most CHUNK bytes. Raises Refused when it is damaged or cut off."""
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
        if error.errno is None:  # bz2's way to say "invalid data stream"
            raise Refused(_WHAT, "", f"damaged {kind} data: {error}") from None
        raise


class Compressor(Protocol):
    """Takes bytes, gives compressed ones."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def compressor(kind: str) -> Compressor:
    """A compressor of one of WRITABLE."""
    if kind == GZIP:
        # zlib writes the header itself (wbits 31): no time, no name, so equal input gives equal output.
        return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31)
    if kind == ZSTD:
        import zstandard

        # Not threads=-1: the number of threads must not show in the bytes, and with 0 it never does.
        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj()
    assert kind == NONE, kind
    return _Plain()


class _Prefixed:
    """A Readable that begins with bytes that were read already."""

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

    # A stream that is cut off looks here like one that ended. Whoever reads the tar in it misses the rest.
    decoder = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX)
    with decoder.stream_reader(cast(Any, source), read_size=_READ, read_across_frames=True) as reader:
        while chunk := reader.read(CHUNK):
            yield chunk


def _zstd_error() -> type[Exception]:
    import zstandard

    return zstandard.ZstdError
