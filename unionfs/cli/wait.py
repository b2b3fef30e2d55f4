"""`unionfs wait`: wait until containers have ended, and print their exit codes."""

from __future__ import annotations

from unionfs.cli import each
from unionfs.cli.arguments import Parser
from unionfs.containers import running
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore


def main(argv: list[str]) -> int:
    """Run `unionfs wait ARGV`."""
    parser = Parser("wait", "Wait until containers have ended, and print the exit code of each.")
    each.add_names(parser)
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)

    def wait(container: Container) -> str:
        code = running.wait_for_code(store, container)
        return str(137 if code is None else code)  # killed before the code was recorded

    return each.each(store, arguments.names, wait)
