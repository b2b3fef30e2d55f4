"""`unionfs wait`: until containers have ended, and print their exit codes."""

from __future__ import annotations

from unionfs.cli import living, over
from unionfs.cli.arguments import Parser
from unionfs.cli.containers import Container, ContainerStore
from unionfs.cli.errors import CommandError, failed


def main(argv: list[str]) -> int:
    """Run `unionfs wait ARGV`."""
    parser = Parser("wait", "Wait until containers have ended, and print the exit code of each.")
    over.add_names(parser)
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)

    def wait(container: Container) -> str:
        ended = living.wait(store, container)
        if ended is None:
            raise CommandError(failed("waiting for the container", container.name, "it was removed when it ended"))
        return str(137 if ended.exit_code is None else ended.exit_code)  # killed before anybody could write it down

    return over.each(store, arguments.names, wait)
