"""A file of a web server, read as it comes. Knows HTTP; does not know what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import httpx

from layers.compression import Readable
from layers.errors import LayerError

_TIMEOUT_S: Final = 60


@contextmanager
def opened(url: str) -> Iterator[Readable]:
    """The file at an http or https address. Raises: LayerError when the server does not send it, or not all of it."""
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=_TIMEOUT_S) as answer:
            if answer.status_code != 200:
                why = f"the server answered {answer.status_code} ({answer.reason_phrase})"
                raise LayerError("fetching a file", url, why)
            yield _Body(answer)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise LayerError("fetching a file", url, str(error) or type(error).__name__) from None


class _Body:
    """What the server sends, not decompressed."""

    def __init__(self, answer: httpx.Response) -> None:
        self._chunks = answer.iter_raw()
        self._left = b""

    def read(self, size: int, /) -> bytes:
        if not self._left:
            self._left = next(self._chunks, b"")
        data, self._left = self._left[:size], self._left[size:]
        return data
