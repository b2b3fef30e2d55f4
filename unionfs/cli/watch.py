"""`unionfs watch`: show the activity of a mounted union each second: requests, waits, copy-ups, memory, descriptors."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from typing import Any, Final

from unionfs.cli import each, live
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError, failed
from unionfs.cli.live import Target
from unionfs.cli.units import human_size as human
from unionfs.control import activity_client, rates
from unionfs.control.client import NoAnswerError
from unionfs.control.rates import Rates
from unionfs.printable import printable
from unionfs.profiles.recording import Recording, Row

_EPILOG: Final = """\
Requests are also called messages. WORKED is the time that the daemon worked for them, WAITED the time that programs
waited for copy-ups, disks and threads besides. Lists begin with what costs most.

--json prints one object a line for each interval: seconds, messages (counts by kind, the most frequent first),
copy_ups, copied (bytes), copying_s, cpu_s and memory (bytes, PSS) of the daemon, nodes, descriptors (open, most),
caused: a list with command, directory, copy_ups, size (bytes) and ms of each program in each directory, the longest
first; and, if the transport records them, waits (copying, blocked and disk, in seconds), and the lists programs,
directories and kinds with requests, size (bytes read and written), seconds (worked) and the same waits of each."""

_ROWS: Final = 8  # of each list
_LISTS: Final = {"program": "programs", "directory": "directories", "kind": "kinds"}
_WAITS: Final = {
    "copying": "for own copy-ups",
    "blocked": "for copy-ups of others",
    "disk": "for disks and threads",
}
"""The fields of a row and their headings."""


def main(argv: list[str]) -> int:
    """Run `unionfs watch ARGV`."""
    parser = Parser(
        "watch",
        "Show the activity of a union each second: requests by kind, program and directory, waits, copy-ups with the "
        "programs that caused them, memory and descriptors of the daemon.",
        _EPILOG,
    )
    parser.add_argument("union", metavar="MOUNTPOINT|CONTAINER")
    live.add_flags(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    each.add_root(parser)
    arguments = parser.parse(argv)
    target = live.target_of(arguments.union, arguments.root, "watch")
    trace, activity = _Trace(target), _Activity(target, arguments.interval)
    try:
        before = target.stats()
        trace.start()
        activity.start()
        for _ in live.ticks(arguments.interval, arguments.count):
            after = target.stats()
            found, requests = rates.between(before, after, trace.take()), activity.take()
            if arguments.json:
                print(json.dumps({**rates.as_json(found), **_as_json(requests)}), flush=True)
            else:
                live.draw(_lines(target, found, requests))
            before = after
    except NoAnswerError as why:
        raise CommandError(failed("watch", arguments.union, str(why))) from why
    return 0


class _Trace:
    """The copy-ups of a union, received on a thread that ends with the process."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._listens = threading.Event()
        self._received: list[dict[str, Any]] = []  # replaced as a whole by `take`

    def start(self) -> None:
        """Return when the daemon sends copy-ups, or cannot."""
        threading.Thread(target=self._receive, daemon=True).start()
        self._listens.wait()

    def _receive(self) -> None:
        with suppress(NoAnswerError):  # the loop reports the end
            for entry in self._target.ask("trace"):
                if "listening" in entry:
                    self._listens.set()
                self._received.append(entry)
        self._listens.set()

    def take(self) -> list[dict[str, Any]]:
        """Return the copy-ups since the last call."""
        found, self._received = self._received, []
        return found


class _Activity:
    """The recorded requests of a union, received on a thread that ends with the process."""

    def __init__(self, target: Target, interval: float) -> None:
        self._target = target
        self._interval = interval
        self._listens = threading.Event()
        self._recording: Recording | None = None  # since the last `take`; None: the daemon does not record
        self._lock = threading.Lock()

    def start(self) -> None:
        """Return when the daemon records, or cannot."""
        threading.Thread(target=self._receive, daemon=True).start()
        self._listens.wait()

    def _receive(self) -> None:
        mount = self._target.mount
        # An older daemon does not know the question; a newer one may send other fields.
        with (
            suppress(NoAnswerError, KeyError, TypeError),
            activity_client.record(mount.minor, mount.user_id, self._interval) as connection,
        ):
            for line in connection.lines():
                with self._lock:
                    if self._recording is None:
                        self._recording = Recording(self._target.name, line["settings"], line["at"])
                        self._listens.set()
                    else:
                        self._recording.add(line)
        self._listens.set()

    def take(self) -> Recording | None:
        """The requests recorded since the last call; None if the transport does not record them."""
        with self._lock:
            found = self._recording
            if found is not None:
                self._recording = Recording(found.name, found.settings, found.begin + found.seconds)
            return found


def _as_json(requests: Recording | None) -> dict[str, Any]:
    if requests is None:
        return {}
    rows = requests.rows
    waits = {kind: round(sum(getattr(row, kind) for row in rows), 6) for kind in _WAITS}
    lists = {name: [_as_object(row, field) for row in requests.by(field)] for field, name in _LISTS.items()}
    return {"waits": waits, **lists}


def _as_object(row: Row, field: str) -> dict[str, Any]:
    times = {name: round(getattr(row, name), 6) for name in ("seconds", *_WAITS)}
    return {field: getattr(row, field), "requests": row.requests, "size": row.size, **times}


def _lines(target: Target, found: Rates, requests: Recording | None) -> list[str]:
    seconds = max(found.seconds, 0.001)
    lines = [
        f"{printable(target.name)}  {time.strftime('%H:%M:%S')}",
        f"{found.requests / seconds:.0f} messages/s, processor {found.cpu_s / seconds:.0%}, "
        f"memory {human(found.memory)}, {found.nodes} nodes, "
        f"{found.descriptors} of {found.descriptors_most} descriptors",
        f"{found.copy_ups} copy-ups, {human(found.copied)} copied in {found.copying_s * 1000:.1f} ms",
    ]
    if requests is None:
        lines += _kinds(found, seconds)
    else:
        waits = [f"{words} {_ms(sum(getattr(row, kind) for row in requests.rows))}" for kind, words in _WAITS.items()]
        lines.append(f"waits: {', '.join(waits)}")
        for field in _LISTS:
            lines += _table(field, requests.by(field))
    if found.caused:
        lines += ["", "COPY-UPS       BYTES         MS  PROGRAM          DIRECTORY"]
        for one in found.caused[:_ROWS]:
            numbers = f"{one.copy_ups:>8}  {human(one.size):>10}  {one.ms:>9.1f}"
            lines.append(f"{numbers}  {printable(one.command):<15}  {printable(one.directory)}")
    return [*lines, ""]


def _kinds(found: Rates, seconds: float) -> list[str]:
    lines = ["", "MESSAGES      PER SECOND"] if found.messages else []
    return lines + [f"{kind:<14}{count / seconds:>10.0f}" for kind, count in list(found.messages.items())[:_ROWS]]


def _table(field: str, rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = ["", f"REQUESTS       BYTES      WORKED      WAITED  {field.upper()}"]
    for row in rows[:_ROWS]:
        numbers = f"{row.requests:>8}  {human(row.size):>10}  {_ms(row.seconds):>10}  {_ms(row.waited):>10}"
        lines.append(f"{numbers}  {printable(getattr(row, field)) or '-'}")
    return lines


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
