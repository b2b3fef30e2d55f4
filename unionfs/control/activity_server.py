"""The request `activity` of the control socket: reports the requests that a mount serves while it serves them.

The client asks `{"ask": "activity", "interval": SECONDS}`. The daemon records from then on, and sends a line with
`listening` and `settings`, then one line an interval, and a last one when the client has shut down its side of the
connection. A daemon that ends before that sends no last line. Each line is what `Observation.take` gives, the last one
with `whole`, and `at` (seconds of time.monotonic).
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

from unionfs.core.union import Union
from unionfs.fuse.calls import EndedError
from unionfs.fuse.traffic import Observation, Traffic

OBSERVERS_MAX: Final = 4
"""Recordings of one mount at once. Each takes time of the union's thread for each request (docs/profile.md)."""

SHORTEST_S: Final = 0.05
LONGEST_S: Final = 3600.0

Send = Callable[[socket.socket, dict[str, Any]], None]

_places: Final = threading.BoundedSemaphore(OBSERVERS_MAX)


def serve(client: socket.socket, asked: dict[str, Any], union: Union, traffic: Traffic, send: Send) -> None:
    """Answer one request, in a thread of its own, until the client or the union has ended. Raises: OSError."""
    interval = asked.get("interval", 1.0)
    if not isinstance(interval, int | float) or not SHORTEST_S <= interval <= LONGEST_S:
        send(client, {"error": f"the interval is not from {SHORTEST_S} to {LONGEST_S:.0f} seconds"})
        return
    calls = traffic.calls
    observation = traffic.observe(union)
    if calls is None or observation is None:
        send(client, {"error": "its transport does not record the files and processes of its requests"})
        return
    if not _places.acquire(blocking=False):
        send(client, {"error": f"{OBSERVERS_MAX} recordings of this union are being made already"})
        return
    try:
        with suppress(EndedError):
            calls.do(observation.begin)
            try:
                send(client, {"listening": True, "settings": observation.settings, "at": time.monotonic()})
                for _ in _intervals(client, interval):
                    send(client, _taken(calls.do, observation, whole=False))
                send(client, _taken(calls.do, observation, whole=True))
            finally:
                calls.do(observation.end)
    finally:
        _places.release()


def _intervals(client: socket.socket, interval: float) -> Iterator[None]:
    """Yield after each interval until the client has shut down its side."""
    due = time.monotonic() + interval
    while True:
        readable, _, _ = select.select([client], [], [], max(0.0, due - time.monotonic()))
        if readable:
            if not client.recv(1):
                return
            continue
        due = max(due + interval, time.monotonic())
        yield


def _taken(do: Callable[[Callable[[], bool]], None], observation: Observation, *, whole: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def take() -> bool:
        found.update(observation.take(whole=whole))
        found["at"] = time.monotonic()
        return False

    do(take)
    return found
