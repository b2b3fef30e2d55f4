"""Choose the proxy for a URL by HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY. Pure.

The rules are those of curl and Go (golang.org/x/net/http/httpproxy); lower-case names have priority over upper-case
ones. This machine itself is reached without a proxy.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from contextlib import suppress

import httpx

from layers.origins import Origin, is_loopback_name, origin


def proxy_for(url: httpx.URL, environment: Mapping[str, str]) -> str | None:
    """The URL of the proxy; None if none is set, or the URL is exempt."""
    to = origin(url)
    proxy = _value(environment, f"{to.scheme}_proxy") or _value(environment, "all_proxy")
    if not proxy or is_loopback_name(to.host) or _is_exempt(to, _value(environment, "no_proxy")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _value(environment: Mapping[str, str], name: str) -> str:
    if name == "http_proxy" and "REQUEST_METHOD" in environment:  # in a CGI program HTTP_PROXY is the header `Proxy`
        return environment.get(name, "")
    return environment.get(name, "") or environment.get(name.upper(), "")


def _is_exempt(to: Origin, no_proxy: str) -> bool:
    return any(_matches(to, entry.strip().lower()) for entry in re.split(r"[,\s]+", no_proxy) if entry)


def _matches(to: Origin, entry: str) -> bool:
    """Match an entry of NO_PROXY: `*`, a network, an address, NAME (and its subdomains), `.NAME` or `*.NAME` (only
    subdomains); addresses and names with an optional :PORT."""
    if entry == "*":
        return True
    with suppress(ValueError):
        network = ipaddress.ip_network(entry, strict=False)
        address = _address(to.host)
        return address is not None and address in network
    host, colon, port = entry.rpartition(":")
    if colon and port.isdecimal():
        if int(port) != to.port:
            return False
        entry = host
    with suppress(ValueError):
        return ipaddress.ip_address(entry.strip("[]")) == _address(to.host)
    entry = entry.removeprefix("*")
    if entry.startswith("."):
        return to.host.endswith(entry)
    return bool(entry) and (to.host == entry or to.host.endswith(f".{entry}"))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
