"""Download and upload blobs, resuming after a failure.

OCI distribution specification 1.1, "Pulling blobs", "Pushing a blob in chunks". A transfer is repeated as long as
attempts make progress; it fails after several without. An upload that the registry refuses at its end is sent once
more.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable
from typing import IO, Any, Final

import httpx
import trio

from layers import digest as digests
from layers.connection import linked
from layers.errors import LayerError, NotFound, Refused, RegistryError
from layers.manifest import Descriptor
from layers.session import Session, broken

CHUNK: Final = 16 << 20
"""Bytes of one chunk of an upload, the most that is sent again after a failed connection."""
_STORED: Final = (200, 201, 204)
_READ: Final = 1 << 20
_SEND: Final = 256 << 10
_STALLS_MAX: Final = 5  # consecutive attempts without progress
_CLOSINGS_MAX: Final = 2  # maximum number of refusals to end an upload of which the registry has all bytes

OnBytes = Callable[[int], None]
"""Called with the number of bytes that were transferred; negative when a transfer starts again."""


async def download(
    session: Session, url: str, scope: str, blob: Descriptor, file: IO[bytes], on_bytes: OnBytes
) -> None:
    """Download the blob into `file`, resuming after the bytes that it has, and verify it.

    Raises: Refused, with the file emptied, when the digest differs; NotFound, RegistryError, AuthError.
    """
    work = _Download(session, url, scope, blob, file, on_bytes)
    await trio.to_thread.run_sync(work.hash_what_is_there)
    await work.run()


class _Changed(Exception):  # noqa: N818 - not an error: the transfer starts again
    """The answer is not the requested part."""


class _Download:
    def __init__(
        self, session: Session, url: str, scope: str, blob: Descriptor, file: IO[bytes], on_bytes: OnBytes
    ) -> None:
        self.session = session
        self.url = url
        self.scope = scope
        self.blob = blob
        self.file = file
        self.on_bytes = on_bytes
        self.hash = digests.hasher(blob.digest)  # of the bytes in the file
        self.at = 0  # number of bytes in the file
        self.ranges = True  # whether range requests are tried
        self.left_by_others = False  # the bytes of an earlier download, which are not verified yet

    def hash_what_is_there(self) -> None:
        self.file.seek(0)
        while data := self.file.read(_READ):
            self._took(data)
        self.left_by_others = self.at > 0
        if self.at > self.blob.size:
            self._restart()

    async def run(self) -> None:
        await self._complete()
        if not self._is_right() and self.left_by_others:
            self._restart()
            await self._complete()
        if not self._is_right():
            self._restart()
            why = "the registry sent something else: the digest does not match"
            raise Refused("pulling a blob", self.blob.digest, why)

    def _is_right(self) -> bool:
        return digests.finished(self.blob.digest, self.hash) == self.blob.digest

    async def _complete(self) -> None:
        stalls = 0
        furthest = self.at
        while self.at < self.blob.size:
            try:
                await self._request()
            except _Changed:
                if not self.ranges:
                    why = "the registry sent another part than requested"
                    raise Refused("pulling a blob", self.blob.digest, why) from None
                self.ranges = False
                self._restart()
            except (httpx.HTTPError, RegistryError) as error:
                failure = error if isinstance(error, LayerError) else broken(self.session.endpoint.host, error)
                stalls = stalls + 1 if self.at <= furthest else 1
                if stalls >= _STALLS_MAX:
                    raise failure from None
                await trio.sleep(self.session.pause_s * 2**stalls)
            else:
                if self.at <= furthest:
                    stalls += 1
                    if stalls >= _STALLS_MAX:
                        raise RegistryError("pulling a blob", self.blob.digest, "the registry sends nothing")
            furthest = max(furthest, self.at)

    async def _request(self) -> None:
        headers = {"Accept-Encoding": "identity"}
        wanted = self.at if self.ranges else 0
        if wanted:
            headers["Range"] = f"bytes={wanted}-{self.blob.size - 1}"
        elif self.at:
            self._restart()
        async with self.session.stream("GET", self.url, scope=self.scope, headers=headers) as answer:
            if answer.status_code == 206:
                begin = re.match(r"bytes (\d{1,18})-", answer.headers.get("Content-Range", ""))
                if not wanted or begin is None or int(begin[1]) != wanted:
                    raise _Changed
            elif answer.status_code == 200:
                self._restart()  # the first request is for the whole blob; of later ones the range was ignored
            elif answer.status_code == 416 and wanted:
                raise _Changed
            else:
                await answer.aread()
                raise self.session.failure(answer, "pulling a blob", self.blob.digest)
            await self._receive(answer)

    async def _receive(self, answer: httpx.Response) -> None:
        async for data in answer.aiter_raw():  # written at once, so that it is kept when the connection fails
            if self.at + len(data) > self.blob.size:
                self._restart()
                why = f"the registry sends more than the {self.blob.size} bytes that the manifest says"
                raise Refused("pulling a blob", self.blob.digest, why)
            self.file.write(data)
            self._took(data)
        self.file.flush()

    def _took(self, data: bytes) -> None:
        self.hash.update(data)
        self.at += len(data)
        self.on_bytes(len(data))

    def _restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.on_bytes(-self.at)
        self.at = 0
        self.hash = digests.hasher(self.blob.digest)


class Upload:
    """The upload of one blob to a registry."""

    def __init__(
        self, session: Session, begin: str, scope: str, blob: Descriptor, file: IO[bytes], on_bytes: OnBytes, chunk: int
    ) -> None:
        self.session = session
        self.begin = begin  # the path that opens an upload
        self.scope = scope
        self.blob = blob
        self.file = file
        self.on_bytes = on_bytes
        self.chunk = chunk
        self.location = ""  # URL of the next request; each answer gives a new one
        self.at = 0  # bytes that the registry has
        self.whole = False  # the registry takes no chunks: the blob is sent in one request
        self.refusals = 0  # failed answers to the request that ends the upload
        self.is_second = False  # all bytes had been sent once, and the registry lost them

    async def run(self, answer: httpx.Response) -> bool:
        """Send everything, beginning with the `answer` (202) that opened the upload.

        False when the registry turned out to have the blob. Raises: RegistryError, AuthError, LayerError.
        """
        self._moved(answer)
        stalls = furthest = 0
        while True:
            before, was_whole = self.at, self.whole
            failure: LayerError | None = None
            try:
                if await self._step():
                    return True
            except (RegistryError, NotFound) as error:
                # The connection failed, or the upload is gone: below, the registry is asked how much it has.
                failure = error
            if self.at > furthest:
                stalls, furthest = 0, self.at
            elif failure is not None or (self.at <= before and self.whole == was_whole):
                stalls += 1
            if failure is None:
                if stalls < _STALLS_MAX:
                    continue
                failure = RegistryError("pushing a blob", self.blob.digest, "the registry accepts no data")
            if stalls >= _STALLS_MAX or self.refusals >= _CLOSINGS_MAX:
                raise failure
            await trio.sleep(self.session.pause_s * 2**stalls)
            if await self._ask_again(failure):
                return False

    async def _step(self) -> bool:
        """Send the next chunk, or end the upload; returns whether it ended."""
        if self.whole or self.at >= self.blob.size:
            return await self._close()
        length = min(self.chunk, self.blob.size - self.at)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(length),
            "Content-Range": f"{self.at}-{self.at + length - 1}",
        }
        answer = await self._send("PATCH", self.location, headers, self.at, length)
        if answer.status_code in (400, 404, 405, 411, 415, 501) and self.at == 0:
            # Some registries do not support chunks.
            self.whole = True
            await self._reopen()
            return False
        if answer.status_code == 416:
            raise RegistryError(
                "pushing a blob", self.blob.digest, "the registry does not accept the offset of the chunk"
            )
        self.session.expect(answer, "pushing a blob", self.blob.digest, 202)
        self._moved(answer)
        had = _received(answer)
        now = self.at + length if had is None else had
        if not self.at <= now <= self.at + length:
            raise RegistryError("pushing a blob", self.blob.digest, f"the registry says it has {now} bytes")
        self.on_bytes(now - self.at)
        self.at = now
        return False

    async def _close(self) -> bool:
        mark = "&" if "?" in self.location else "?"
        url = f"{self.location}{mark}digest={self.blob.digest}"  # which has no fragment
        length = self.blob.size if self.whole else 0
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(length)}
        answer = await self._send("PUT", url, headers, 0, length)
        if answer.status_code not in _STORED:
            self.refusals += (
                1 if answer.status_code != 413 else _CLOSINGS_MAX
            )  # 413: a blob that is too large stays too large
        self.session.expect(answer, "pushing a blob", self.blob.digest, *_STORED)
        if self.whole:
            self.on_bytes(length)
        return True

    async def _send(self, method: str, url: str, headers: dict[str, str], at: int, length: int) -> httpx.Response:
        def content() -> AsyncIterator[bytes]:
            return _Part(self.file.fileno(), at, length)

        body: Any = content if length else b""
        return await self.session.request(method, url, scope=self.scope, headers=headers, content=body, retry=False)

    async def _ask_again(self, failure: LayerError) -> bool:
        """Ask after a failure how much of the upload the registry has; returns True when it has the blob. Raises the
        failure if all bytes would have to be sent for the third time."""
        head = f"{self.begin.removesuffix('uploads/')}{self.blob.digest}"
        if (await self.session.request("HEAD", head, scope=self.scope)).status_code == 200:
            return True
        answer = await self.session.request("GET", self.location, scope=self.scope)
        had = _received(answer)
        if answer.status_code in (202, 204) and not self.whole and had is not None and had <= self.blob.size:
            self.on_bytes(had - self.at)
            self.at = had
            if "Location" in answer.headers:
                self._moved(answer)
        else:
            if self.at >= self.blob.size and not self.whole:
                if self.is_second:
                    raise failure
                self.is_second = True
            await self._reopen()
        return False

    async def _reopen(self) -> None:
        """Open a new upload."""
        answer = await self.session.request("POST", self.begin, scope=self.scope, content=b"")
        self.session.expect(answer, "pushing a blob", self.blob.digest, 202)
        self.on_bytes(-self.at)
        self.at = 0
        self._moved(answer)

    def _moved(self, answer: httpx.Response) -> None:
        """Take the URL of the next request, and the minimal chunk size, from an answer."""
        location = answer.headers.get("Location")
        if not location:
            raise LayerError(
                "pushing a blob", self.blob.digest, "the registry does not name the location of the rest of the upload"
            )
        self.location = str(linked(answer, location))
        least = answer.headers.get("OCI-Chunk-Min-Length", "")
        if least.isdecimal():
            self.chunk = max(self.chunk, min(int(least), 1 << 30))


class _Part(AsyncIterator[bytes]):
    """The bytes of a part of a file. Not a generator, which would have to be closed if it is not read to its end."""

    def __init__(self, fd: int, at: int, length: int) -> None:
        self._fd = fd
        self._at = at
        self._end = at + length

    async def __anext__(self) -> bytes:
        if self._at >= self._end:
            raise StopAsyncIteration
        data = os.pread(self._fd, min(_SEND, self._end - self._at), self._at)
        if not data:
            raise LayerError("pushing a blob", "", "the file became shorter meanwhile")
        self._at += len(data)
        return data


def _received(answer: httpx.Response) -> int | None:
    """The number of bytes of an upload that a registry has, by its Range header. "0-0" means none (or one)."""
    match = re.fullmatch(r"(?:bytes=)?0-(\d{1,18})", answer.headers.get("Range", ""))
    if match is None:
        return None
    last = int(match[1])
    return last + 1 if last else 0
