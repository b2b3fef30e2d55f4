"""`unionfs logs`: print the output of a container."""

from __future__ import annotations

import datetime as dt
import re
import sys
import time
from argparse import ArgumentTypeError
from collections import deque
from collections.abc import Iterator
from typing import Final

from unionfs.cli import each
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError, failed
from unionfs.containers.errors import NoSuchContainerError
from unionfs.containers.logs import Entry, Reader
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.printable import printable

_ASK_AGAIN_S: Final = 0.1
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

Times = tuple[str | None, str | None]
"""--since and --until in the log's format: times in UTC, which can be compared as text."""


def main(argv: list[str]) -> int:
    """Run `unionfs logs ARGV`."""
    parser = Parser("logs", "Print the output of a container: its standard output and standard error, each to ours.")
    parser.add_argument("container", metavar="CONTAINER", help="a name, an id, or the beginning of an id")
    parser.add_argument("-f", "--follow", action="store_true", help="continue until the container has ended")
    parser.add_argument("-n", "--tail", metavar="N", type=_count, help="only the last N lines, or `all`")
    parser.add_argument("-t", "--timestamps", action="store_true", help="print the time before each line")
    parser.add_argument("--since", metavar="WHEN", type=_moment, help="only output since then: 10m (ago), or a time")
    parser.add_argument("--until", metavar="WHEN", type=_moment, help="only output until then")
    each.add_root(parser)
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)
    container = store.find(arguments.container)
    try:
        reader = Reader(container.log)
    except FileNotFoundError:
        if container.status == "created":
            return 0
        why = "its output is not stored (it was run with --rm or --log-driver none)"
        raise CommandError(failed("reading the log", container.name, why)) from None
    show = _Show(timestamps=arguments.timestamps)
    times = (arguments.since, arguments.until)
    for entry in _last(reader, arguments.tail, times):
        show(entry)
    while arguments.follow:
        running = _is_running(store, container)
        for entry in _between(reader, times):
            show(entry)
        if not running:
            break
        time.sleep(_ASK_AGAIN_S)
    reader.close()
    return 0


def _between(reader: Reader, times: Times) -> Iterator[Entry]:
    """The output in that time."""
    since, until = times
    for entry in reader.entries():
        if (since is None or entry.time >= since) and (until is None or entry.time <= until):
            yield entry


def _last(reader: Reader, count: int | None, times: Times) -> list[Entry]:
    """The entries of the last lines; all for None."""
    if count is None:
        return list(_between(reader, times))
    lines: deque[list[Entry]] = deque(maxlen=count)
    whole = True
    for entry in _between(reader, times):
        if whole or not lines:
            lines.append([])
        if lines:
            lines[-1].append(entry)
        whole = entry.text.endswith(b"\n")
    return [entry for line in lines for entry in line]


class _Show:
    def __init__(self, *, timestamps: bool) -> None:
        self._timestamps: Final = timestamps
        self._at_start = {"stdout": True, "stderr": True}  # of a line

    def __call__(self, entry: Entry) -> None:
        stream = sys.stderr if entry.stream == "stderr" else sys.stdout
        prefix = (
            f"{printable(entry.time)} ".encode() if self._timestamps and self._at_start.get(entry.stream, True) else b""
        )
        stream.buffer.write(prefix + entry.text)
        stream.buffer.flush()
        self._at_start[entry.stream] = entry.text.endswith(b"\n")


def _is_running(store: ContainerStore, container: Container) -> bool:
    try:
        return store.load(container.id).is_running()
    except NoSuchContainerError:
        return False


def _moment(text: str) -> str:
    """Convert `10m` (ago), 1700000000 (seconds since 1970) or 2026-01-31T12:00:00 to a time in the log's format."""
    try:
        if re.fullmatch(r"([0-9.]+[smhd])+", text):
            ago = sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9.]+)([smhd])", text))
            moment = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=ago)
        elif re.fullmatch(r"[0-9]+(\.[0-9]*)?", text):
            moment = dt.datetime.fromtimestamp(float(text), dt.UTC)
        else:
            moment = dt.datetime.fromisoformat(text)  # in our time zone unless it names another
    except (ValueError, OverflowError):
        raise ArgumentTypeError(f"{text!r} is not a time such as 10m, 1700000000 or 2026-01-31T12:00:00") from None
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isascii() and text.isdecimal()):
        raise ArgumentTypeError(f"{text!r} is not a number of lines")
    return int(text)
