"""Make Authorization headers for a registry, from the credentials or from a token server.

Docker's "Token Authentication Specification" and "OAuth2 Token Authentication". `origins` decides which server may get
the credentials.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import httpx

from layers import challenge
from layers.challenge import Challenge
from layers.connection import Connection, Exchange
from layers.credentials import Credentials
from layers.errors import AuthError, RegistryError
from layers.origins import Origin, join, may_have_credentials, origin

_ANSWER_MAX: Final = 1 << 20  # bytes
_LIFE_S: Final = 60  # of tokens without "expires_in" (token specification)
_LIFE_MAX_S: Final = 86400.0
_CLIENT: Final = "unionfs"

Repeated = Callable[[Callable[[], Awaitable[Exchange]], str], Awaitable[Exchange]]
"""A function that runs a request to a host (the str), and repeats it if the server is busy or the connection fails."""


class Token(NamedTuple):
    """An Authorization header for one scope."""

    header: str
    until: float = math.inf  # time.monotonic()


class Authenticator(NamedTuple):
    """Answers the challenges of one registry."""

    connection: Connection
    credentials: Credentials | None
    registry: Origin
    repeated: Repeated

    async def authorization(self, challenges: Sequence[Challenge], scope: str) -> Token:
        """The header for the first challenge of a known scheme, Bearer before Basic.

        Raises: AuthError if there is none, or the token server refuses; RegistryError when it cannot be reached.
        """
        failure: AuthError | None = None
        for asked in sorted(challenges, key=lambda one: one.scheme != challenge.BEARER):
            try:
                if asked.scheme == challenge.BEARER:
                    return await self._bearer(asked.parameters, scope)
                if asked.scheme == challenge.BASIC:
                    return self._basic(scope)
            except AuthError as error:
                failure = failure or error
        why = "it offers no supported way to authenticate (Basic, Bearer)"
        raise failure or AuthError("logging in", self.connection.endpoint.host, why)

    def refused(self, scope: str) -> AuthError:
        """The error when a registry or its token server does not accept the credentials."""
        registry = self.connection.endpoint.registry
        what = scope.split(":")[1] if scope.count(":") >= 2 else registry
        hint = f"unionfs login {registry}"
        if self.credentials is None:
            return AuthError("logging in", what, "it requires a user name and a password", hint=hint)
        name = self.credentials.username or "the token"
        return AuthError("logging in", what, f"it does not accept {name}'s credentials", hint=hint)

    def _basic(self, scope: str) -> Token:
        if self.credentials is None or not self.credentials.username:
            raise self.refused(scope)
        return Token(_basic(self.credentials))

    async def _bearer(self, parameters: Mapping[str, str], scope: str) -> Token:
        """Fetch a token, with our credentials if there are any."""
        host = self.connection.endpoint.host
        realm = parameters.get("realm", "")
        try:
            url = join("", realm)
        except ValueError as error:
            why = f"its token server has no proper address: {realm[:200]!r}: {error}"
            raise AuthError("logging in", host, why) from None
        if self.credentials is not None and not may_have_credentials(
            origin(url), self.registry, insecure=self.connection.endpoint.insecure
        ):
            raise AuthError("logging in", host, f"it demands the password without TLS, for {realm[:200]}")
        # The scope that the request needs, else the one that the registry names.
        scopes = (scope or parameters.get("scope", "")).split()
        ask = self._form(parameters, scopes, url) or self._query(parameters, scopes, url)
        exchange = await self.repeated(ask, str(origin(url)))
        data = await _body(exchange.answer, host)
        status = exchange.answer.status_code
        if status in (400, 401, 403):
            raise self.refused(scope)
        if status != 200:
            raise RegistryError("logging in", host, f"its token server {origin(url)} answered {status}")
        return _token(data, realm)

    def _form(
        self, parameters: Mapping[str, str], scopes: Sequence[str], url: httpx.URL
    ) -> Callable[[], Awaitable[Exchange]] | None:
        """The request that exchanges an identity token, if there is one."""
        if self.credentials is None or not self.credentials.identity_token:
            return None
        form = {
            "grant_type": "refresh_token",
            "refresh_token": self.credentials.identity_token,
            "client_id": _CLIENT,
            "service": parameters.get("service", ""),
            "scope": " ".join(scopes),
        }
        content = urlencode(form).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return lambda: self.connection.send(
            "POST", url, origin(url), headers=headers, content=content, is_content_secret=True
        )

    def _query(
        self, parameters: Mapping[str, str], scopes: Sequence[str], url: httpx.URL
    ) -> Callable[[], Awaitable[Exchange]]:
        """The request for a token, with a name and a password if there are any."""
        query = [("service", parameters["service"])] if "service" in parameters else []
        header = ""
        if self.credentials is not None:
            query.append(("account", self.credentials.username))
            header = _basic(self.credentials)
        asked = url.copy_merge_params([*query, *(("scope", text) for text in scopes)])
        return lambda: self.connection.send("GET", asked, origin(url), authorization=header)


def _basic(credentials: Credentials) -> str:
    text = f"{credentials.username}:{credentials.password}".encode(errors="surrogateescape")
    return f"Basic {base64.b64encode(text).decode()}"


async def _body(answer: httpx.Response, host: str) -> bytes:
    data = bytearray()
    try:
        async for chunk in answer.aiter_bytes():
            data += chunk
            if len(data) > _ANSWER_MAX:
                raise AuthError("logging in", host, "the token server's answer is too large")
    except httpx.HTTPError as error:
        raise RegistryError("logging in", host, f"the token server's answer was interrupted: {error}") from None
    finally:
        await answer.aclose()
    return bytes(data)


def _token(data: bytes, realm: str) -> Token:
    try:
        value: Any = json.loads(data)
        text = value.get("token") or value["access_token"]
        life = float(value.get("expires_in") or _LIFE_S)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise AuthError("logging in", realm[:200], "the token server's answer has no token") from None
    if not isinstance(text, str) or not text.isascii() or not text.isprintable():
        raise AuthError("logging in", realm[:200], "the token server's answer has a malformed token")
    if not 0 < life < _LIFE_MAX_S:
        life = _LIFE_S
    # Expires a little earlier here, since a request takes time.
    return Token(f"Bearer {text}", time.monotonic() + max(life * 0.9 - 1, 1))
