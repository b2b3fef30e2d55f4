"""`unionfs logs`: what a container has printed."""

from __future__ import annotations

import os
import sys
import time
from argparse import ArgumentTypeError
from collections import deque
from typing import Final

from unionfs.cli import logbook, over
from unionfs.cli.arguments import Parser
from unionfs.cli.containers import Container, ContainerError, ContainerStore
from unionfs.cli.errors import CommandError, failed
from unionfs.cli.logbook import Entry, Reader

_ASK_AGAIN_S: Final = 0.1


def main(argv: list[str]) -> int:
    """Run `unionfs logs ARGV`."""
    parser = Parser("logs", "Show what a container has printed: on standard output and error, as it did.")
    parser.add_argument("container", metavar="CONTAINER", help="a name, an id, or how an id begins")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the container has ended")
    parser.add_argument("-n", "--tail", metavar="N", type=_count, help="only the last N lines, or `all`")
    parser.add_argument("-t", "--timestamps", action="store_true", help="when each line began, before it")
    over.add_root(parser)
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)
    container = store.find(arguments.container)
    try:
        reader = Reader(os.path.join(container.directory, logbook.NAME))
    except FileNotFoundError:
        if container.status == "created":
            return 0
        why = "what it prints is not kept (it was run with --rm or --log-driver none)"
        raise CommandError(failed("reading the log", container.name, why)) from None
    show = _Show(timestamps=arguments.timestamps)
    for entry in _last(reader, arguments.tail):
        show(entry)
    while arguments.follow:
        running = _is_running(store, container)
        for entry in reader.entries():
            show(entry)
        if not running:
            break
        time.sleep(_ASK_AGAIN_S)
    reader.close()
    return 0


def _last(reader: Reader, count: int | None) -> list[Entry]:
    """The pieces of the last lines; all for None."""
    if count is None:
        return list(reader.entries())
    lines: deque[list[Entry]] = deque(maxlen=count)
    whole = True
    for entry in reader.entries():
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
        prefix = f"{entry.time} ".encode() if self._timestamps and self._at_start.get(entry.stream, True) else b""
        stream.buffer.write(prefix + entry.text)
        stream.buffer.flush()
        self._at_start[entry.stream] = entry.text.endswith(b"\n")


def _is_running(store: ContainerStore, container: Container) -> bool:
    try:
        return store.load(container.id).is_running()
    except ContainerError:
        return False


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isascii() and text.isdecimal()):
        raise ArgumentTypeError(f"{text!r} is no number of lines")
    return int(text)
