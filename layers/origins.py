"""Decide which secret may be sent to which origin. No other module decides this. Pure.

docs/registries.md has the rules as a table. An origin is scheme, host and port (RFC 6454). The decision and the
connection use the same `httpx.URL`, so that no two parsers can disagree about its host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import httpx

_PORTS: Final = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Scheme, host and port of a server."""

    scheme: str
    host: str  # in lower case; without brackets
    port: int

    @property
    def is_loopback(self) -> bool:
        return is_loopback_name(self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS.get(self.scheme) else f"{host}:{self.port}"


def origin(url: httpx.URL) -> Origin:
    """The origin of an absolute URL."""
    return Origin(url.scheme, url.raw_host.decode("ascii"), url.port or _PORTS.get(url.scheme, 0))


def join(base: httpx.URL | str, text: str) -> httpx.URL:
    """Resolve `text`, which a server sent, relative to `base` to an http or https URL without a fragment.

    Raises: ValueError for anything else.
    """
    import httpx  # here: reading the configuration of registries does not need it

    try:
        given = httpx.URL(text)
        if given.scheme and not given.host:
            raise ValueError("it names no host")
        url = httpx.URL(base).join(given).copy_with(fragment=None)
        url.raw_host.decode("ascii").encode("idna")  # the resolver does it too, and fails with UnicodeError
    except UnicodeError:
        raise ValueError("its host is not a valid name") from None
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from None
    if url.scheme not in _PORTS or not url.host or not 0 < (url.port or 1) < 1 << 16:
        raise ValueError("not an http or https address")
    return url


def upgraded(url: httpx.URL, registry: Origin) -> httpx.URL:
    """`url` as https if it is an http address of a registry that is spoken to with TLS, on the same host and port: many
    registries do not know that a proxy in front of them has TLS."""
    if registry.scheme != "https" or url.scheme != "http":
        return url
    secure = url.copy_with(scheme="https")
    return secure if origin(secure) == registry else url


def may_have_authorization(to: Origin, registry: Origin) -> bool:
    """Whether a request to this origin may carry the registry's Authorization header (Basic or Bearer), and so whether
    its 401 is answered."""
    return to == registry


def may_have_credentials(token_server: Origin, registry: Origin, *, insecure: bool) -> bool:
    """Whether a token server that the registry named may have the password or the refresh token kept for the registry.

    With TLS always, as with all clients: the registry's own origin named it. Without TLS only if the registry itself
    is, or may be (`insecure`), spoken to without TLS, and only on the registry's own host.
    """
    if token_server.scheme == "https":
        return True
    same_host = token_server.host == registry.host or (token_server.is_loopback and registry.is_loopback)
    return same_host and (registry.scheme == "http" or insecure)


def may_have_client_certificate(to: Origin, registry_host: str) -> bool:
    """Whether a connection to this origin may present the client certificate kept for the registry. All ports of its
    host may have it: token servers are often on another one."""
    return to.host == registry_host


def may_have_what_was_given(registry: str, named: str) -> bool:
    """Whether credentials and a client certificate of the command line (--creds, --cert-dir) for an image of the
    registry `named` may be used for `registry` (HOST[:PORT] both), which may be a mirror of it, or another location."""
    return registry == named


def is_loopback_name(name: str) -> bool:
    """Whether a host, without port or brackets, is this machine, by its name alone. Names below `localhost` are not:
    many resolvers ask the network for them."""
    if name == "localhost":
        return True
    import ipaddress

    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
