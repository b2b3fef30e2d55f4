"""Which server may receive which secret: the table of docs/registries.md, over every verb that talks to a registry.

Each party records every byte that it is sent. After each row, what a party knows is compared with what it may know:
not less, so that the row is no accident, and not more.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import re
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from layers.cli.command import main as layers
from layers.store import Store
from tests.layers import images, registries, trees
from tests.layers.http_server import Handler, HttpServer
from tests.layers.parties import Answer, MemoryRegistry, Party, Request, TokenParty, path_of
from tests.support import share
from tests.support.timing import limit
from unionfs.__main__ import main

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="layers with other owners need root"),
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),
]

USER: Final = "alice"
PASSWORD: Final = "password-of-the-registry"
REFRESH: Final = "refresh-token-of-the-registry"
TOKEN: Final = "bearer-token-for-the-registry"
MIRRORS: Final = "password-of-the-mirror"
OTHERS: Final = "password-of-another-registry"
PROXYS: Final = "password-of-the-proxy"
COOKIE: Final = "cookie-of-the-registry"
SECRETS: Final = (PASSWORD, REFRESH, TOKEN, MIRRORS, OTHERS, PROXYS, COOKIE)
TAR: Final = trees.tar_of([("a", {}, b"one" * 100)])


def known(party: Party) -> set[str]:
    return {secret for secret in SECRETS if party.knows(secret, USER)}


class Thief(Party):
    """Another origin, to which a registry or a token server sends us. It asks for everything that there is."""

    def respond(self, request: Request) -> Answer:
        realms = f'Basic realm="x", Bearer realm="{self.url}/steal",service="x",scope="y"'
        return Answer(401, {"WWW-Authenticate": realms})


class Kept(NamedTuple):
    """How a secret is kept, and who is to get what for it."""

    name: str
    challenge: str  # of the registry
    registry: set[str]
    token_server: set[str]


KEPT: Final = (
    Kept("password", "basic", {PASSWORD}, set()),
    Kept("password", "bearer", {TOKEN}, {PASSWORD}),
    Kept("identity token", "bearer", {TOKEN}, {REFRESH}),
    Kept("password of a helper", "basic", {PASSWORD}, set()),
    Kept("password of a helper", "bearer", {TOKEN}, {PASSWORD}),
    Kept("identity token of a helper", "bearer", {TOKEN}, {REFRESH}),
    Kept("--creds", "basic", {PASSWORD}, set()),
    Kept("--creds", "bearer", {TOKEN}, {PASSWORD}),
)


class World:
    """A registry with its token server, a thief, and our files."""

    def __init__(self, scratch: Path, kept: Kept, home: Path) -> None:
        self.kept = kept
        self.home = home
        self.root = scratch / "root"
        self.registry = MemoryRegistry()
        identity = kept.name.startswith("identity token")
        self.tokens = TokenParty(TOKEN, basic="" if identity else f"{USER}:{PASSWORD}", refresh=REFRESH * identity)
        self.thief = Thief()
        images.layout(scratch / "given", [TAR])
        self.registry.add(scratch / "given", "a/b", "1")
        if kept.challenge == "basic":
            self.registry.challenge = 'Basic realm="x"'
            self.registry.authorization = f"Basic {basic(PASSWORD)}"
        else:
            self.registry.challenge = f'Bearer realm="{self.tokens.url}/token",service="s"'
            self.registry.authorization = f"Bearer {TOKEN}"
        self.flags = ["--creds", f"{USER}:{PASSWORD}"] if kept.name == "--creds" else []
        self.keep(**{} if kept.name == "--creds" else {self.registry.host: kept.name})

    def keep(self, **entries: str) -> None:
        """Write our files: what is kept for which registry."""
        auths: dict[str, object] = {"other.example": {"auth": basic(OTHERS)}}
        helpers = {}
        for host, name in entries.items():
            if name == "mirror's":
                auths[host] = {"auth": basic(MIRRORS)}
            elif name == "password":
                auths[host] = {"auth": basic(PASSWORD)}
            elif name == "identity token":
                auths[host] = {"identitytoken": REFRESH}
            else:
                helpers[host] = "kept"
                user, secret = (USER, PASSWORD) if name.startswith("password") else ("<token>", REFRESH)
                said = json.dumps({"ServerURL": host, "Username": user, "Secret": secret})
                helper = self.home / "bin/docker-credential-kept"
                helper.write_text(f"#!/bin/sh\necho '{said}'\n")
                helper.chmod(0o755)
        (self.home / "config.json").write_text(json.dumps({"auths": auths, "credHelpers": helpers}))

    def run(self, verb: str, *words: str) -> int:
        at = [] if verb in ("login", "search") else ["--root", str(self.root)]
        return main([verb, *at, *self.flags, *words])

    def import_image(self) -> None:
        (self.home / "given.tar").write_bytes(TAR)
        main(["import", "--root", str(self.root), str(self.home / "given.tar"), f"{self.registry.host}/c:1"])


def basic(secret: str) -> str:
    return base64.b64encode(f"{USER}:{secret}".encode()).decode()


@pytest.fixture
def home(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where credentials are looked for; nothing is there yet."""
    for name in ("REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    directory = scratch / "home"
    (directory / "bin").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.setenv("DOCKER_CONFIG", str(directory))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory / "run"))
    monkeypatch.setenv("PATH", f"{directory / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin")
    (directory / "registries.conf").write_text("")
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(directory / "registries.conf"))
    return directory


@pytest.fixture(params=[kept for kept in KEPT if "helper" not in kept.name], ids=lambda kept: " ".join(kept[:2]))
def world(request: pytest.FixtureRequest, scratch: Path, home: Path) -> Iterator[World]:
    yield from started(World(scratch, request.param, home))


@pytest.fixture(params=KEPT, ids=lambda kept: " ".join(kept[:2]))
def every_world(request: pytest.FixtureRequest, scratch: Path, home: Path) -> Iterator[World]:
    """Where it matters where a secret comes from, too."""
    yield from started(World(scratch, request.param, home))


@pytest.fixture(params=[kept for kept in KEPT if kept.name in ("password", "identity token")][1:])
def world_with_tokens(request: pytest.FixtureRequest, scratch: Path, home: Path) -> Iterator[World]:
    yield from started(World(scratch, request.param, home))


def started(world: World) -> Iterator[World]:
    with world.registry, world.tokens, world.thief:
        yield world


class Verb(NamedTuple):
    """What the command line says; {} is the registry."""

    words: tuple[str, ...]
    needs_image: bool = False


VERBS: Final = {
    "pull": Verb(("pull", "{}/a/b:1")),
    "pull -a": Verb(("pull", "-a", "{}/a/b")),
    "run --pull": Verb(("create", "--pull", "always", "{}/a/b:1", "true")),
    "push": Verb(("push", "{}/c:1"), True),
    "search": Verb(("search", "{}")),
    "search --tags": Verb(("search", "--tags", "{}/a/b")),
    "search --referrers": Verb(("search", "--referrers", "{}/a/b:1")),
}


class Detour(NamedTuple):
    """Which requests the registry answers by sending us to the thief, and how."""

    pattern: str  # of "METHOD PATH"
    status: int
    header: str = "Location"


DETOURS: Final = {
    "pull": (
        Detour("GET .*/manifests/1", 307),
        Detour("GET .*/manifests/1", 301),
        Detour("GET .*/manifests/1", 302),
        Detour("GET .*/blobs/sha256", 307),
        Detour("GET .*/blobs/sha256", 308),
    ),
    "pull -a": (Detour("GET .*/tags/list", 307), Detour("GET .*/manifests/", 307)),
    "run --pull": (Detour("GET .*/manifests/", 307), Detour("GET .*/blobs/sha256", 307)),
    "push": (
        Detour("HEAD .*/blobs/sha256", 307),
        Detour("POST .*/uploads/", 307),
        Detour("POST .*/uploads/", 308),
        Detour("POST .*/uploads/", 202),
        Detour("PATCH .*/uploads/", 307),
        Detour("PATCH .*/uploads/", 202),
        Detour("PUT .*/uploads/", 307),
        Detour("PUT .*/manifests/", 307),
    ),
    "search": (Detour("GET .*/_catalog", 307), Detour("GET .*/_catalog", 303)),
    "search --tags": (Detour("GET .*/tags/list", 307),),
    "search --referrers": (Detour("GET .*/referrers/", 307),),
}


def send_away(world: World, detour: Detour) -> None:
    def answer(request: Request) -> Answer | None:
        if not re.match(detour.pattern, f"{request.method} {path_of(request)}"):
            return None
        headers = {detour.header: f"{world.thief.url}{request.path}", "Set-Cookie": f"sid={COOKIE}"}
        if request.method == "PATCH":
            headers["Range"] = f"0-{len(request.body) - 1}"
        return Answer(detour.status, headers)

    world.registry.detour = answer


def run(world: World, name: str) -> int:
    verb = VERBS[name]
    if verb.needs_image:
        world.import_image()
    return world.run(*(word.format(world.registry.host) for word in verb.words))


def assert_nothing_more_is_known(world: World) -> None:
    assert known(world.registry) == world.kept.registry
    assert known(world.tokens) == world.kept.token_server
    assert known(world.thief) == set()


@pytest.mark.parametrize("verb", share.of(VERBS))
def test_registry_and_token_server_get_their_own_secrets_only(every_world: World, verb: str) -> None:
    assert run(every_world, verb) == 0
    assert_nothing_more_is_known(every_world)
    assert every_world.thief.requests == []


@pytest.mark.parametrize(("verb", "detour"), share.of((verb, detour) for verb in DETOURS for detour in DETOURS[verb]))
def test_targets_of_a_registry_get_no_secret(world: World, verb: str, detour: Detour) -> None:
    send_away(world, detour)
    run(world, verb)
    assert world.thief.requests
    assert_nothing_more_is_known(world)


@pytest.mark.parametrize("typed", ["basic", "bearer"])
@pytest.mark.parametrize("where", ["nowhere", "before the challenge", "after it"])
def test_login_tries_a_password_on_the_registry_alone(
    scratch: Path, home: Path, monkeypatch: pytest.MonkeyPatch, typed: str, where: str
) -> None:
    kept = next(kept for kept in KEPT if kept.challenge == typed)
    world = World(scratch, kept, home)
    world.keep()
    away = Answer(307, {"Location": f"{world.thief.url}/v2/"})
    if where == "before the challenge":
        world.registry.outside = lambda request: away
    elif where == "after it":
        world.registry.detour = lambda request: away
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PASSWORD}\n"))
    with world.registry, world.tokens, world.thief:
        status = world.run("login", "-u", USER, "--password-stdin", world.registry.host)
    assert known(world.thief) == set()
    assert bool(world.thief.requests) == (where != "nowhere")
    if where == "before the challenge":
        assert known(world.registry) == known(world.tokens) == set()
    else:
        assert_nothing_more_is_known(world)
    assert (status == 0) == (where == "nowhere")
    assert (basic(PASSWORD) in (home / "config.json").read_text()) == (where == "nowhere")


def test_login_asks_the_registry_that_was_named_wherever_its_images_are(
    scratch: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(scratch, KEPT[0], home)
    rule = f'[[registry]]\nprefix = "{world.registry.host}"\nlocation = "{world.thief.host}"\n'
    (home / "registries.conf").write_text(rule)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PASSWORD}\n"))
    with world.registry, world.tokens, world.thief:
        assert world.run("login", "-u", USER, "--password-stdin", world.registry.host) == 0
    assert world.thief.requests == []
    assert known(world.registry) == {PASSWORD}


def test_a_redirect_chain_that_returns_to_the_origin_gets_no_secret(world: World) -> None:
    back = Party()
    back.respond = lambda request: Answer(307, {"Location": f"{world.registry.url}/v2/came/back"})  # type: ignore[method-assign]
    with back:
        world.registry.detour = lambda request: (
            Answer(307, {"Location": f"{back.url}/over"}) if "/blobs/" in request.path else None
        )
        assert run(world, "pull") == 7
    (over, *_) = [request for request in world.registry.requests if request.path == "/v2/came/back"]
    assert "authorization" not in over.headers
    assert known(back) == set()
    assert_nothing_more_is_known(world)


def test_a_redirect_within_the_registry_keeps_its_secret(world: World) -> None:
    def answer(request: Request) -> Answer | None:
        if "/blobs/" not in request.path or "moved" in request.path:
            return None
        return Answer(307, {"Location": f"{world.registry.url}{request.path}?moved=1"})

    world.registry.detour = answer
    assert run(world, "pull") == 0
    assert_nothing_more_is_known(world)


@pytest.mark.parametrize("status", [302, 307])
def test_targets_of_a_token_server_get_no_secret(world_with_tokens: World, status: int) -> None:
    world_with_tokens.tokens.detour = lambda request: Answer(
        status, {"Location": f"{world_with_tokens.thief.url}/steal"}
    )
    assert run(world_with_tokens, "pull") != 0
    assert known(world_with_tokens.tokens) == world_with_tokens.kept.token_server
    assert known(world_with_tokens.registry) == known(world_with_tokens.thief) == set()


def test_a_token_server_that_asks_for_more_gets_no_answer(world_with_tokens: World) -> None:
    world_with_tokens.tokens.detour = world_with_tokens.thief.respond
    assert run(world_with_tokens, "pull") == 7
    assert known(world_with_tokens.tokens) == world_with_tokens.kept.token_server
    assert len(world_with_tokens.tokens.requests) == 1
    assert world_with_tokens.thief.requests == []


@pytest.mark.parametrize(
    ("mirror_asks", "how", "has_own"),
    share.of(itertools.product(["basic", "bearer"], ["--mirror", "registries.conf"], [False, True])),
)
def test_a_mirror_gets_the_credentials_of_its_own_name(
    every_world: World, mirror_asks: str, how: str, has_own: bool
) -> None:
    world = every_world
    mirror = MemoryRegistry(shared=world.registry)
    mirrors_tokens = TokenParty("token-for-the-mirror", basic=f"{USER}:{MIRRORS}")
    if mirror_asks == "basic":
        mirror.challenge, mirror.authorization = 'Basic realm="x"', f"Basic {basic(MIRRORS)}"
    else:
        mirror.challenge = f'Bearer realm="{mirrors_tokens.url}/token"'
        mirror.authorization = "Bearer token-for-the-mirror"
    own = {mirror.host: "mirror's"} if has_own else {}
    world.keep(**({} if world.kept.name == "--creds" else {world.registry.host: world.kept.name}), **own)
    if how == "--mirror":
        world.flags += ["--mirror", mirror.host]
    else:
        rule = f'[[registry]]\nlocation = "{world.registry.host}"\n[[registry.mirror]]\nlocation = "{mirror.host}"\n'
        (world.home / "registries.conf").write_text(rule)
    with mirror, mirrors_tokens:
        assert run(world, "pull" if has_own else "run --pull") == 0
    assert mirror.requests
    assert known(mirror) == ({MIRRORS} if has_own and mirror_asks == "basic" else set())
    assert known(mirrors_tokens) == ({MIRRORS} if has_own and mirror_asks == "bearer" else set())
    if has_own:
        assert world.registry.requests == world.tokens.requests == []
    else:
        assert_nothing_more_is_known(world)


@pytest.mark.parametrize("with_name", [False, True])
def test_a_foreign_url_gets_the_credentials_in_it(world: World, with_name: bool) -> None:
    class Site(Party):
        def respond(self, request: Request) -> Answer:
            return Answer(302, {"Location": f"{world.thief.url}/x.tar", "Set-Cookie": f"sid={COOKIE}"})

    with Site() as site:
        world.keep(**{site.host: "password", world.thief.host: "password"})
        world.flags = []
        name = f"{USER}:{MIRRORS}@" if with_name else ""
        assert world.run("import", f"http://{name}{site.host}/x.tar") == 1
    assert known(site) == ({MIRRORS} if with_name else set())
    assert len(world.thief.requests) == 1
    assert known(world.thief) == set()


def test_verbs_on_stored_images_contact_no_registry(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.import_image()
    name = f"{world.registry.host}/c:1"
    for words in (["inspect", name], ["why", name, "a"], ["check", name], ["diff", name, name]):
        assert layers([words[0], "--root", str(world.root), *words[1:]]) == 0
    assert layers(["inspect", "--root", str(world.root), f"{world.registry.host}/a/b:1"]) == 5
    assert world.registry.requests == world.tokens.requests == world.thief.requests == []
    assert Store(str(world.root)).list_images()


class Proxy(HttpServer):
    """An HTTP proxy that leads names to servers of ours, and notes all that it sees."""

    def __init__(self, leads: dict[str, str]) -> None:
        self.received = bytearray()
        self.asked: list[str] = []
        outer = self

        class Proxying(Handler):
            def do_CONNECT(self) -> None:
                outer.asked.append(f"CONNECT {self.path}")
                outer.received += str(self.headers).encode()
                if self.path not in leads:
                    self.send_error(502)
                    return
                host, _, port = leads[self.path].partition(":")
                with socket.create_connection((host, int(port))) as behind:
                    self.send_response(200)
                    self.end_headers()
                    outer.lead(self.connection, behind)

            def do_GET(self) -> None:
                outer.asked.append(f"GET {self.path}")
                outer.received += f"{self.path}\n{self.headers}".encode()
                realm = 'Bearer realm="http://token.test/token"'
                self.send_response(200 if "token.test" in self.path else 401)
                self.send_header("WWW-Authenticate", realm)
                self.send_header("Content-Length", "0")
                self.end_headers()

        super().__init__(Proxying)

    def lead(self, one: socket.socket, other: socket.socket) -> None:
        while True:
            for ready in select.select([one, other], [], [], limit(30))[0]:
                data = ready.recv(1 << 16)
                if not data:
                    return
                if ready is one:
                    self.received += data
                (other if ready is one else one).sendall(data)

    def knows(self, secret: str) -> bool:
        return secret.encode() in self.received or basic(secret).encode() in self.received


def test_only_the_proxy_gets_its_password(scratch: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registries.need("openssl")
    registries.make_certificate(scratch / "certs")
    certificates = scratch / "certs"
    tokens = TokenParty(TOKEN, basic=f"{USER}:{PASSWORD}", certificates=certificates)
    registry, storage = MemoryRegistry(certificates), MemoryRegistry(certificates)
    images.layout(scratch / "given", [TAR])
    for one in (registry, storage):
        one.add(scratch / "given", "a/b", "1")
    registry.challenge, registry.authorization = 'Bearer realm="https://token.test/token"', f"Bearer {TOKEN}"
    registry.detour = lambda request: (
        Answer(307, {"Location": f"https://storage.test{request.path}"}) if "/blobs/" in request.path else None
    )
    leads = {"registry.test:443": registry.host, "token.test:443": tokens.host, "storage.test:443": storage.host}
    with registry, storage, tokens, Proxy(leads) as proxy:
        monkeypatch.setenv("https_proxy", f"http://{USER}:{PROXYS}@{proxy.host}")
        creds = ["--creds", f"{USER}:{PASSWORD}", "--tls-verify=false"]
        assert main(["pull", "--root", str(scratch / "root"), *creds, "registry.test/a/b:1"]) == 0
        assert set(proxy.asked) == {f"CONNECT {name}" for name in leads}
        assert [secret for secret in SECRETS if proxy.knows(secret)] == [PROXYS]
    assert (known(registry), known(tokens), known(storage)) == ({TOKEN}, {PASSWORD}, set())


def test_no_password_without_tls_to_another_host_than_the_registrys_own(
    scratch: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Proxy({}) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
        creds = ["--creds", f"{USER}:{PASSWORD}", "--tls-verify=false"]
        assert main(["pull", "--root", str(scratch / "root"), *creds, "registry.test/a/b:1"]) == 7
        assert "without TLS, for http://token.test/token" in capsys.readouterr().err
        assert proxy.asked
        assert not [asked for asked in proxy.asked if "token.test" in asked]
        assert not proxy.knows(PASSWORD)


def test_a_client_certificate_is_shown_to_the_registrys_host_alone(scratch: Path, home: Path) -> None:
    registries.need("openssl")
    certificates = scratch / "certs"
    registries.make_certificate(certificates)
    own = scratch / "own"
    own.mkdir()
    (own / "me.cert").write_bytes((certificates / "server.pem").read_bytes())
    (own / "me.key").write_bytes((certificates / "server.key").read_bytes())
    registry, storage, mirror = (MemoryRegistry(certificates) for _ in range(3))
    images.layout(scratch / "given", [TAR])
    for one in (registry, storage):
        one.add(scratch / "given", "a/b", "1")
    elsewhere = storage.url.replace("127.0.0.1", "localhost")
    registry.detour = lambda request: (
        Answer(307, {"Location": f"{elsewhere}{request.path}"}) if "/blobs/" in request.path else None
    )
    with registry, storage, mirror:
        flags = ["--cert-dir", str(own), "--tls-verify=false", "--mirror", mirror.host]
        assert main(["pull", "--root", str(scratch / "root"), *flags, f"{registry.host}/a/b:1"]) == 0
    assert set(registry.shown) == {True}
    assert set(storage.shown) == set(mirror.shown) == {False}
