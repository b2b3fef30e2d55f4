"""`unionfs rename`: give a container another name."""

from __future__ import annotations

from unionfs.cli import each
from unionfs.cli.arguments import Parser
from unionfs.containers.store import ContainerStore


def main(argv: list[str]) -> int:
    """Run `unionfs rename ARGV`."""
    parser = Parser("rename", "Give a container another name.")
    parser.add_argument("container", metavar="CONTAINER", help="a name, an id, or the beginning of an id")
    parser.add_argument("name", metavar="NAME")
    each.add_root(parser)
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)
    store.rename(store.find(arguments.container), arguments.name)
    return 0
