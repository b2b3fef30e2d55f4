"""`unionfs rm`: remove containers, with everything they changed."""

from __future__ import annotations

import sys
from typing import Final

from unionfs.cli import changing
from unionfs.cli.arguments import Parser
from unionfs.cli.containers import ContainerStore
from unionfs.cli.errors import FAILED, CommandError, tell

_DESCRIPTION: Final = """\
Remove containers, with everything they changed. One that is running is not removed. Of one whose changes were only
partly put in place (see unionfs apply), what is in place stays."""


def main(argv: list[str]) -> int:
    """Run `unionfs rm ARGV`. Removes what it can, and fails if that was not all."""
    parser = Parser("rm", _DESCRIPTION)
    parser.add_argument("names", metavar="NAME", nargs="+", help="a name, an id, or how an id begins")
    parser.add_argument("--root", metavar="DIR", help="where containers are kept (default: $XDG_DATA_HOME/unionfs)")
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)
    status = 0
    for name in arguments.names:
        try:
            changing.remove(store, store.find(name))
        except CommandError as error:
            print(tell(error), file=sys.stderr)
            status = FAILED
        else:
            print(name)
    return status
