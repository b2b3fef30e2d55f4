"""`unionfs rm`: remove containers, with everything they changed."""

from __future__ import annotations

from typing import Final

from unionfs.cli import each
from unionfs.cli.arguments import Parser
from unionfs.containers import running
from unionfs.containers.errors import BrokenRecordError
from unionfs.containers.record import Container
from unionfs.containers.remove import remove, remove_broken
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

    def remove_one(name: str) -> str:
        try:
            container: Container | None = store.find(name)
        except BrokenRecordError as error:
            if not arguments.force:
                raise
            remove_broken(store, error.container_id)
            return ""
        if arguments.force and container and container.is_running():
            container = running.kill(store, container)
        if container:
            remove(store, container, volumes=arguments.volumes)
        return ""

    return each.each_name(arguments.names, remove_one)
