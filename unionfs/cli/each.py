"""Run a verb for each named container or volume; if it fails for one, go on with the others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from unionfs.cli import store_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import FAILED, FAILURES, format_failure
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.printable import printable


def add_names(parser: Parser) -> None:
    parser.add_argument("names", metavar="CONTAINER", nargs="+", help="a name, an id, or the beginning of an id")
    add_root(parser)


def add_root(parser: Parser) -> None:
    store_flags.add_root(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def each(store: ContainerStore, names: Sequence[str], body: Callable[[Container], str]) -> int:
    """Call `body` for each container and print its result. Returns 1 if it failed for one of them, else 0."""
    return each_name(names, lambda name: body(store.find(name)))


def each_name(names: Sequence[str], body: Callable[[str], str]) -> int:
    """Call `body` for each name and print its result, or the name. Returns 1 if it failed for one of them, else 0."""
    status = 0
    for name in names:
        try:
            result = body(name)
        except FAILURES as error:
            print(format_failure(error), file=sys.stderr)
            status = FAILED
        else:
            print(printable(result or name), flush=True)
    return status
