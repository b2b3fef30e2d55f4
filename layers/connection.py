"""HTTP requests to one registry and along its redirects: proxies, certificates. Knows no challenges.

Uses httpx's transports on trio without its client, which would parse each Location, keep cookies, and send names and
passwords within URLs. Each connection goes through the proxy that is set for its URL, and presents the client
certificate to the registry's own host only.

Redirects are followed where the method stays the same: 301, 302 and 303 of GET and HEAD, 307 and 308 of all. A secret
is sent until the chain first leaves its origin, and not after that, even if the chain returns.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, NamedTuple, Self

import httpx

from layers import proxies
from layers.endpoints import Endpoint, tls_context
from layers.errors import LayerError, Refused, RegistryError
from layers.origins import (
    Origin,
    join,
    may_have_authorization,
    may_have_client_certificate,
    origin,
    upgraded,
)

_TIMEOUT: Final = httpx.Timeout(60, connect=30, pool=None)
_REDIRECTS_MAX: Final = 10
_SAFE: Final = frozenset(("GET", "HEAD"))
_KEEPS_METHOD: Final = frozenset((307, 308))
_MAY_BECOME_GET: Final = frozenset((301, 302, 303))
_HEADERS: Final = {"User-Agent": "unionfs", "Accept": "*/*", "Accept-Encoding": "gzip, deflate"}

Content = Callable[[], AsyncIterator[bytes]]
"""A function that makes the body of a request, for each attempt."""


class Exchange(NamedTuple):
    """An answer, and whether all requests of its chain went to the origin that may have the secret."""

    answer: httpx.Response
    stayed: bool


@dataclass(slots=True)
class Connection:
    """The connections to one endpoint. Use it in an `async with`."""

    endpoint: Endpoint
    _routes: _Routes = field(init=False)

    async def __aenter__(self) -> Self:
        self._routes = _Routes(self.endpoint)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._routes.aclose()

    async def send(
        self,
        method: str,
        url: httpx.URL,
        home: Origin,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | Content | None = None,
        authorization: str = "",
        is_content_secret: bool = False,
        follow: bool = True,
    ) -> Exchange:
        """Send a request and follow redirects; the caller reads the body of the last answer and closes it.

        `authorization`, and `content` if that is secret, go to the origin `home` only.
        Raises: Refused for a malformed redirect, RegistryError for one that is not followed, httpx.HTTPError.
        """
        stayed = True
        for _ in range(_REDIRECTS_MAX + 1):
            url = upgraded(url, home)
            stayed = stayed and may_have_authorization(origin(url), home)
            if is_content_secret and not stayed:
                raise RegistryError(
                    "logging in", str(home), f"it redirects a request with credentials to {origin(url)}"
                )
            sent = {**_HEADERS, **(headers or {})}
            if authorization and stayed:
                sent["Authorization"] = authorization
            body = content() if callable(content) else content
            timeout = {"timeout": _TIMEOUT.as_dict()}
            request = httpx.Request(method, url, headers=sent, content=body, extensions=timeout)
            answer = await self._routes.ask(request)
            answer.request = request
            target = redirect_target(method, answer) if follow else None
            if target is None:
                return Exchange(answer, stayed)
            await answer.aclose()
            url = target
        raise RegistryError("reaching a registry", str(home), f"it redirects more than {_REDIRECTS_MAX} times")


def address(endpoint: Endpoint, scheme: str = "https") -> httpx.URL:
    """The root URL of a registry. Raises: RegistryError if its name is malformed."""
    try:
        return join(f"{scheme}:", f"//{endpoint.host}/")
    except ValueError as error:
        raise RegistryError("reaching a registry", endpoint.host, str(error)) from None


def redirect_target(method: str, answer: httpx.Response) -> httpx.URL | None:
    """The URL that an answer redirects to; None if it is no redirect. Raises: Refused for a malformed URL."""
    status = answer.status_code
    if "Location" not in answer.headers or not (
        status in _KEEPS_METHOD or (status in _MAY_BECOME_GET and method in _SAFE)
    ):
        return None
    return location(answer)


def location(answer: httpx.Response) -> httpx.URL:
    """The Location of an answer. Raises: Refused for a malformed URL."""
    return linked(answer, answer.headers["Location"])


def linked(answer: httpx.Response, text: str) -> httpx.URL:
    """Resolve a URL within an answer, relative to the answer's. Raises: Refused for a malformed URL."""
    try:
        return join(answer.url, text)
    except ValueError as error:
        why = f"it redirects to {text[:200]!r}: {error}"
        raise Refused("reaching a registry", str(origin(answer.url)), why) from None


class _Routes:
    """Connection pools by proxy, and by whether they present the client certificate."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._context: dict[bool, ssl.SSLContext] = {}
        self._pools: dict[tuple[str | None, bool], httpx.AsyncHTTPTransport] = {}

    async def ask(self, request: httpx.Request) -> httpx.Response:
        own = may_have_client_certificate(origin(request.url), origin(address(self._endpoint)).host)
        proxy = proxies.proxy_for(request.url, os.environ)
        pool = self._pools.get((proxy, own))
        if pool is None:
            pool = self._pools[proxy, own] = self._new(proxy, own)
        return await pool.handle_async_request(request)

    def _new(self, proxy: str | None, own: bool) -> httpx.AsyncHTTPTransport:
        if own not in self._context:
            self._context[own] = tls_context(self._endpoint, with_own_certificate=own)
        try:
            return httpx.AsyncHTTPTransport(verify=self._context[own], trust_env=False, proxy=proxy)
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            hint = "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY say which proxy is used; an HTTP proxy is needed"
            raise LayerError("reaching a registry", self._endpoint.host, f"its proxy: {error}", hint=hint) from None

    async def aclose(self) -> None:
        for pool in self._pools.values():
            await pool.aclose()
