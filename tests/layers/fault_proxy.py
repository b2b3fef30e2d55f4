"""A proxy in front of a registry that breaks connections and lies, as a test asks it to."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.layers.http_server import Handler, HttpServer
from tests.support.timing import limit

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


class FaultProxy(HttpServer):
    """The proxy. What it does to answers and requests is up to its attributes."""

    def __init__(self, registry_host: str) -> None:
        self.registry_host = registry_host
        self.change: Callable[[str, str, Answer], Answer | None] = lambda method, path, answer: answer
        """Changes an answer; None breaks the connection instead."""
        self.cut_request: Callable[[str, str], int | None] = lambda method, path: None
        """After how many bytes of a request's body to break the connection; the registry gets those."""
        self.cut_answer: Callable[[str, str], int | None] = lambda method, path: None
        """After how many bytes of an answer's body to break it."""
        self.storage = Path()  # where the registry keeps its blobs
        self.requests: list[tuple[str, str, dict[str, str]]] = []  # method, path, headers
        super().__init__(type("_Faulty", (_Handler,), {"proxy": self}))


class _Handler(Handler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        proxy = self.proxy
        proxy.requests.append((self.command, self.path, dict(self.headers)))
        body = self._body(proxy)
        answer = None if body is None else proxy.change(self.command, self.path, self._ask(body))
        if answer is None:
            self._break()
            return
        status, headers, data = answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value.replace(proxy.registry_host, proxy.host))
        self.end_headers()
        cut = proxy.cut_answer(self.command, self.path)
        self.wfile.write(data if cut is None else data[:cut])
        if cut is not None and cut < len(data):
            self.wfile.flush()
            self._break()

    def _body(self, proxy: FaultProxy) -> bytes | None:
        length = int(self.headers.get("Content-Length") or 0)
        cut = proxy.cut_request(self.command, self.path)
        if cut is not None and cut < length:
            self._ask(self.rfile.read(cut))
            return None
        return self.rfile.read(length)

    def _break(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _ask(self, body: bytes) -> Answer:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length")}
        if body and "Content-Range" in headers:
            begin = int(headers["Content-Range"].partition("-")[0])
            headers["Content-Range"] = f"{begin}-{begin + len(body) - 1}"
        data = body if self.command in ("POST", "PUT", "PATCH") else None
        url = f"http://{self.proxy.registry_host}{self.path}"
        request = urllib.request.Request(url, data=data, headers=headers, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=limit(60)) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()
