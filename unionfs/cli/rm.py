"""`unionfs rm`: remove containers and their changes."""

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
Remove containers and their changes. A running container is removed only with --force, which kills it.
Volumes are kept, except anonymous ones with --volumes. If some changes of a container were already applied (see
unionfs apply), they stay applied."""


def main(argv: list[str]) -> int:
    """Run `unionfs rm ARGV`. Removes as many as possible, and fails if one was not removed."""
    parser = Parser("rm", _DESCRIPTION)
    each.add_names(parser)
    parser.add_argument("-f", "--force", action="store_true", help="kill running containers (SIGKILL), and remove them")
    parser.add_argument("-v", "--volumes", action="store_true", help="also remove their anonymous volumes")
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
