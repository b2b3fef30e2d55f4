"""`unionfs container prune`: remove all containers that are not running, and their changes."""

from __future__ import annotations

import json
import sys
from typing import Final

from unionfs.cli import each, filter_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import FAILED, FAILURES, format_failure
from unionfs.containers.remove import remove
from unionfs.containers.store import ContainerStore

_DESCRIPTION: Final = """\
Remove all containers that are not running, and their changes, and print their ids. Volumes, also anonymous ones, are
kept."""


def main(argv: list[str]) -> int:
    """Run `unionfs container prune ARGV`. Removes as many as possible, and fails if one was not removed."""
    parser = Parser("container prune", _DESCRIPTION)
    parser.add_argument("-f", "--force", action="store_true", help="do not ask")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="KEY=VALUE", help="only matching containers; see unionfs ps"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array of the ids; do not ask")
    each.add_root(parser)
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)
    wanted = filter_flags.all_of(arguments.filter)
    if not arguments.force and not arguments.json and sys.stdin.isatty():
        print("Remove all containers that are not running, and their changes? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return FAILED
    status = 0
    removed: list[str] = []
    for container in store.list():
        if container.is_running() or not wanted(container):
            continue
        try:
            remove(store, container)
        except FAILURES as error:
            print(format_failure(error), file=sys.stderr)
            status = FAILED
        else:
            removed.append(container.id)
    if arguments.json:
        print(json.dumps(removed, indent=1))
    else:
        print("".join(f"{identity}\n" for identity in removed), end="")
    return status
