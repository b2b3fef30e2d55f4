"""`unionfs wait`: until containers have ended, and print their exit codes."""

from __future__ import annotations

from unionfs.cli import living, over
from unionfs.cli.arguments import Parser
from unionfs.cli.containers import Container, ContainerStore


def main(argv: list[str]) -> int:
    """Run `unionfs wait ARGV`."""
    parser = Parser("wait", "Wait until containers have ended, and print the exit code of each.")
    over.add_names(parser)
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)

    def wait(container: Container) -> str:
        code = living.wait_for_code(store, container)
        return str(137 if code is None else code)  # killed before anybody could write it down

    return over.each(store, arguments.names, wait)
