"""Registries that redirect requests, delay them, or are behind a proxy: which server gets which request, and when."""

from __future__ import annotations

import functools
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from layers import image
from layers.credentials import Credentials
from layers.endpoints import Endpoint, Wishes
from layers.errors import LayerError, RegistryError
from layers.image import Remote
from layers.session import Session, retry_after
from layers.store import Store
from tests.layers import images, registries, trees
from tests.layers.fault_proxy import Answer, FaultProxy
from tests.layers.http_server import Handler, HttpServer
from tests.support import process
from tests.support.timing import limit

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="layers with other owners need root"),
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),
]

GIVEN = Credentials(registries.NAME, registries.PASSWORD)
TAR = trees.tar_of([("a", {}, os.urandom(70_000))])


@pytest.fixture(scope="module")
def locked(run_dir: Path) -> Iterator[registries.Registry]:
    """A registry with a password that has the image x:1."""
    registries.need("skopeo")
    images.layout(run_dir / "elsewhere-given", [TAR])
    with registries.Registry(run_dir / "registry-elsewhere", password=True) as started:
        creds = f"--dest-creds={registries.NAME}:{registries.PASSWORD}"
        target = f"docker://{started.host}/x:1"
        process.run(
            ["skopeo", "copy", "--dest-tls-verify=false", creds, f"oci:{run_dir / 'elsewhere-given'}:t", target]
        )
        yield started


class Storage:
    """Another host that keeps blobs, by their digests, and notes what it was told."""

    def __init__(self, blobs: Path) -> None:
        self.told: list[dict[str, str]] = []
        outer = self

        class Storing(Handler):
            def do_GET(self) -> None:
                outer.told.append(dict(self.headers))
                (found,) = blobs.glob(f"*/{self.path.rpartition(':')[2]}/data")
                self.give(found.read_bytes())

        self.served = HttpServer(Storing)
        self.host = self.served.host


def pull(store: Store, text: str, remote: Remote) -> image.Pulled:
    return trio.run(functools.partial(image.pull, store, text, remote=remote))


def test_the_password_does_not_go_where_blobs_are_kept(locked: registries.Registry, scratch: Path) -> None:
    storage = Storage(locked.scratch / "storage/docker/registry/v2/blobs/sha256")

    def redirect(method: str, path: str, answer: Answer) -> Answer | None:
        if "/blobs/sha256" in path and answer[0] == 200:
            return 307, {"Location": f"http://{storage.host}{path}", "Content-Length": "0"}, b""
        return answer

    with FaultProxy(locked.host) as proxy, storage.served:
        proxy.change = redirect
        store = Store(str(scratch / "root"))
        assert pull(store, f"{proxy.host}/x:1", Remote(credentials=GIVEN, pause_s=0.01)).new
        assert any("Authorization" in headers for _, _, headers in proxy.requests)
    assert len(storage.told) == 2  # configuration and layer
    assert not any("authorization" in (name.lower() for name in headers) for headers in storage.told)


def test_a_registry_says_how_long_to_wait(locked: registries.Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("layers.session.trio.sleep", sleep)
    waits = iter(["45", "60", "100"])

    def change(method: str, path: str, answer: Answer) -> Answer | None:
        wait = next(waits, None)
        return answer if wait is None else (429, {"Content-Length": "0", "Retry-After": wait}, b"")

    async def ping(host: str) -> None:
        async with Session(Endpoint(host, "x", host), GIVEN, pause_s=0.01) as opened:
            await opened.ping()

    with FaultProxy(locked.host) as proxy:
        proxy.change = change
        trio.run(ping, proxy.host)
        assert slept == [45, 60, 100]
        waits = iter(["3600"])
        with pytest.raises(RegistryError, match="429") as caught:
            trio.run(ping, proxy.host)
        assert "wait 3600 s" in caught.value.hint
        assert slept == [45, 60, 100]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0),
        ("7", 7),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90),
        ("Thu, 01 Jan 1970 00:00:01 GMT", 0),
        ("soon", 0),
        ("-5", 0),
        ("9" * 30, 999_999_999),
        ("\u0661", 0),
    ],
)
def test_every_form_of_retry_after_is_read(text: str, seconds: float) -> None:
    assert retry_after(text, 10.0) == seconds


class Proxy:
    """An HTTP proxy that knows one registry by the name registry.test, and lets nobody through to port 443."""

    def __init__(self, registry_host: str) -> None:
        self.asked: list[str] = []
        outer = self
        host, _, port = registry_host.partition(":")

        class Proxying(Handler):
            def do_CONNECT(self) -> None:
                outer.asked.append(f"CONNECT {self.path}")
                if not self.path.startswith("registry.test:") or self.path.endswith(":443"):
                    self.send_error(502)
                    return
                with socket.create_connection((host, int(port))) as behind:
                    self.send_response(200)
                    self.end_headers()
                    _both_ways(self.connection, behind)

            def do_GET(self) -> None:
                outer.asked.append(f"GET {self.path}")
                self.give(b"{}")

        self.served = HttpServer(Proxying)
        self.url = f"http://{self.served.host}"


def _both_ways(one: socket.socket, other: socket.socket) -> None:
    while True:
        for ready in select.select([one, other], [], [], limit(30))[0]:
            data = ready.recv(1 << 16)
            if not data:
                return
            (other if ready is one else one).sendall(data)


def test_a_proxy_is_used_for_tls_and_for_plain_http(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ping(host: str, insecure: bool) -> None:
        async with Session(Endpoint(host, "x", host, insecure), pause_s=0.01) as opened:
            await opened.ping()

    with registries.Registry(scratch / "registry", tls=True) as secure:
        proxy = Proxy(secure.host)
        with proxy.served:
            for name in ("https_proxy", "http_proxy"):
                monkeypatch.setenv(name, proxy.url)
            trio.run(ping, "registry.test:5000", True)
            assert set(proxy.asked) == {"CONNECT registry.test:5000"}
            proxy.asked.clear()
            trio.run(ping, "registry.test", True)  # the proxy lets nobody through to its TLS, so plain HTTP
            assert proxy.asked == ["CONNECT registry.test:443", "GET http://registry.test/v2/"]
            with pytest.raises(RegistryError):
                trio.run(ping, "registry.test", False)  # nobody allowed that
            monkeypatch.setenv("no_proxy", "registry.test")
            proxy.asked.clear()
            with pytest.raises(RegistryError):
                trio.run(ping, "registry.test:5000", True)
            assert proxy.asked == []
            # What is on this machine is asked without one.
            trusting = Remote(Wishes(cert_dir=str(secure.certificates / "ca")))
            with pytest.raises(LayerError, match="404"):
                pull(Store(str(scratch / "root")), f"{secure.host}/x:1", trusting)
            assert proxy.asked == []


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "nonsense://x"])
def test_a_proxy_that_cannot_be_used_is_said_to_be_one(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)

    async def ping() -> None:
        async with Session(Endpoint("registry.test", "x", "registry.test"), pause_s=0.01) as opened:
            await opened.ping()

    with pytest.raises(LayerError, match="proxy"):
        trio.run(ping)
