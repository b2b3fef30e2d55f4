"""`unionfs drop`: remove containers at once; their files are deleted in the background."""

from __future__ import annotations

from unionfs.cli import each
from unionfs.cli.arguments import Parser
from unionfs.containers import forks
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore

_DESCRIPTION = """\
Remove containers that do not run, forks above all, with their changes. Returns at once: a process in the background
deletes the files. Branches that other forks use stay until the last of these is removed."""


def main(argv: list[str]) -> int:
    """Run `unionfs drop ARGV`. Removes as many as possible, and fails if one was not removed."""
    parser = Parser("drop", _DESCRIPTION)
    each.add_names(parser)
    arguments = parser.parse(argv)

    def drop_one(container: Container) -> str:
        forks.drop(container)
        return container.name

    return each.each(ContainerStore(arguments.root), arguments.names, drop_one)
