"""Which origin may get which secret, which proxy is used, what a challenge contains: decided by addresses and headers
alone."""

from __future__ import annotations

from typing import Final

import httpx
import pytest

from layers import challenge, origins, proxies
from layers.origins import Origin

R: Final = "https://r.test"


@pytest.mark.parametrize(
    ("to", "registry", "may"),
    [
        ("https://r.test/any", R, True),
        ("https://R.TEST/any", R, True),
        ("https://r.test:443/", R, True),
        ("http://r.test/", R, False),
        ("https://r.test:444/", R, False),
        ("https://r.test./", R, False),
        ("https://sub.r.test/", R, False),
        ("https://test/", R, False),
        ("https://r.test@evil.test/", R, False),
        ("https://r.test:x@evil.test/", R, False),
        ("https://evil.test/r.test", R, False),
        ("https://evil.test#@r.test/", R, False),
        ("https://evil.test?@r.test/", R, False),
        ("http://r.test:80", "http://r.test", True),
        ("https://r.test", "http://r.test", False),
        ("http://127.0.0.2", "http://127.0.0.1", False),
        ("https://[::1]:5000/", "https://[::1]:5000", True),
    ],
)
def test_authorization_goes_to_the_registrys_own_origin(to: str, registry: str, may: bool) -> None:
    own = origins.origin(httpx.URL(registry))
    assert origins.may_have_authorization(origins.origin(origins.join("", to)), own) is may


@pytest.mark.parametrize(
    ("realm", "registry", "insecure", "may"),
    [
        ("https://r.test/token", R, False, True),
        ("https://auth.test/token", R, False, True),
        ("https://auth.test/token", "http://r.test", True, True),
        ("http://r.test/token", R, False, False),
        ("http://r.test/token", R, True, True),
        ("http://r.test:81/token", "http://r.test", True, True),
        ("http://auth.test/token", R, False, False),
        ("http://auth.test/token", R, True, False),
        ("http://auth.test/token", "http://r.test", True, False),
        ("http://127.0.0.1:81/token", "http://localhost:80", False, True),
        ("http://localhost.evil.test/token", "http://localhost", False, False),
        ("http://localhost/token", "http://r.test", True, False),
    ],
)
def test_which_token_servers_get_a_password(realm: str, registry: str, insecure: bool, may: bool) -> None:
    to, own = (origins.origin(httpx.URL(url)) for url in (realm, registry))
    assert origins.may_have_credentials(to, own, insecure=insecure) is may


@pytest.mark.parametrize(
    ("url", "registry", "upgraded"),
    [
        ("http://r.test/x", R, "https://r.test/x"),
        ("http://r.test:443/x", R, "https://r.test/x"),
        ("http://r.test:80/x", R, "https://r.test/x"),
        ("http://r.test:5000/x", "https://r.test:5000", "https://r.test:5000/x"),
        ("http://r.test:8080/x", R, "http://r.test:8080/x"),
        ("http://evil.test/x", R, "http://evil.test/x"),
        ("http://r.test/x", "http://r.test", "http://r.test/x"),
    ],
)
def test_an_address_of_the_registry_gets_its_tls_back(url: str, registry: str, upgraded: str) -> None:
    assert str(origins.upgraded(httpx.URL(url), origins.origin(httpx.URL(registry)))) == upgraded


@pytest.mark.parametrize(
    "text",
    ["http://[::1/x", "ftp://r.test/x", "http:///x", "http:x", "http://h:x/", "http://h:99999/", "http://a..b/",
     f"http://{'a' * 64}.test/", "http://h\x01/", "javascript:alert(1)", "file:///etc/passwd", "http://999.1.1.1/",
     "x" * 70_000, "http://[v1.x]/"],
)  # fmt: skip
def test_what_is_no_address_is_one_error(text: str) -> None:
    with pytest.raises(ValueError):
        origins.join(R, text)


def test_an_origin_in_words() -> None:
    assert str(Origin("https", "r.test", 443)) == "r.test"
    assert str(Origin("http", "::1", 5000)) == "[::1]:5000"


@pytest.mark.parametrize(
    ("url", "no_proxy", "is_used"),
    [
        ("https://r.test/", "", True),
        ("https://r.test/", "r.test", False),
        ("https://sub.r.test/", "r.test", False),
        ("https://sub.r.test/", ".r.test", False),
        ("https://r.test/", ".r.test", True),
        ("https://sub.r.test/", "*.r.test", False),
        ("https://r.test/", "*.r.test", True),
        ("https://other.test/", "r.test,x.test", True),
        ("https://notr.test/", "r.test", True),
        ("https://R.TEST/", "r.Test", False),
        ("https://r.test/", " x.test ,  r.test ", False),
        ("https://r.test/", "x.test r.test", False),
        ("https://r.test:5000/", "r.test:5000", False),
        ("https://r.test:5000/", "r.test:443", True),
        ("https://r.test/", "r.test:443", False),
        ("https://10.1.2.3/", "10.0.0.0/8", False),
        ("https://11.1.2.3/", "10.0.0.0/8", True),
        ("https://10.1.2.3:5000/", "10.1.2.3", False),
        ("https://10.1.2.3:5000/", "10.1.2.3:5000", False),
        ("https://[fe80::1]/", "fe80::/10", False),
        ("https://[2001:db8::1]:5000/", "[2001:db8::1]:5000", False),
        ("https://[2001:db8::1]/", "2001:db8::1", False),
        ("https://10.test/", "10.0.0.0/8", True),
        ("https://r.test/", "*", False),
        ("https://r.test/", ",", True),
        ("https://r.test/", ".", True),
        ("https://localhost:5000/", "", False),
        ("https://127.0.0.2/", "", False),
        ("https://[::1]/", "", False),
    ],
)
def test_which_hosts_are_reached_without_a_proxy(url: str, no_proxy: str, is_used: bool) -> None:
    environment = {"https_proxy": "http://p.test:3128", "NO_PROXY": no_proxy}
    assert (proxies.proxy_for(httpx.URL(url), environment) is not None) is is_used


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("http://r.test/", {"HTTP_PROXY": "http://p:1"}, "http://p:1"),
        ("http://r.test/", {"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, None),
        ("http://r.test/", {"http_proxy": "http://p:1", "REQUEST_METHOD": "GET"}, "http://p:1"),
        ("http://r.test/", {"https_proxy": "http://p:1"}, None),
        ("https://r.test/", {"HTTPS_PROXY": "p:1"}, "http://p:1"),
        ("https://r.test/", {"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:1"}, "http://b:1"),
        ("https://r.test/", {"ALL_PROXY": "http://a:1"}, "http://a:1"),
        ("https://r.test/", {"ALL_PROXY": "http://a:1", "https_proxy": "http://b:1"}, "http://b:1"),
        ("https://r.test/", {"https_proxy": ""}, None),
        ("https://r.test/", {}, None),
    ],
)
def test_which_proxy_is_used(url: str, environment: dict[str, str], proxy: str | None) -> None:
    assert proxies.proxy_for(httpx.URL(url), environment) == proxy


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (['Basic realm="x"'], ["basic"]),
        (["Negotiate", 'Basic realm="x"'], ["negotiate", "basic"]),
        (['Negotiate, Basic realm="x"'], ["negotiate", "basic"]),
        (['Negotiate YII=, NTLM, Basic realm="x"'], ["negotiate", "ntlm", "basic"]),
        (['Basic realm="a, Bearer realm=b", Bearer realm="c"'], ["basic", "bearer"]),
        (['  ,, Bearer realm = "a" , service= "b"'], ["bearer"]),
        (["BASIC"], ["basic"]),
        (['Digest qop="auth", nonce=abc==, Basic realm=x'], ["digest", "basic"]),
        (["", "=x, Basic"], ["basic"]),
        (["\u20ac, Basic"], ["basic"]),
        (['Basic realm="unfinished'], ["basic"]),
        ([], []),
    ],
)  # fmt: skip
def test_challenges_are_read(headers: list[str], found: list[str]) -> None:
    assert [one.scheme for one in challenge.parse(headers) if one.scheme != "realm"][: len(found)] == found


def test_parameters_of_a_challenge_are_read() -> None:
    (one,) = challenge.parse([r'Bearer Realm="https://a/\"t\"",SERVICE=s , scope="a:b:pull,push c"'])
    assert one.parameters == {"realm": 'https://a/"t"', "service": "s", "scope": "a:b:pull,push c"}
