"""Servers that record every byte they are sent: a registry in memory, a token server, and strangers beside them."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from tests.layers.http_server import Handler, HttpServer


class Request(NamedTuple):
    method: str
    path: str  # with its query
    headers: dict[str, str]  # names in lower case
    body: bytes


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes = b""


class Party(HttpServer):
    """A server that answers as `respond` says. `name` is in no address: all are 127.0.0.1 unless a test says else."""

    def __init__(self, certificates: Path | None = None) -> None:
        self.received = bytearray()
        self.requests: list[Request] = []
        self.shown: list[bool] = []  # whether each connection showed a client certificate
        super().__init__(type("_Recording", (_Handler,), {"party": self}))
        self.scheme = "http"
        if certificates is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
            context.load_verify_locations(certificates / "server.pem")
            context.verify_mode = ssl.CERT_OPTIONAL
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.scheme = "https"
        self.url = f"{self.scheme}://{self.host}"

    def respond(self, request: Request) -> Answer:
        return Answer(404, {})

    def knows(self, secret: str, user: str = "") -> bool:
        """Whether it was sent the secret: as it is, or behind a user's name as Basic has it."""
        basic = base64.b64encode(f"{user}:{secret}".encode())
        return secret.encode() in self.received or basic in self.received


class _Tee:
    """What is read of a connection, noted."""

    def __init__(self, file: Any, received: bytearray) -> None:
        self._file = file
        self._received = received

    def read(self, size: int) -> bytes:
        return self._noted(self._file.read(size))

    def readline(self, size: int = -1) -> bytes:
        return self._noted(self._file.readline(size))

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def _noted(self, data: bytes) -> bytes:
        self._received += data
        return data


class _Handler(Handler):
    protocol_version = "HTTP/1.1"
    party: Party

    def setup(self) -> None:
        super().setup()
        if isinstance(self.connection, ssl.SSLSocket):
            self.party.shown.append(self.connection.getpeercert(binary_form=True) is not None)
        self.rfile = _Tee(self.rfile, self.party.received)  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        self.party.requests.append(request)
        answer = self.party.respond(request)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            for one in value.split("\n"):  # several of one name
                self.send_header(name, one)
        if "Content-Length" not in answer.headers and answer.status != 204:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD" and answer.status != 204:
            self.wfile.write(answer.body)


class MemoryRegistry(Party):
    """A registry. What it wants to be sent is `authorization`, else it answers 401 with `challenge`; `detour` answers
    first what it likes, before or behind that."""

    def __init__(self, certificates: Path | None = None, shared: MemoryRegistry | None = None) -> None:
        super().__init__(certificates)
        self.blobs: dict[str, bytes] = {} if shared is None else shared.blobs
        self.manifests: dict[str, tuple[str, bytes]] = {} if shared is None else shared.manifests  # by NAME/REFERENCE
        self.uploads: dict[str, bytearray] = {} if shared is None else shared.uploads
        self.authorization = ""
        self.challenge = ""
        self.outside: Callable[[Request], Answer | None] = lambda request: None
        self.detour: Callable[[Request], Answer | None] = lambda request: None

    def add(self, layout: Path, name: str, tag: str) -> None:
        """Take in the image of an OCI layout."""
        for path in (layout / "blobs/sha256").iterdir():
            self.blobs[f"sha256:{path.name}"] = path.read_bytes()
        entry = json.loads((layout / "index.json").read_text())["manifests"][0]
        for reference in (tag, entry["digest"]):
            self.manifests[f"{name}/{reference}"] = entry["mediaType"], self.blobs[entry["digest"]]

    def respond(self, request: Request) -> Answer:
        if (answer := self.outside(request)) is not None:
            return answer
        if self.challenge and request.headers.get("authorization", "") != self.authorization:
            return Answer(401, {"WWW-Authenticate": self.challenge})
        return self.detour(request) or self.serve(request)

    def serve(self, request: Request) -> Answer:
        path, _, query = request.path.partition("?")
        if path == "/v2/":
            return Answer(200, {})
        if path == "/v2/_catalog":
            return _json({"repositories": sorted({name.rpartition("/")[0] for name in self.manifests})})
        name, _, rest = path.removeprefix("/v2/").rpartition("/blobs/")
        if rest.startswith("uploads/"):
            return self._upload(request, name, rest.removeprefix("uploads/"), parse_qs(query))
        if name:
            return _found(self.blobs.get(rest), "application/octet-stream", rest)
        name, _, rest = path.removeprefix("/v2/").rpartition("/manifests/")
        if name and request.method == "PUT":
            kind = request.headers["content-type"]
            for reference in (rest, _digest(request.body)):
                self.manifests[f"{name}/{reference}"] = kind, request.body
            return Answer(201, {"Docker-Content-Digest": _digest(request.body)})
        if name:
            kind, data = self.manifests.get(f"{name}/{rest}", ("", None))
            return _found(data, kind, "" if data is None else _digest(data))
        name = path.removeprefix("/v2/").removesuffix("/tags/list")
        known = sorted(key.rpartition("/")[2] for key in self.manifests if key.rpartition("/")[0] == name)
        return _json({"tags": [tag for tag in known if ":" not in tag]}) if known else Answer(404, {})

    def _upload(self, request: Request, name: str, key: str, query: dict[str, list[str]]) -> Answer:
        place = f"/v2/{name}/blobs/uploads/"
        if request.method == "POST":
            if (mount := query.get("mount", [""])[0]) in self.blobs and query.get("from"):
                return Answer(201, {"Location": f"/v2/{name}/blobs/{mount}"})
            key = str(len(self.uploads))
            self.uploads[key] = bytearray()
            return Answer(202, {"Location": place + key})
        if key not in self.uploads:
            return Answer(404, {})
        self.uploads[key] += request.body
        if request.method == "PUT":
            data = bytes(self.uploads.pop(key))
            if query.get("digest") != [_digest(data)]:
                return Answer(400, {})
            self.blobs[_digest(data)] = data
            return Answer(201, {"Location": f"/v2/{name}/blobs/{_digest(data)}"})
        said = {"Location": place + key, "Range": f"0-{max(len(self.uploads[key]) - 1, 0)}"}
        return Answer(202 if request.method == "PATCH" else 204, said)


class TokenParty(Party):
    """A token server: `token` for the password of a user or for a refresh token; for all if both are empty."""

    def __init__(self, token: str, *, basic: str = "", refresh: str = "", certificates: Path | None = None) -> None:
        super().__init__(certificates)
        self.token = token
        self.basic = basic  # USER:PASSWORD
        self.refresh = refresh
        self.detour: Callable[[Request], Answer | None] = lambda request: None

    def respond(self, request: Request) -> Answer:
        if (answer := self.detour(request)) is not None:
            return answer
        form = parse_qs(request.body.decode())
        expected = "Basic " + base64.b64encode(self.basic.encode()).decode() if self.basic else ""
        if self.refresh and form.get("refresh_token") != [self.refresh]:
            return Answer(401, {})
        if not self.refresh and request.headers.get("authorization", "") != expected:
            return Answer(401, {})
        return _json({"token": self.token})


def path_of(request: Request) -> str:
    return urlsplit(request.path).path


def _json(value: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _found(data: bytes | None, kind: str, digest: str) -> Answer:
    return (
        Answer(404, {}) if data is None else Answer(200, {"Content-Type": kind, "Docker-Content-Digest": digest}, data)
    )


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
