"""A stream of the bytes of a layer's tar, decompressed and hashed on two threads while it is read.

Knows compression, limits and digests. Does not know tar headers: `tarread` reads them from here.

For each stream one thread decompresses and one hashes. Both work on chunks of some hundred KiB and release the GIL
meanwhile; bounded queues between them and the reader bound the memory. Only the reader's thread may call methods.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, Self

from layers.compression import CountingReader, Readable, decompressed
from layers.digest import Digest
from layers.errors import Refused
from layers.limits import Limits

_QUEUED: Final = 4
"""Chunks between two threads: enough that a short delay of one does not stop the other."""


class TarStream:
    """A forward-only stream of the decompressed tar; close it, or use it in a `with`."""

    def __init__(self, source: Readable, limits: Limits, on_read: Callable[[int], None] | None = None) -> None:
        self._source = CountingReader(source, on_read)
        self._limits = limits
        self._chunks: queue.Queue[bytes | BaseException] = queue.Queue(_QUEUED)  # b"" ends it
        self._hashed: queue.Queue[bytes] = queue.Queue(_QUEUED)  # b"" ends it
        self._hash = hashlib.sha256()  # changed by the hashing thread only, read when that has ended
        self._stopping = False  # set once, by close()
        self._chunk = memoryview(b"")  # the unread rest of the current chunk
        self._position = 0
        self._ended = False
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._decompress, self._digest)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads. The unread rest is not checked."""
        self._stopping = True
        self._drain()
        for thread in self._threads:
            thread.join()

    def tell(self) -> int:
        """Bytes read or skipped so far."""
        return self._position

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        if len(self._chunk) >= size:
            data = bytes(self._chunk[:size])
            self._chunk = self._chunk[size:]
            self._position += size
            return data
        return b"".join(bytes(part) for part in self.parts(size))

    def parts(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes in parts, without a copy; fewer only at the end."""
        while size and (self._chunk or self._next()):
            part = self._chunk[:size]
            self._chunk = self._chunk[size:]
            self._position += len(part)
            size -= len(part)
            yield part

    def skip_to(self, position: int) -> bool:
        """Skip forward to `position`, at or after `tell()`. False when the stream ends before it."""
        for _ in self.parts(position - self._position):
            pass
        return self._position == position

    def finish(self) -> tuple[Digest, int]:
        """Read to the end; returns the sha256 and the length of the whole tar."""
        while self._next():
            pass
        self._threads[1].join()
        return Digest(f"sha256:{self._hash.hexdigest()}"), self._position

    def _next(self) -> bool:
        """Take the next chunk, skipping the rest of the current one. False at the end."""
        self._position += len(self._chunk)
        self._chunk = memoryview(b"")
        if self._ended:
            return False
        item = self._chunks.get()
        if isinstance(item, bytes) and item:
            self._chunk = memoryview(item)
            return True
        self._ended = True
        if isinstance(item, BaseException):
            raise item
        return False

    def _drain(self) -> None:
        while not self._ended:
            item = self._chunks.get()
            self._ended = not isinstance(item, bytes) or not item

    def _decompress(self) -> None:
        total = 0
        outcome: bytes | BaseException = b""
        try:
            for chunk in decompressed(self._source):
                total += len(chunk)
                self._limits.check_bytes(self._source.count, total)
                self._hashed.put(chunk)
                self._chunks.put(chunk)
                if self._stopping:
                    break
        except BaseException as error:  # noqa: BLE001 - raised again by the reader, on its thread
            outcome = error
        self._hashed.put(b"")
        self._chunks.put(outcome)

    def _digest(self) -> None:
        while chunk := self._hashed.get():
            self._hash.update(chunk)


def cut_off(where: str = "") -> Refused:
    """The error for a tar that ends too early."""
    return Refused("reading a tar", where, "it is cut off")
