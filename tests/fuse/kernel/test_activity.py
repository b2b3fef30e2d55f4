"""The record of requests, their reasons and copy-ups; without a recording no code of it runs."""

from __future__ import annotations

import struct
import sys
from collections import Counter
from time import monotonic
from types import FrameType
from typing import Any

import pytest

from tests.fuse.kernel import wire
from tests.fuse.kernel.dispatched_union import Served, done
from tests.fuse.kernel.test_resent import ExpectLog
from tests.fuse.kernel.wire import ROOT
from unionfs.fuse.kernel import activity, turn
from unionfs.fuse.kernel.activity import Activity


class Requests:
    """Stands in for the device: gives the same request some times, and counts answers."""

    def __init__(self, request: bytes, times: int) -> None:
        self.request = memoryview(request)
        self.left = times
        self.answers = 0

    def receive(self) -> int:
        self.left -= 1
        return len(self.request) if self.left >= 0 else 0

    def send(self, reply: bytes) -> bool:
        self.answers += bool(reply)
        return True


def calls_of_a_turn(served: Served) -> Counter[str]:
    """The Python functions that 100 LOOKUPs call."""
    device: Any = Requests(wire.request(wire.LOOKUP, ROOT, b"none\0"), 100)
    found: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            found[f"{frame.f_code.co_filename}:{frame.f_code.co_qualname}"] += 1

    sys.setprofile(count)
    try:
        turn.serve(device, device, served.dispatcher, until=1e12, sleeps=False)
    finally:
        sys.setprofile(None)
    assert device.answers == 100
    return found


def test_without_a_recording_no_code_of_it_runs(served: Served) -> None:
    calls_of_a_turn(served)  # the first lookups read the directory
    before = calls_of_a_turn(served)
    recording = Activity(served.session, served.union)
    recording.begin()
    during = calls_of_a_turn(served)
    recording.end()
    assert calls_of_a_turn(served) == before
    assert not [name for name in before if name.startswith(activity.__file__)]
    assert sum(before.values()) < sum(during.values())
    found = {
        (row["kind"], row["reason"], row["directory"]): row["requests"] for row in recording.take(whole=True)["rows"]
    }
    assert found == {("LOOKUP", "missing", "/"): 1, ("LOOKUP", "missing again", "/"): 99}


def observed(served: Served, recording: Activity, request: bytes) -> bytes | None:
    """As the turn and the loop do it."""
    buf = memoryview(request)
    recording.is_to_be_served(buf, len(buf))
    reply = served.dispatcher.handle(buf, len(buf))
    recording.served(served.dispatcher, buf, len(buf), reply, 0.0, monotonic())
    return None if reply is None else bytes(reply)


def test_who_waits_for_whose_copy_up(served: Served) -> None:
    node = served.node(b"big")
    recording = Activity(served.session, served.union)
    recording.begin()
    assert observed(served, recording, wire.write(node, 0, b"first", unique=4)) is None
    assert observed(served, recording, wire.write(node, 5, b"second", unique=6)) is None
    job = served.dispatcher.slow.pop()
    assert not recording.take(whole=True)["copy_ups"], "it has not been copied yet"
    job.copy()  # type: ignore[union-attr]
    for reply in served.dispatcher.finish(job, None):  # type: ignore[arg-type]
        recording.late(reply)
    told = recording.take(whole=True)
    (row,) = told["rows"]
    assert (row["kind"], row["directory"], row["requests"]) == ("WRITE", "/", 0), "the requests were told before"
    assert row["copying"] > 0
    assert row["blocked"] > 0
    assert row["disk"] == 0
    (copied,) = told["copy_ups"]
    assert (copied["count"], copied["use"], copied["directory"]) == (1, "data", "/")
    assert told["files"][0] == {**told["files"][0], "path": "/big", "requests": 2, "writes": 2, "written": 11}


def test_what_a_copy_was_used_for(served: Served) -> None:
    recording = Activity(served.session, served.union)
    recording.begin()
    for name, mode in ((b"f", 0o600), (b"suid", 0o4755)):
        observed(served, recording, wire.request(wire.LOOKUP, ROOT, name + b"\0"))
        body = struct.pack("=IIQQQqqqIIIIIIII", 1, 0, 0, 0, *[0] * 7, mode, 0, 0, 0, 0)
        reply = observed(served, recording, wire.request(wire.SETATTR, served.node(name), body))
        while reply is None:
            reply = done(served.dispatcher, served.dispatcher.slow.pop(0))
    uses = {each["use"]: each["count"] for each in recording.take(whole=True)["copy_ups"]}
    assert uses == {"attributes": 1, "unchanged": 1}
    observed(served, recording, wire.request(wire.UNLINK, ROOT, b"suid\0"))
    observed(served, recording, wire.write(served.node(b"f"), 0, b"new"))
    assert {each["use"] for each in recording.take(whole=True)["copy_ups"]} == {"removed", "data"}


def test_reasons_of_known_and_of_forgotten_names(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Activity(served.session, served.union)
    recording.begin()
    for name in (b"f", b"f", b"none", b"none"):
        observed(served, recording, wire.request(wire.LOOKUP, ROOT, name + b"\0"))
    found = {row["reason"]: row["requests"] for row in recording.take(whole=True)["rows"]}
    assert found == {"first": 1, "again": 1, "missing": 1, "missing again": 1}
    assert not recording.take(whole=True)["forgot"]
    monkeypatch.setattr(activity, "NAMES_MAX", 2)
    observed(served, recording, wire.request(wire.LOOKUP, ROOT, b"other\0"))
    observed(served, recording, wire.request(wire.LOOKUP, ROOT, b"f\0"))
    told = recording.take(whole=True)
    assert told["forgot"]
    assert {row["reason"]: row["requests"] for row in told["rows"]} == {"missing": 1, "first": 1}


def test_what_is_in_a_renamed_directory_is_shown_under_its_new_path(served: Served) -> None:
    recording = Activity(served.session, served.union)
    recording.begin()
    directory = served.node(b"d")
    observed(served, recording, wire.request(wire.GETATTR, served.node(b"a", directory), bytes(16)))
    observed(served, recording, wire.request(wire.RENAME, ROOT, struct.pack("=Q", ROOT) + b"d\0e\0"))
    observed(served, recording, wire.request(wire.GETATTR, served.node(b"b", directory), bytes(16)))
    told = recording.take(whole=True)
    assert {each["path"] for each in told["files"]} == {"/d/a", "/e/b"}
    assert {row["directory"] for row in told["rows"]} == {"/d", "/", "/e"}


def test_beyond_the_most_rows_requests_are_counted_without_a_place(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "ROWS_MAX", 1)
    recording = Activity(served.session, served.union)
    for _ in range(2):
        for name in (b"none", b"f", b"f", b"none", b"none"):
            observed(served, recording, wire.request(wire.LOOKUP, ROOT, name + b"\0"))
        rows = recording.take(whole=True)["rows"]
        assert sum(row["requests"] for row in rows) == 5
        assert [row["directory"] for row in rows] == ["/"] + [""] * (len(rows) - 1)


def test_a_bug_ends_the_recording_and_not_the_daemon(
    served: Served, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a bug")

    Activity(served.session, served.union).begin()
    monkeypatch.setattr(Activity, "served", broken)
    with expect_log("recording of requests failed"):
        calls_of_a_turn(served)
    assert served.session.observers == ()
    assert served.union.ledger.listeners == ()
