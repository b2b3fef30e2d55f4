"""One registry over HTTP: connecting, authenticating, trying again. Knows nothing of what is asked for.

httpx on trio. A request is tried again when the connection fails or the server is busy; a 401 is answered with
credentials once. Authorization is sent to the registry alone: httpx takes it away where a redirect leads to another
host, and a token server gets the name and password only over TLS unless the registry itself has none.
"""

from __future__ import annotations

import base64
import json
import math
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx
import trio

from layers import challenge
from layers.credentials import Credentials
from layers.endpoints import Endpoint, is_loopback, tls_context
from layers.errors import AuthError, LayerError, NotFound, RegistryError

ATTEMPTS: Final = 5
"""Tries of one request. With the pauses between them a registry may be away for half a minute."""
_TIMEOUT: Final = httpx.Timeout(60, connect=30, pool=None)
_PAUSE_S: Final = 0.5
_PAUSE_MAX_S: Final = 20.0
_ASKED_MAX_S: Final = 120.0
"""The longest that a server may have us wait (Retry-After). Limits that last longer are for people to know of."""
_BUSY: Final = frozenset((408, 429, 500, 502, 503, 504))
_ANSWER_MAX: Final = 1 << 20  # bytes of an answer that is no blob and no manifest
_TOKEN_LIFE_S: Final = 60  # of tokens that do not say (token specification, "expires_in")
_USER_AGENT: Final = "unionfs"

Content = Callable[[], AsyncIterator[bytes]]
"""Makes the body of a request, anew for each try."""


@dataclass(slots=True)
class _Token:
    """The Authorization header for one scope."""

    header: str
    until: float = math.inf  # time.monotonic()


@dataclass(slots=True)
class Session:
    """Requests to one endpoint. Use it in an `async with`."""

    endpoint: Endpoint
    credentials: Credentials | None = None
    attempts: int = ATTEMPTS
    pause_s: float = _PAUSE_S
    _client: httpx.AsyncClient | None = None
    _base: str = ""  # scheme and host, found out by the first request
    _tokens: dict[str, _Token] = field(default_factory=dict)
    _lock: trio.Lock = field(default_factory=trio.Lock)  # one task finds out the scheme, or fetches a token

    async def __aenter__(self) -> Self:
        # A proxy cannot reach what is on this machine.
        proxies = not is_loopback(self.endpoint.host)
        try:
            self._client = httpx.AsyncClient(
                verify=tls_context(self.endpoint),
                timeout=_TIMEOUT,
                headers={"User-Agent": _USER_AGENT},
                trust_env=proxies,
                max_redirects=10,
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            if not proxies:
                raise
            hint = "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY say which proxy is used; an HTTP proxy is needed"
            raise LayerError("reaching a registry", self.endpoint.host, f"its proxy: {error}", hint=hint) from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._client is not None
        await self._client.aclose()

    async def ping(self) -> None:
        """Find out that a registry answers, and that it takes our credentials. Raises: RegistryError, AuthError."""
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
        """An answer with its body, whatever its status. `path` may be a whole URL that the registry gave.

        Raises: RegistryError when there is no answer, or one of more than `limit` bytes; AuthError.
        """
        async with self.stream(method, path, scope=scope, headers=headers, content=content, retry=retry) as answer:
            data = bytearray()
            try:
                async for chunk in answer.aiter_bytes():
                    data += chunk
                    if len(data) > limit:
                        raise RegistryError("asking a registry", path, f"the answer is larger than {limit} bytes")
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
        """An answer whose body is still to come. Trying again ends where the body begins."""
        answer = await self._answered(method, path, scope, headers or {}, content, retry)
        try:
            yield answer
        finally:
            with trio.CancelScope(shield=True):
                await answer.aclose()

    async def _answered(
        self,
        method: str,
        path: str,
        scope: str,
        headers: Mapping[str, str],
        content: bytes | Content | None,
        retry: bool,
    ) -> httpx.Response:
        attempts = self.attempts if retry else 1
        for attempt in range(attempts):
            last = attempt == attempts - 1
            try:
                answer = await self._authorized(method, path, scope, headers, content)
            except httpx.TransportError as error:
                if last or not _may_pass(error):
                    raise broken(self.endpoint.host, error) from None
                await self._pause(attempt)
                continue
            except httpx.HTTPError as error:
                raise broken(self.endpoint.host, error) from None
            asked = retry_after(answer.headers.get("Retry-After", ""), time.time())
            if answer.status_code not in _BUSY or last or asked > _ASKED_MAX_S:
                return answer
            await answer.aclose()
            await self._pause(attempt, asked)
        raise AssertionError("unreachable")

    async def _pause(self, attempt: int, asked: float = 0.0) -> None:
        """Longer each time, and not at the same moment for everybody; or as long as the server says."""
        pause = min(self.pause_s * 2**attempt * (0.5 + random.random()), _PAUSE_MAX_S)
        await trio.sleep(max(pause, asked))

    async def _authorized(
        self, method: str, path: str, scope: str, headers: Mapping[str, str], content: bytes | Content | None
    ) -> httpx.Response:
        token = self._tokens.get(scope)
        if token is not None and token.until < time.monotonic():
            del self._tokens[scope]
            token = None
        sent = await self._send(method, path, headers, content, token)
        if sent.status_code != 401:
            return sent
        asked = challenge.parse(", ".join(sent.headers.get_list("WWW-Authenticate")))
        await sent.aclose()
        async with self._lock:
            renewed = self._tokens.get(scope)
            if renewed is None or renewed is token:
                renewed = self._tokens[scope] = await self._authenticate(asked, scope)
        sent = await self._send(method, path, headers, content, renewed)
        if sent.status_code == 401:
            await sent.aclose()
            raise self._refused(scope)
        return sent

    async def _send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        content: bytes | Content | None,
        token: _Token | None,
    ) -> httpx.Response:
        assert self._client is not None, "used outside of its `async with`"
        if not self._base:
            await self._find_scheme()
        base = httpx.URL(self._base)
        url = base.join(path)
        if base.scheme == "https" and (url.scheme, url.host, url.port) == ("http", base.host, base.port):
            url = url.copy_with(scheme="https")  # a registry that does not know that there is TLS in front of it
        sent_headers = dict(headers)
        # An upload may be directed elsewhere: our name is for the registry only.
        if token is not None and (url.scheme, url.host, url.port) == (base.scheme, base.host, base.port):
            sent_headers["Authorization"] = token.header
        body = content() if callable(content) else content
        request = self._client.build_request(method, url, headers=sent_headers, content=body)
        return await self._client.send(request, stream=True, follow_redirects=method in ("GET", "HEAD"))

    async def _find_scheme(self) -> None:
        """https, or http where that is allowed and https does not answer."""
        assert self._client is not None
        async with self._lock:
            if self._base:
                return
            base = f"https://{self.endpoint.host}"
            try:
                answer = await self._client.send(self._client.build_request("GET", f"{base}/v2/"), stream=True)
                await answer.aclose()
            except (
                httpx.ConnectError,
                httpx.RemoteProtocolError,
                httpx.ReadError,
                httpx.ConnectTimeout,
                httpx.ProxyError,  # which lets nobody through to that port
            ) as error:
                if not self.endpoint.may_be_plain or isinstance(_tls_error(error), ssl.SSLCertVerificationError):
                    raise
                base = f"http://{self.endpoint.host}"
            self._base = base

    async def _authenticate(self, asked: list[challenge.Challenge], scope: str) -> _Token:
        for one in asked:
            if one.scheme == challenge.BEARER:
                return await self._bearer(one.parameters, scope)
            if one.scheme == challenge.BASIC:
                if self.credentials is None or not self.credentials.username:
                    raise self._refused(scope)
                return _Token(_basic(self.credentials))
        raise AuthError("logging in", self.endpoint.host, "it asks for a way to authenticate that is not known here")

    async def _bearer(self, parameters: Mapping[str, str], scope: str) -> _Token:
        """Fetch a token, with our credentials if there are any."""
        assert self._client is not None
        realm = parameters.get("realm", "")
        parts = urlsplit(realm)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise AuthError(
                "logging in", self.endpoint.host, f"its token server has no proper address: {realm[:200]!r}"
            )
        if (
            self.credentials
            and parts.scheme == "http"
            and self._base.startswith("https:")
            and not self.endpoint.insecure
        ):
            raise AuthError(
                "logging in", self.endpoint.host, f"it wants the password sent without TLS, to {realm[:200]}"
            )
        # The scope we know we need; what the registry says it wants comes second.
        scopes = [text for text in (scope or parameters.get("scope", "")).split(" ") if text]
        query: list[tuple[str, str | int | float | bool | None]] = (
            [("service", parameters["service"])] if "service" in parameters else []
        )
        if self.credentials is not None and self.credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": self.credentials.identity_token,
                "client_id": _USER_AGENT,
                "service": parameters.get("service", ""),
                "scope": " ".join(scopes),
            }
            request = self._client.build_request("POST", realm, data=form)
        else:
            headers = {"Authorization": _basic(self.credentials)} if self.credentials else {}
            if self.credentials:
                query.append(("account", self.credentials.username))
            url = httpx.URL(realm).copy_merge_params([*query, *(("scope", text) for text in scopes)])
            request = self._client.build_request("GET", url, headers=headers)
        answer = await self._client.send(request, stream=True)
        try:
            data = b""
            async for chunk in answer.aiter_bytes():
                data += chunk
                if len(data) > _ANSWER_MAX:
                    raise AuthError("logging in", self.endpoint.host, "the token server's answer is too large")
        finally:
            await answer.aclose()
        if answer.status_code in (400, 401, 403):
            raise self._refused(scope)
        if answer.status_code != 200:
            raise AuthError("logging in", realm, f"the token server answered {answer.status_code}")
        return _token(data, realm)

    def _refused(self, scope: str) -> AuthError:
        who = self.endpoint.registry
        what = scope.split(":")[1] if scope.count(":") >= 2 else who
        if self.credentials is None:
            return AuthError("logging in", what, "it wants a name and a password", hint=f"unionfs login {who}")
        name = self.credentials.username or "the token"
        return AuthError("logging in", what, f"it does not take {name}'s credentials", hint=f"unionfs login {who}")

    def expect(self, answer: httpx.Response, what: str, subject: str, *statuses: int) -> httpx.Response:
        """The answer, if its status is one of those. Raises: NotFound, AuthError, RegistryError with its reason."""
        if answer.status_code in statuses:
            return answer
        raise self.failure(answer, what, subject)

    def failure(self, answer: httpx.Response, what: str, subject: str) -> LayerError:
        """The failure that an answer tells of."""
        why = _reason(answer)
        if answer.status_code == 404:
            return NotFound(what, subject, why)
        if answer.status_code in (401, 403):
            hint = f"unionfs login {self.endpoint.registry}"
            return AuthError(what, subject, why, hint=hint)
        asked = retry_after(answer.headers.get("Retry-After", ""), time.time())
        hint = f"it wants to be asked again in {asked:.0f} s" if asked > _ASKED_MAX_S else ""
        if answer.status_code == 429 and self.credentials is None:
            hint += f"\nlimits are often higher for those who log in: unionfs login {self.endpoint.registry}"
        return RegistryError(what, subject, why, hint=hint.strip())


def retry_after(text: str, now: float) -> float:
    """The seconds that a Retry-After header asks for, in whichever form (RFC 9110, 10.2.3); 0 for nonsense."""
    if text.isdecimal() and text.isascii():
        return float(text[:9])
    try:
        return max(parsedate_to_datetime(text).timestamp() - now, 0.0)
    except (ValueError, OverflowError):
        return 0.0


def broken(host: str, error: Exception) -> RegistryError:
    """The failure of a connection."""
    tls = _tls_error(error)
    text = str(tls or error) or type(error).__name__
    hint = ""
    if isinstance(tls, ssl.SSLCertVerificationError):
        text = f"its certificate is not trusted: {tls.verify_message}"
        hint = "give its authority with --cert-dir DIR, or trust it blindly with --tls-verify=false"
    elif tls is not None:
        hint = "it may speak plain HTTP: --tls-verify=false allows that"
    return RegistryError("reaching a registry", host, text, hint=hint)


def _may_pass(error: httpx.TransportError) -> bool:
    """Whether it is worth trying again: a certificate does not get better."""
    return _tls_error(error) is None and not isinstance(error, httpx.UnsupportedProtocol)


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """What TLS has to do with a failure: httpx and trio wrap it several times."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _basic(credentials: Credentials) -> str:
    text = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(text).decode()}"


def _token(data: bytes, realm: str) -> _Token:
    try:
        value: Any = json.loads(data)
        text = value.get("token") or value["access_token"]
        life = float(value.get("expires_in") or _TOKEN_LIFE_S)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise AuthError("logging in", realm, "the token server's answer holds no token") from None
    if not isinstance(text, str) or not text.isascii() or not text.isprintable():
        raise AuthError("logging in", realm, "the token server's answer holds no proper token")
    # A little earlier, for a request takes its time.
    return _Token(f"Bearer {text}", time.monotonic() + max(life * 0.9 - 1, 1))


def _reason(answer: httpx.Response) -> str:
    """What the registry says is wrong (distribution specification, "Error Codes")."""
    said = ""
    try:
        errors = json.loads(answer.content)["errors"]
        said = "; ".join(f"{error.get('code', '')}: {error.get('message', '')}".strip(": ") for error in errors[:3])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, httpx.ResponseNotRead):
        said = answer.reason_phrase
    return f"the registry answered {answer.status_code}" + (f" ({said[:300]})" if said else "")
