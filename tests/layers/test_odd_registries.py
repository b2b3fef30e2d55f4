"""Registries with unusual answers: those that other clients accept are accepted, others are one clear failure, and no
request repeats for ever."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import trio

from layers import image
from layers.credentials import Credentials
from layers.endpoints import Wishes
from layers.errors import AuthError, LayerError, Refused, RegistryError
from layers.image import Remote
from layers.registry import Registry
from layers.store import Store
from tests.layers import images, registries, trees
from tests.layers.parties import Answer, MemoryRegistry, Party, Request, TokenParty, path_of
from tests.support import process, share

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="layers with other owners need root"),
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),
]

USER: Final = "alice"
PASSWORD: Final = "secret"
CHUNKS: Final[dict[str, Any]] = Registry.__init__.__kwdefaults__ or {}
TAR: Final = trees.tar_of([("a", {}, os.urandom(20_000))])


class Place:
    """A registry that has a/b:1, another origin with the same content, and our store, which has the image too."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.layout = scratch / "given"
        images.layout(self.layout, [TAR])
        self.registry = MemoryRegistry()
        self.other = MemoryRegistry(shared=self.registry)
        self.store = Store(str(scratch / "root"))
        self.credentials: Credentials | None = None

    def remote(self) -> Remote:
        return Remote(credentials=self.credentials, pause_s=0.001)

    def pull(self) -> image.Pulled:
        self.registry.add(self.layout, "a/b", "1")
        store = Store(str(self.scratch / "pulled"))
        return trio.run(functools.partial(image.pull, store, f"{self.registry.host}/a/b:1", remote=self.remote()))

    def push(self) -> None:
        self.fill()
        trio.run(functools.partial(image.push, self.store, "x:1", f"{self.registry.host}/new:1", remote=self.remote()))

    def fill(self) -> None:
        self.store.prepare()
        process.run(["skopeo", "copy", f"oci:{self.layout}:t", f"oci:{self.store.images}:docker.io/library/x:1"])

    def is_pushed(self) -> bool:
        return "new/1" in self.registry.manifests and len(self.registry.blobs) >= 2

    def skopeo_takes(self, verb: str) -> bool:
        """Whether skopeo pulls or pushes, with the same credentials."""
        creds = [] if self.credentials is None else [f"{USER}:{PASSWORD}"]
        if verb == "pull":
            self.registry.add(self.layout, "a/b", "1")
            words = [f"docker://{self.registry.host}/a/b:1", f"oci:{self.scratch / 'by-skopeo'}:t"]
            words += [f"--src-creds={one}" for one in creds] + ["--src-tls-verify=false", "--retry-times=0"]
        else:
            words = [f"oci:{self.layout}:t", f"docker://{self.registry.host}/new:1"]
            words += [f"--dest-creds={one}" for one in creds] + ["--dest-tls-verify=false", "--retry-times=0"]
        return process.run(["timeout", "20", "skopeo", "copy", *words], check=False).returncode == 0

    def count(self, pattern: str) -> int:
        return sum(bool(re.match(pattern, f"{one.method} {one.path}")) for one in self.registry.requests)


@pytest.fixture
def place(scratch: Path) -> Iterator[Place]:
    registries.need("skopeo")
    made = Place(scratch)
    with made.registry, made.other:
        yield made


Change = Callable[[Place, Request], Answer | None]


def answering(pattern: str, status: int, **headers: str) -> Change:
    """Answer all that is asked so with this; in headers {here}, {there} are the hosts, {path} is what was asked."""

    def change(place: Place, request: Request) -> Answer | None:
        if not re.match(pattern, f"{request.method} {request.path}"):
            return None
        names = {"here": place.registry.host, "there": place.other.host, "path": request.path}
        return Answer(status, {name.replace("_", "-"): text.format(**names) for name, text in headers.items()})

    return change


def rewriting(pattern: str, header: str, text: str) -> Change:
    """Serve what is asked so, with another header; {it} is what it was."""

    def change(place: Place, request: Request) -> Answer | None:
        if not re.match(pattern, f"{request.method} {request.path}"):
            return None
        answer = place.registry.serve(request)
        names = {"here": place.registry.host, "there": place.other.host, "it": answer.headers.get(header, "")}
        return Answer(answer.status, answer.headers | {header: text.format(**names)}, answer.body)

    return change


class Taken(NamedTuple):
    verb: str
    change: Change


TAKEN: Final = {
    # Asking for blobs is refused.
    **{
        f"HEAD of a blob {status}": Taken("push", answering("HEAD .*/blobs/", status))
        for status in (400, 401, 403, 405, 500, 501, 503)
    },
    # Redirects with their method, on the same and to another origin.
    **{
        f"{method} {status} to {where}": Taken(
            "push", answering(f"{method} (?!.*moved=)", status, Location=f"http://{{{where}}}{{path}}{mark}moved=1")
        )
        for status in (307, 308)
        for where in ("here", "there")
        for method, mark in (("POST", "?"), ("PATCH", "?"), ("PUT .*/uploads/", "&"), ("PUT .*/manifests/", "?"))
    },
    **{
        f"GET {kind} {status} to {where}": Taken(
            "pull", answering(f"GET .*/{kind}/(?!.*moved=)", status, Location=f"//{{{where}}}{{path}}?moved=1")
        )
        for status in (301, 302, 303, 307, 308)
        for where in ("here", "there")
        for kind in ("manifests", "blobs")
    },
    # Where an upload goes on.
    "Location without a scheme": Taken("push", rewriting("(POST|PATCH) ", "Location", "//{here}{it}")),
    "Location at another origin": Taken("push", rewriting("(POST|PATCH) ", "Location", "http://{there}{it}")),
    "Location with a fragment": Taken("push", rewriting("(POST|PATCH) ", "Location", "{it}#part?a=b")),
    "Location with a query": Taken("push", rewriting("(POST|PATCH) ", "Location", "{it}?_state=a%3D&b=c%2Fd#")),
    "Location with a name and a password": Taken("push", rewriting("POST ", "Location", "http://a:b@{here}{it}")),
}  # fmt: skip


@pytest.mark.parametrize("case", share.of(TAKEN))
def test_answers_that_other_clients_accept_are_accepted(place: Place, case: str) -> None:
    verb, change = TAKEN[case]
    place.registry.detour = lambda request: change(place, request)
    if verb == "pull":
        assert place.pull().new
    else:
        place.push()
        assert place.is_pushed()
    assert place.count(".*") < 40


@pytest.mark.parametrize(
    "case",
    ["POST 307 to there", "PUT .*/uploads/ 307 to there", "PUT .*/manifests/ 307 to there", "GET blobs 307 to there",
     "Location without a scheme", "Location at another origin", "Location with a fragment", "Location with a query"],
)  # fmt: skip
def test_skopeo_accepts_the_same_answers(place: Place, case: str) -> None:
    verb, change = TAKEN[case]
    place.registry.detour = lambda request: change(place, request)
    assert place.skopeo_takes(verb)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_success_status_of_a_stored_manifest_is_accepted(place: Place, status: int) -> None:
    def change(request: Request) -> Answer | None:
        if request.method != "PUT" or "/manifests/" not in request.path:
            return None
        place.registry.serve(request)
        return Answer(status, {})

    place.registry.detour = change
    place.push()
    assert place.is_pushed()


@pytest.mark.parametrize("token_server_refuses", [False, True])
@pytest.mark.parametrize("status", share.of([400, 401, 403, 404, 405, 429, 500, 503]))
def test_a_blob_whose_mount_is_refused_is_uploaded(place: Place, status: int, token_server_refuses: bool) -> None:
    place.fill()
    process.run(["skopeo", "copy", f"oci:{place.layout}:t", f"oci:{place.store.images}:{place.registry.host}/known:1"])
    scope = 'scope="repository:known:pull",error="insufficient_scope"'
    with TokenParty("token", basic=f"{USER}:{PASSWORD}") as tokens:
        place.credentials = Credentials(USER, PASSWORD)
        place.registry.challenge = f'Bearer realm="{tokens.url}/token",service="s",{scope}'
        place.registry.authorization = "Bearer token"
        place.registry.detour = lambda request: (
            Answer(status, {"WWW-Authenticate": place.registry.challenge}) if "mount=" in request.path else None
        )
        if token_server_refuses:
            tokens.detour = lambda request: Answer(403, {}) if "known" in request.path else None
        place.push()
    assert place.is_pushed()
    assert place.count("POST .*mount=") > 0 or token_server_refuses
    assert place.count("PUT .*/uploads/") == 2


# What is tried again, and what is not.


@pytest.mark.parametrize("status", share.of([400, 404, 413, 500, 503]))
@pytest.mark.parametrize("size", [100, 1000, 100_000])
def test_an_upload_that_is_refused_at_its_end_is_sent_once_more(
    place: Place, status: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layers.image._TRANSFERS", 1)
    monkeypatch.setitem(CHUNKS, "chunk", size)

    def change(request: Request) -> Answer | None:
        if request.method != "PUT" or "/uploads/" not in request.path:
            return None
        place.registry.uploads.pop(path_of(request).rpartition("/")[2], None)
        return Answer(status, {})

    place.registry.detour = change
    with pytest.raises((RegistryError, LayerError), match=f"answered {status}"):
        place.push()
    assert place.count("PUT .*/uploads/") == (1 if status == 413 else 2)
    assert place.count("POST .*/uploads/") == (1 if status == 413 else 2)


def test_an_upload_whose_end_is_never_answered_is_sent_once_more(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layers.image._TRANSFERS", 1)

    def change(request: Request) -> Answer | None:
        if request.method != "PUT" or "/uploads/" not in request.path:
            return None
        place.registry.uploads.pop(path_of(request).rpartition("/")[2], None)
        raise ConnectionError

    place.registry.detour = change
    with pytest.raises(RegistryError):
        place.push()
    assert place.count("POST .*/uploads/") == 2


def test_an_upload_fails_if_the_registry_reports_no_received_bytes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layers.image._TRANSFERS", 1)
    place.registry.detour = rewriting_range(place)
    with pytest.raises(RegistryError, match="accepts no data"):
        place.push()
    assert place.count("PATCH ") == 5


def rewriting_range(place: Place) -> Callable[[Request], Answer | None]:
    return functools.partial(rewriting("PATCH ", "Range", "0-0"), place)


def test_a_registry_that_loses_an_upload_in_the_middle_each_time_is_given_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layers.image._TRANSFERS", 1)
    monkeypatch.setitem(CHUNKS, "chunk", 50)

    def change(request: Request) -> Answer | None:
        key = path_of(request).rpartition("/")[2]
        if request.method == "PATCH" and len(place.registry.uploads.get(key, b"")) >= 100:
            place.registry.uploads.pop(key)
            return Answer(404, {})
        return None

    place.registry.detour = change
    with pytest.raises(LayerError, match="404"):
        place.push()
    assert place.count("POST .*/uploads/") == 5


def test_a_download_that_breaks_earlier_or_later_without_ranges_is_given_up(place: Place) -> None:
    lengths = [5000, 9000, *([3000, 4000] * 20)]

    def change(request: Request) -> Answer | None:
        answer = place.registry.serve(request)
        if "/blobs/" not in request.path or len(answer.body) < 10_000:
            return None
        sent = answer.body[: lengths.pop(0)]
        return Answer(200, {**answer.headers, "Content-Length": str(len(answer.body)), "Connection": "close"}, sent)

    place.registry.detour = change
    with pytest.raises(LayerError):
        place.pull()
    assert len(lengths) == 42 - 6


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_request_to_a_busy_token_server_is_repeated(place: Place, status: int) -> None:
    busy = [Answer(status, {"Retry-After": "0"})] * 2
    with TokenParty("token", basic=f"{USER}:{PASSWORD}") as tokens:
        tokens.detour = lambda request: busy.pop() if busy else None
        place.credentials = Credentials(USER, PASSWORD)
        place.registry.challenge = f'Bearer realm="{tokens.url}/token"'
        place.registry.authorization = "Bearer token"
        assert place.pull().new
        assert len(tokens.requests) == 3
        tokens.detour = lambda request: Answer(status, {"Retry-After": "0"})
        with pytest.raises(RegistryError, match=f"its token server {tokens.host} answered {status}"):
            place.pull()
        assert len(tokens.requests) == 3 + 5


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"token": "token"}', None),
        (b'{"access_token": "token"}', None),
        (b'{"token": "", "access_token": "token", "expires_in": 300}', None),
        (b'{"token": "token", "expires_in": -5}', None),
        (b'{"token": "token", "expires_in": 1e400}', None),
        (b'{"token": "token", "expires_in": NaN}', None),
        (b'{"token": "token", "expires_in": "never"}', "has no token"),
        (b'{"token": "to\\r\\nken"}', "has a malformed token"),
        (b'{"token": 5}', "has a malformed token"),
        (b"{}", "has no token"),
        (b"[]", "has no token"),
        (b"<html>", "has no token"),
        (b" " * (2 << 20), "too large"),
    ],
)
def test_what_a_token_server_says_is_a_token_or_a_failure(place: Place, body: bytes, says: str | None) -> None:
    with TokenParty("token") as tokens:
        tokens.detour = lambda request: Answer(200, {}, body)
        place.registry.challenge = f'Bearer realm="{tokens.url}/token"'
        place.registry.authorization = "Bearer token"
        if says is None:
            assert place.pull().new
        else:
            with pytest.raises(AuthError, match=says):
                place.pull()


# Addresses that are none.

BAD: Final = (
    "http://[::1/x",
    "ftp://{here}/x",
    "http:///x",
    "http://{here}x/",
    "http://a..b/x",
    "http://[v1.x]/",
    "::",
)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    ("verb", "pattern", "status"),
    [
        ("pull", "GET .*/manifests/", 307),
        ("pull", "GET .*/blobs/", 302),
        ("push", "POST .*/uploads/", 202),
        ("push", "POST .*/uploads/", 307),
        ("push", "PATCH .*/uploads/", 202),
        ("push", "PUT .*/uploads/", 308),
    ],
)
def test_an_invalid_address_is_one_failure(place: Place, verb: str, pattern: str, status: int, bad: str) -> None:
    place.registry.detour = functools.partial(answering(pattern, status, Location=bad), place)
    with pytest.raises(LayerError, match="it redirects to") as caught:
        place.pull() if verb == "pull" else place.push()
    assert isinstance(caught.value, Refused)


@pytest.mark.parametrize("bad", [*BAD, "http:///x", "", "token", "/token"])
def test_a_token_server_without_an_address_is_one_failure(place: Place, bad: str) -> None:
    place.registry.authorization = "Bearer token"
    place.registry.challenge = f'Bearer realm="{bad.format(here=place.registry.host)}"'
    with pytest.raises(AuthError, match="no proper address"):
        place.pull()


def tags(place: Place) -> list[str]:
    return trio.run(image.tags, f"{place.registry.host}/a/b", place.remote())


@pytest.mark.parametrize(
    "link",
    ["<http://{here}/v2/a/b/tags/list?n=1&last=1>; rel=\"next\"", "<//{here}/v2/a/b/tags/list?last=1>; rel=next",
     "</v2/a/b/tags/list?last=1>; rel=\"next\"", "<list?last=1>; rel=\"next\"", "<?last=1>; rel=\"next\"",
     "<https://internal.name/v2/a/b/tags/list?last=1>; rel=\"next\""],
)  # fmt: skip
def test_a_list_continues_at_its_link(place: Place, link: str) -> None:
    def change(request: Request) -> Answer | None:
        if not path_of(request).endswith("/tags/list"):
            return None
        if "last=" in request.path:
            return Answer(200, {}, b'{"tags": ["2"]}')
        return Answer(200, {"Link": link.format(here=place.registry.host)}, b'{"tags": ["1"]}')

    place.registry.detour = change
    assert tags(place) == ["1", "2"]


@pytest.mark.parametrize("link", ["<http://[::1/x>; rel=\"next\"", "<ftp://x/>; rel=\"next\""])  # fmt: skip
def test_a_list_whose_next_page_has_no_address_is_refused(place: Place, link: str) -> None:
    place.registry.detour = lambda request: Answer(200, {"Link": link}, b'{"tags": ["1"]}')
    with pytest.raises(Refused):
        tags(place)


def test_the_next_page_of_a_list_is_requested_from_the_registry_only(place: Place) -> None:
    link = f'<http://{place.registry.host}//{place.other.host}/v2/a/b/tags/list>; rel="next"'
    place.registry.detour = lambda request: (
        Answer(200, {"Link": link}, b'{"tags": ["1"]}') if request.path.startswith("/v2/a/b/tags/list?n=") else None
    )
    with pytest.raises(LayerError):
        tags(place)
    assert place.other.requests == []


# Challenges.


@pytest.mark.parametrize("has_credentials", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        'Negotiate\nBasic realm="x"\nBearer realm="{realm}"',
        'Negotiate, Basic realm="x"',
        'Basic realm="x", Bearer realm="{realm}",service="s"',
        'Bearer realm="{realm}", Basic realm="x"',
        'Bearer realm="{realm}"',
        'Bearer realm="nonsense", Basic realm="x"',
    ],
)
def test_a_challenge_that_can_be_answered_is(place: Place, text: str, has_credentials: bool) -> None:
    with TokenParty("token", basic=f"{USER}:{PASSWORD}" if has_credentials else "") as tokens:
        has_tokens = "{realm}" in text
        place.credentials = Credentials(USER, PASSWORD) if has_credentials else None
        place.registry.challenge = text.format(realm=f"{tokens.url}/token")
        place.registry.authorization = "Bearer token" if has_tokens else "Basic YWxpY2U6c2VjcmV0"
        if has_credentials or has_tokens:
            assert place.pull().new
        else:
            with pytest.raises(AuthError):
                place.pull()


# Words.


def test_a_failure_names_the_registry(place: Place) -> None:
    host = place.registry.host
    name = f"{host}/nothing:1"
    with pytest.raises(LayerError, match=f"pulling failed: {name}: {host} answered 404"):
        trio.run(functools.partial(image.pull, place.store, name, remote=place.remote()))
    with pytest.raises(LayerError, match=f"listing failed: {host}/nothing/tags/list: {host} answered 404"):
        trio.run(image.tags, name, place.remote())
    with pytest.raises(RegistryError, match=r"a{64}\.test: its host is not a valid name"):
        trio.run(functools.partial(image.pull, place.store, f"{'a' * 64}.test/x:1", remote=place.remote()))


def test_a_mirror_whose_name_cannot_be_one_is_passed_over(place: Place) -> None:
    place.registry.add(place.layout, "a/b", "1")
    remote = Remote(Wishes(mirrors=("a" * 64, "127.0.0.1:99999")), pause_s=0.001)
    assert trio.run(functools.partial(image.pull, place.store, f"{place.registry.host}/a/b:1", remote=remote)).new


def test_a_failure_after_a_redirect_names_that_host(place: Place) -> None:
    elsewhere = Party()
    with elsewhere:
        place.registry.detour = functools.partial(
            answering("GET .*/blobs/", 307, Location=f"{elsewhere.url}/gone"), place
        )
        with pytest.raises(LayerError, match=f"{elsewhere.host}, to which the registry redirects, answered 404"):
            place.pull()
