"""`unionfs snapshotter` as a process, and a client for it.

with Snapshotter(scratch) as snapshotter: snapshotter.call("Prepare", key="k", labels={"a": "b"})
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest

from tests.support.timing import limit

grpc = pytest.importorskip("grpc", reason="not installed: grpcio (the extra snapshotter of this project)")

from unionfs.snapshotter.wire import METHODS, SERVICE, message  # noqa: E402 - only if gRPC is there

_PATIENCE_S: Final = 60.0


class Snapshotter:
    """One process; what it keeps stays below `scratch` when it is stopped, killed and started again."""

    def __init__(self, scratch: Path, *words: str, before: Sequence[str] = ()) -> None:
        """`words` are added to its command line, `before` is a command that executes it."""
        self.address = scratch / "s.sock"
        self.root = scratch / "root"
        self.log = scratch / "snapshotter.log"
        self._argv = [*before, sys.executable, "-m", "unionfs", "snapshotter", "--log", os.fspath(self.log)]
        self._argv += ["--address", os.fspath(self.address), "--root", os.fspath(self.root), *words]
        self._notify = scratch / "notify"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.kill()
        if error is not None and self.log.exists():
            error.add_note(f"the snapshotter's log:\n{self.log.read_text()[-4000:]}")

    @property
    def directories(self) -> set[str]:
        """The snapshots that have a directory."""
        return set(os.listdir(self.root / "snapshots"))

    def start(self) -> None:
        """Start it, and return when it says that it is ready."""
        self._notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(os.fspath(self._notify))
            environment = {**os.environ, "NOTIFY_SOCKET": os.fspath(self._notify)}
            self._process = subprocess.Popen(self._argv, env=environment, stdin=subprocess.DEVNULL)
            manager.settimeout(limit(_PATIENCE_S))
            assert manager.recv(100) == b"READY=1"

    def stop(self) -> int:
        """Have it leave; its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._ended()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._ended()

    def _ended(self) -> int:
        assert self._process is not None
        status = self._process.wait(limit(_PATIENCE_S))
        self._process = None
        return status

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A connection of its own."""
        with grpc.insecure_channel(f"unix:{self.address}") as channel:
            yield Client(channel)

    def call(self, call: str, /, **fields: Any) -> Any:
        """One call over a new connection."""
        with self.client() as client:
            return client(call, **fields)


class Client:
    """Calls of the service by name: `client("Stat", key="k")`. Raises: grpc.RpcError."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def __call__(self, call: str, /, **fields: Any) -> Any:
        method = METHODS[call]
        kind = self._channel.unary_stream if method.streams else self._channel.unary_unary
        made = kind(
            f"/{SERVICE}/{call}",
            request_serializer=message(method.request).SerializeToString,
            response_deserializer=message(method.response).FromString,
        )
        request = message(method.request)(snapshotter="unionfs", **fields)
        answer = made(request, timeout=limit(_PATIENCE_S))
        return [info for batch in answer for info in batch.info] if method.streams else answer


def code_of(client: Client, call: str, /, **fields: Any) -> str:
    """The name of the status that a call ends with."""
    try:
        client(call, **fields)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"
