"""`unionfs kill`: send a signal to the commands of containers."""

from __future__ import annotations

import signal

from unionfs.cli import living, over, signals
from unionfs.cli.arguments import Parser
from unionfs.cli.containers import Container, ContainerStore


def main(argv: list[str]) -> int:
    """Run `unionfs kill ARGV`."""
    parser = Parser("kill", "Send a signal to the commands of containers. SIGKILL ends everything in the container.")
    over.add_names(parser)
    parser.add_argument("-s", "--signal", metavar="SIGNAL", default="KILL", help="name or number (default: KILL)")
    arguments = parser.parse(argv)
    number = signals.number_of(arguments.signal)
    store = ContainerStore(arguments.root)

    def kill(container: Container) -> str:
        living.send(container, number)
        if number == signal.SIGKILL:
            living.kill(store, container)
        return ""

    return over.each(store, arguments.names, kill)
