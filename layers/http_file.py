"""Read a file from a web server as a stream. Knows HTTP; does not know the file's format."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Final

import httpx

from layers import proxies
from layers.connection import redirect_target
from layers.errors import LayerError
from layers.origins import join

_TIMEOUT_S: Final = 60
_REDIRECTS_MAX: Final = 10


@contextmanager
def opened(url: str) -> Iterator[Body]:
    """Open the file at an http or https URL; a name and password in the URL are sent to its own origin only.

    Raises: LayerError when the server does not send it, or not all of it.
    """
    try:
        address = join("", url)
    except ValueError as error:
        raise LayerError("fetching a file", url, str(error)) from None
    shown = str(address.copy_with(username=None, password=None))
    try:
        with _answered(address, shown) as answer:
            if answer.status_code != 200:
                why = f"the server answered {answer.status_code} ({answer.reason_phrase})"
                raise LayerError("fetching a file", shown, why)
            yield Body(answer)
    except httpx.HTTPError as error:
        raise LayerError("fetching a file", shown, str(error) or type(error).__name__) from None


@contextmanager
def _answered(url: httpx.URL, shown: str) -> Iterator[httpx.Response]:
    """The answer at the end of a chain of redirects."""
    for _ in range(_REDIRECTS_MAX + 1):
        with _client(url, shown) as client, client.stream("GET", url) as answer:
            target = redirect_target("GET", answer)
            if target is None:
                yield answer
                return
        url = target
    raise LayerError("fetching a file", shown, f"the server redirects more than {_REDIRECTS_MAX} times")


def _client(url: httpx.URL, shown: str) -> httpx.Client:
    try:
        proxy = proxies.proxy_for(url, os.environ)
        # The machine's authorities, as for registries; httpx has its own.
        return httpx.Client(timeout=_TIMEOUT_S, trust_env=False, proxy=proxy, verify=ssl.create_default_context())
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise LayerError("fetching a file", shown, f"the proxy: {error}") from None


class Body:
    """The body of an answer as a Readable, not decompressed."""

    def __init__(self, answer: httpx.Response) -> None:
        self.modified_s: Final = _seconds(answer.headers.get("Last-Modified", ""))  # since 1970; None: it is not known
        self._chunks = answer.iter_raw()
        self._left = b""

    def read(self, size: int, /) -> bytes:
        if not self._left:
            self._left = next(self._chunks, b"")
        data, self._left = self._left[:size], self._left[size:]
        return data


def _seconds(date: str) -> int | None:
    """A date of a header (RFC 9110, 5.6.7); None for anything else."""
    with suppress(ValueError, TypeError, OverflowError):
        return max(int(parsedate_to_datetime(date).timestamp()), 0)
    return None
