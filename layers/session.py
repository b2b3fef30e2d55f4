"""Requests to one registry, with authorization and retries. Does not know what is requested.

A request is repeated when the connection fails or the server is busy; so is one to the registry's token server. After
a 401 of the registry's own origin it is sent once more, with the header that `tokens` gives; a 401 of another origin is
an answer like others.
"""

from __future__ import annotations

import json
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Final, Self

import httpx
import trio

from layers import challenge
from layers.connection import Connection, Content, Exchange, address
from layers.credentials import Credentials
from layers.endpoints import Endpoint
from layers.errors import AuthError, LayerError, NotFound, RegistryError
from layers.origins import Origin, join, origin
from layers.tokens import Authenticator, Token

ATTEMPTS: Final = 5
"""Attempts of one request. With the pauses between them this bridges about half a minute without the registry."""
_PAUSE_S: Final = 0.5
_PAUSE_MAX_S: Final = 20.0
_ASKED_MAX_S: Final = 120.0
"""The longest Retry-After that is waited for; a longer one is reported as an error."""
_BUSY: Final = frozenset((408, 429, 500, 502, 503, 504))
_ANSWER_MAX: Final = 1 << 20  # bytes of an answer that is no blob and no manifest


@dataclass(slots=True)
class Session:
    """Requests to one endpoint. Use it in an `async with`."""

    endpoint: Endpoint
    credentials: Credentials | None = None
    attempts: int = ATTEMPTS
    pause_s: float = _PAUSE_S
    _connection: Connection = field(init=False)
    _base: httpx.URL | None = None  # of the registry; the first request finds it out
    _tokens: dict[str, Token] = field(default_factory=dict)
    _lock: trio.Lock = field(default_factory=trio.Lock)  # one task finds out the scheme, or fetches a token

    def __post_init__(self) -> None:
        self._connection = Connection(self.endpoint)

    async def __aenter__(self) -> Self:
        await self._connection.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.__aexit__(kind, error, trace)

    async def ping(self) -> None:
        """Check that the registry answers and accepts the credentials. Raises: RegistryError, AuthError."""
        answer = await self.request("GET", "/v2/", scope="")
        if answer.status_code == 404:
            raise RegistryError("reaching a registry", self.endpoint.host, "it has no registry API (version 2)")
        self.expect(answer, "reaching a registry", self.endpoint.host, 200)

    async def request(
        self,
        method: str,
        path: str,
        *,
        scope: str,
        headers: Mapping[str, str] | None = None,
        content: bytes | Content | None = None,
        retry: bool = True,
        limit: int = _ANSWER_MAX,
    ) -> httpx.Response:
        """Send a request; returns the answer of any status with its body. `path` may be a URL that the registry gave.

        Raises: RegistryError when there is no answer, or one of more than `limit` bytes; AuthError.
        """
        async with self.stream(method, path, scope=scope, headers=headers, content=content, retry=retry) as answer:
            data = bytearray()
            try:
                async for chunk in answer.aiter_bytes():
                    data += chunk
                    if len(data) > limit:
                        why = f"the answer to {path} is larger than {limit} bytes"
                        raise RegistryError("asking a registry", self.endpoint.host, why)
            except httpx.HTTPError as error:
                raise broken(self.endpoint.host, error) from None
        answer._content = bytes(data)  # as aread() does
        return answer

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        scope: str,
        headers: Mapping[str, str] | None = None,
        content: bytes | Content | None = None,
        retry: bool = True,
    ) -> AsyncIterator[httpx.Response]:
        """Send a request; yields the answer before its body is read. Failures of reading the body are not retried."""
        exchange = await self._repeated(
            lambda: self._authorized(method, path, scope, headers or {}, content),
            self.endpoint.host,
            self.attempts if retry else 1,
        )
        try:
            yield exchange.answer
        finally:
            with trio.CancelScope(shield=True):
                await exchange.answer.aclose()

    async def _repeated(self, send: Callable[[], Awaitable[Exchange]], host: str, attempts: int = ATTEMPTS) -> Exchange:
        """Call `send`, and again while the connection to `host` fails or the server is busy."""
        for attempt in range(attempts):
            last = attempt == attempts - 1
            try:
                exchange = await send()
            except httpx.TransportError as error:
                if last or not _may_pass(error):
                    raise broken(host, error) from None
                await self._pause(attempt)
                continue
            except httpx.HTTPError as error:
                raise broken(host, error) from None
            asked = retry_after(exchange.answer.headers.get("Retry-After", ""), time.time())
            if exchange.answer.status_code not in _BUSY or last or asked > _ASKED_MAX_S:
                return exchange
            await exchange.answer.aclose()
            await self._pause(attempt, asked)
        raise AssertionError("unreachable")

    async def _pause(self, attempt: int, asked: float = 0.0) -> None:
        """Wait before another attempt: longer each time, with jitter; or `asked` seconds if that is longer."""
        pause = min(self.pause_s * 2**attempt * (0.5 + random.random()), _PAUSE_MAX_S)
        await trio.sleep(max(pause, asked))

    async def _authorized(
        self, method: str, path: str, scope: str, headers: Mapping[str, str], content: bytes | Content | None
    ) -> Exchange:
        base = await self._found_base()
        url = join(base, path)
        home = origin(base)

        async def send(token: Token | None) -> Exchange:
            header = "" if token is None else token.header
            return await self._connection.send(
                method, url, home, headers=headers, content=content, authorization=header
            )

        token = self._tokens.get(scope)
        if token is not None and token.until < time.monotonic():
            del self._tokens[scope]
            token = None
        exchange = await send(token)
        if exchange.answer.status_code != 401 or not exchange.stayed:
            return exchange
        asked = challenge.parse(exchange.answer.headers.get_list("WWW-Authenticate"))
        await exchange.answer.aclose()
        authenticator = Authenticator(self._connection, self.credentials, home, self._repeated)
        async with self._lock:
            renewed = self._tokens.get(scope)
            if renewed is None or renewed is token:
                renewed = self._tokens[scope] = await authenticator.authorization(asked, scope)
        exchange = await send(renewed)
        if exchange.answer.status_code == 401 and exchange.stayed:
            await exchange.answer.aclose()
            raise authenticator.refused(scope)
        return exchange

    async def _found_base(self) -> httpx.URL:
        """The root of the registry: https, or http where that is allowed and https does not answer."""
        async with self._lock:
            if self._base is not None:
                return self._base
            base = address(self.endpoint)
            try:
                probe = await self._connection.send("GET", base.join("/v2/"), origin(base), follow=False)
                await probe.answer.aclose()
            except (
                httpx.ConnectError,
                httpx.RemoteProtocolError,
                httpx.ReadError,
                httpx.ConnectTimeout,
                httpx.ProxyError,  # many refuse CONNECT to that port
            ) as error:
                if not self.endpoint.may_be_plain or isinstance(_tls_error(error), ssl.SSLCertVerificationError):
                    raise
                base = address(self.endpoint, "http")
            self._base = base
            return base

    def host_of(self, answer: httpx.Response) -> str:
        """The host that sent an answer, in words."""
        given = origin(answer.url)
        return str(given) if self._is_own(given) else f"{given}, to which the registry redirects,"

    def _is_own(self, given: Origin) -> bool:
        return self._base is None or given == origin(self._base)

    def expect(self, answer: httpx.Response, what: str, subject: str, *statuses: int) -> httpx.Response:
        """The answer, if its status is one of those. Raises: NotFound, AuthError, RegistryError with its reason."""
        if answer.status_code in statuses:
            return answer
        raise self.failure(answer, what, subject)

    def failure(self, answer: httpx.Response, what: str, subject: str) -> LayerError:
        """The error for an answer: NotFound, AuthError or RegistryError, with the registry's reason."""
        why = f"{self.host_of(answer)} answered {answer.status_code}{_reason(answer)}"
        if answer.status_code == 404:
            return NotFound(what, subject, why)
        if answer.status_code in (401, 403):
            hint = f"unionfs login {self.endpoint.registry}" if self._is_own(origin(answer.url)) else ""
            return AuthError(what, subject, why, hint=hint)
        asked = retry_after(answer.headers.get("Retry-After", ""), time.time())
        hint = f"it demands to wait {asked:.0f} s before the next try" if asked > _ASKED_MAX_S else ""
        if answer.status_code == 429 and self.credentials is None:
            hint += f"\nlimits are often higher with a login: unionfs login {self.endpoint.registry}"
        return RegistryError(what, subject, why, hint=hint.strip())


def retry_after(text: str, now: float) -> float:
    """The seconds of a Retry-After header in either form (RFC 9110, 10.2.3); 0 for a malformed one."""
    if text.isdecimal() and text.isascii():
        return float(text[:9])
    try:
        return max(parsedate_to_datetime(text).timestamp() - now, 0.0)
    except (ValueError, OverflowError):
        return 0.0


def broken(host: str, error: Exception) -> RegistryError:
    """The error for a failed connection."""
    tls = _tls_error(error)
    text = str(tls or error) or type(error).__name__
    hint = ""
    if isinstance(tls, ssl.SSLCertVerificationError):
        text = f"its certificate is not trusted: {tls.verify_message}"
        hint = "give its authority with --cert-dir DIR, or do not verify it: --tls-verify=false"
    elif tls is not None:
        hint = "it may speak plain HTTP: --tls-verify=false allows that"
    return RegistryError("reaching a registry", host, text, hint=hint)


def _may_pass(error: httpx.TransportError) -> bool:
    """Whether the error may be temporary: one of TLS or of an unsupported protocol is not."""
    return _tls_error(error) is None and not isinstance(error, httpx.UnsupportedProtocol)


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """The TLS error among the causes of an error, or None: httpx and trio wrap it several times."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _reason(answer: httpx.Response) -> str:
    """The reason in the body of an answer (distribution specification, "Error Codes")."""
    said = ""
    try:
        errors = json.loads(answer.content)["errors"]
        said = "; ".join(f"{error.get('code', '')}: {error.get('message', '')}".strip(": ") for error in errors[:3])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, httpx.ResponseNotRead):
        said = answer.reason_phrase
    return f" ({said[:300]})" if said else ""
