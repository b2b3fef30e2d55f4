"""`unionfs fork`: make a second container with the present files of a container."""

from __future__ import annotations

import argparse
import json

from unionfs.cli import each, notes
from unionfs.cli.arguments import Parser
from unionfs.containers import forks
from unionfs.containers.store import ContainerStore
from unionfs.printable import printable

_DESCRIPTION = """\
Make a second container with the present files of CONTAINER, running or not: a container of run or create, or changes
that try has kept. The container is frozen (see unionfs freeze), and both share its branches, so a fork takes no time
and no space, whatever the size of the container. Each has its own changes from then on, and is started, entered,
compared, merged and removed by itself. A fork can be forked.

The fork is not started: unionfs start NAME runs the container's command in it, or COMMAND if one is given. Volumes are
shared; processes and memory are not part of a fork."""

_EPILOG = """\
examples:
  unionfs fork box one -- make test     a fork of box that will run `make test`
  unionfs start -a one                  run it
  unionfs merge one                     bring its changes into box, and remove it
  unionfs drop one                      or remove it with its changes

--json prints one object: id, name, parent."""


def main(argv: list[str]) -> int:
    """Run `unionfs fork ARGV`."""
    parser = Parser("fork", _DESCRIPTION, _EPILOG)
    parser.usage = "unionfs fork [OPTIONS] CONTAINER [NAME] [-- COMMAND [ARG...]]"
    parser.add_argument("container", metavar="CONTAINER", help="a name, an id, or the beginning of an id")
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help="of the fork (default: a random one)")
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON")
    each.add_root(parser)
    end = argv.index("--") if "--" in argv else len(argv)
    arguments = parser.parse(argv[:end], whole=argv)
    command = [*arguments.command, *argv[end + 1 :]]
    if end < len(argv) and not command:
        parser.error("there is no command after --")
    container = ContainerStore(arguments.root).find(arguments.container)
    made = forks.fork(container, arguments.name, command, notes.warn)
    values = {"id": made.id, "name": made.name, "parent": container.name}
    print(json.dumps(values) if arguments.json else printable(made.name))
    return 0
