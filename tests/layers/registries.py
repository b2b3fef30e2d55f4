"""Real registries for the tests: Debian's docker-registry on loopback, open, with a password, with TLS, with tokens.
See `proxy` for one that breaks and lies.

with Registry(scratch) as registry: ... registry.host ...
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.layers.http_server import Handler, HttpServer
from tests.support import process
from tests.support.timing import limit

NAME: Final = "alice"
PASSWORD: Final = "s3cret:with colon"


def need(*programs: str) -> None:
    """Skip the test when a program is not installed, with the name of its Debian package."""
    packages = {"htpasswd": "apache2-utils"}
    missing = [packages.get(program, program) for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)} (names of Debian packages)")


class Registry:
    """One docker-registry. Ended at the end of its `with`."""

    def __init__(
        self,
        scratch: Path,
        *,
        password: bool = False,
        tls: bool = False,
        token_realm: str = "",
        keys: Path | None = None,
    ) -> None:
        need("docker-registry", *(["htpasswd"] if password else []), *(["openssl"] if tls or token_realm else []))
        self.scratch = scratch
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.certificates = scratch / "certs"
        self._config = self._written_config(password, tls, token_realm, keys)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        with (self.scratch / "registry.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", self._config], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        _wait_for(self.port, self._process, self.scratch / "registry.log")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _written_config(self, password: bool, tls: bool, token_realm: str, keys: Path | None) -> Path:
        storage = self.scratch / "storage"
        self.scratch.mkdir(parents=True, exist_ok=True)
        value: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
            "http": {"addr": self.host},
        }
        if tls:
            make_certificate(self.certificates)
            value["http"]["tls"] = {
                "certificate": str(self.certificates / "server.pem"),
                "key": str(self.certificates / "server.key"),
            }
        if password:
            made = process.run(["htpasswd", "-Bbn", NAME, PASSWORD])
            (self.scratch / "htpasswd").write_text(made.stdout)
            value["auth"] = {"htpasswd": {"realm": "tests", "path": str(self.scratch / "htpasswd")}}
        if token_realm:
            assert keys is not None
            value["auth"] = {
                "token": {
                    "realm": token_realm,
                    "service": "tests",
                    "issuer": "tests",
                    "rootcertbundle": str(keys / "server.pem"),
                }
            }
        config = self.scratch / "registry.yml"
        config.write_text(json.dumps(value))  # JSON is YAML
        return config


def make_certificate(directory: Path) -> None:
    """A key and a certificate of 127.0.0.1; ca.crt is for those who shall trust it."""
    directory.mkdir(parents=True, exist_ok=True)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", f"{directory}/server.key", "-out", f"{directory}/server.pem", "-days", "2"]
    process.run([*command, "-subj", "/CN=tests", "-addext", "subjectAltName=IP:127.0.0.1"])
    (directory / "ca").mkdir(exist_ok=True)
    shutil.copy(directory / "server.pem", directory / "ca" / "ca.crt")


class TokenServer(HttpServer):
    """A token server as Docker's specification has it: a name and password for a signed token (JWT, ES256)."""

    def __init__(self, keys: Path, life_s: int = 300) -> None:
        need("openssl")
        make_certificate(keys)
        self.keys = keys
        self.asked: list[dict[str, list[str]]] = []  # queries and forms that came
        self.life_s = life_s
        outer = self

        class Tokens(Handler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                given = self.headers.get("Authorization", "")
                expected = "Basic " + base64.b64encode(f"{NAME}:{PASSWORD}".encode()).decode()
                outer.asked.append(query)
                if given != expected:
                    self.send_error(401)
                    return
                self._answer(query)

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                outer.asked.append(form)
                if form.get("refresh_token") != ["identity"]:
                    self.send_error(401)
                    return
                self._answer(form)

            def _answer(self, query: dict[str, list[str]]) -> None:
                scopes = [scope for text in query.get("scope", []) for scope in text.split(" ")]
                self.give(json.dumps({"token": outer.token(scopes), "expires_in": outer.life_s}).encode())

        super().__init__(Tokens)
        self.realm = f"http://{self.host}/token"

    def token(self, scopes: list[str]) -> str:
        now = int(time.time())
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        claims = {
            "iss": "tests", "sub": NAME, "aud": "tests", "exp": now + self.life_s, "nbf": now - 10, "iat": now,
            "jti": os.urandom(8).hex(), "access": access,
        }  # fmt: skip
        certificate = (self.keys / "server.pem").read_text()
        chain = ["".join(certificate.split("-----")[2].split())]
        header = {"typ": "JWT", "alg": "ES256", "x5c": chain}
        signed = f"{_url64(json.dumps(header).encode())}.{_url64(json.dumps(claims).encode())}"
        der = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", self.keys / "server.key"],
            input=signed.encode(), capture_output=True, check=True,
        ).stdout  # fmt: skip
        return f"{signed}.{_url64(_raw_signature(der))}"


def _raw_signature(der: bytes) -> bytes:
    """(r, s) of a DER signature as 64 bytes (RFC 7518, 3.4)."""
    length = der[3]
    r, s = der[4 : 4 + length], der[6 + length :]
    return b"".join(number.lstrip(b"\0").rjust(32, b"\0") for number in (r, s))


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + limit(60)
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise AssertionError(f"docker-registry ended: {log.read_text()[-2000:]}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    server.kill()
    raise AssertionError("docker-registry does not answer")
