"""`unionfs watch`: show the activity of a mounted union: messages, copy-ups by program, memory."""

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
from unionfs.fuse import rates
from unionfs.fuse.rates import Rates
from unionfs.fuse.reporting import NoAnswerError
from unionfs.printable import printable

_EPILOG: Final = """\
--json prints one object a line for each interval: seconds, messages (counts by kind, the most frequent first),
copy_ups, copied (bytes), copying_s, cpu_s and memory (bytes, PSS) of the daemon, nodes, and caused: a list with
command, directory, copy_ups, size (bytes) and ms of each program in each directory, the longest first."""

_ROWS: Final = 12  # of each list


def main(argv: list[str]) -> int:
    """Run `unionfs watch ARGV`."""
    parser = Parser(
        "watch",
        "Show the activity of a union each second: messages by kind, copy-ups by program and directory, memory.",
        _EPILOG,
    )
    parser.add_argument("union", metavar="MOUNTPOINT|CONTAINER")
    live.add_flags(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    each.add_root(parser)
    arguments = parser.parse(argv)
    target = live.target_of(arguments.union, arguments.root, "watch")
    trace = _Trace(target)
    try:
        before = target.stats()
        trace.start()
        for _ in live.ticks(arguments.interval, arguments.count):
            after = target.stats()
            found = rates.between(before, after, trace.take())
            if arguments.json:
                print(json.dumps(rates.as_json(found)), flush=True)
            else:
                live.draw(_lines(target, found))
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
        with suppress(NoAnswerError):  # the loop says it
            for entry in self._target.ask("trace"):
                if "listening" in entry:
                    self._listens.set()
                self._received.append(entry)
        self._listens.set()

    def take(self) -> list[dict[str, Any]]:
        """What has come since the last call."""
        found, self._received = self._received, []
        return found


def _lines(target: Target, found: Rates) -> list[str]:
    seconds = max(found.seconds, 0.001)
    lines = [
        f"{printable(target.name)}  {time.strftime('%H:%M:%S')}",
        f"{found.requests / seconds:.0f} messages/s, processor {found.cpu_s / seconds:.0%}, "
        f"memory {human(found.memory)}, {found.nodes} nodes",
        f"{found.copy_ups} copy-ups, {human(found.copied)} copied in {found.copying_s * 1000:.1f} ms",
    ]
    if found.messages:
        lines += ["", "MESSAGES      PER SECOND"]
        lines += [f"{kind:<14}{count / seconds:>10.0f}" for kind, count in list(found.messages.items())[:_ROWS]]
    if found.caused:
        lines += ["", "COPY-UPS       BYTES         MS  PROGRAM          DIRECTORY"]
        for one in found.caused[:_ROWS]:
            numbers = f"{one.copy_ups:>8}  {human(one.size):>10}  {one.ms:>9.1f}"
            lines.append(f"{numbers}  {printable(one.command):<15}  {printable(one.directory)}")
    return [*lines, ""]
