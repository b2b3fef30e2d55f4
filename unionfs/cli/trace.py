"""`unionfs trace`: print the copy-ups of a mounted union as they happen, one line each."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

from unionfs.cli.arguments import Parser
from unionfs.cli.stats import ask_daemon
from unionfs.fuse import mounting
from unionfs.printable import printable

_EPILOG: Final = """\
--json prints one object a line: time (seconds since 1970), path (in the union), branch (the lower it came from), kind
(file, directory, other), size, bytes (copied, without holes and shared extents), reflinked, ms, request (the one that
caused it), pid and command (of the process that made it); {"missed": N} if the reader was too slow for N of them."""


def main(argv: list[str]) -> int:
    """Run `unionfs trace ARGV`."""
    parser = Parser(
        "trace", "Print each copy-up of a mounted union as it happens, until the union is unmounted or Ctrl-C.", _EPILOG
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse(argv)
    is_new = True
    while is_new or mounting.union_at(mounting.resolve_mountpoint(arguments.mountpoint)) is not None:
        for entry in ask_daemon(arguments.mountpoint, "trace"):
            if "listening" not in entry:
                print(json.dumps(entry) if arguments.json else _for_people(entry), flush=True)
            elif is_new:
                print("waiting for copy-ups; Ctrl-C ends", file=sys.stderr, flush=True)
                is_new = False
        is_new = False  # another daemon continues, if one has died
    return 0


def _for_people(entry: dict[str, Any]) -> str:
    if "missed" in entry:
        return f"({entry['missed']} copy-ups came too fast to be listed)"
    clock = time.strftime("%H:%M:%S", time.localtime(entry["time"]))
    how = "reflinked" if entry["reflinked"] else f"{entry['bytes']} bytes" if entry["kind"] == "file" else entry["kind"]
    who = f"{printable(entry['command'])}[{entry['pid']}]" if entry["pid"] else ""
    path, branch = printable(entry["path"]), printable(entry["branch"])
    return f"{clock}  {entry['ms']:9.3f} ms  {how:>16}  {entry['request']:<9} {who:<20} {path}  from {branch}"
