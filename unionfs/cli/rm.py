"""`unionfs rm`: remove containers, with everything they changed."""

from __future__ import annotations

from typing import Final

from unionfs.cli import each
from unionfs.cli.arguments import Parser
from unionfs.containers import diff, running
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore

_DESCRIPTION: Final = """\
Remove containers, with everything they changed. One that is running is not removed unless with --force, which ends it.
Volumes stay, unless they have no name and --volumes is given. Of one whose changes were only partly put in place (see
unionfs apply), what is in place stays."""


def main(argv: list[str]) -> int:
    """Run `unionfs rm ARGV`. Removes what it can, and fails if that was not all."""
    parser = Parser("rm", _DESCRIPTION)
    each.add_names(parser)
    parser.add_argument("-f", "--force", action="store_true", help="end those that run (SIGKILL), and remove them")
    parser.add_argument(
        "-v", "--volumes", action="store_true", help="remove the volumes without a name that they had, too"
    )
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)

    def remove(container: Container) -> str:
        left: Container | None = container
        if arguments.force and container.is_running():
            left = running.kill(store, container)
        if left is not None:
            diff.remove(store, left, volumes=arguments.volumes)
        return ""

    return each.each(store, arguments.names, remove)
