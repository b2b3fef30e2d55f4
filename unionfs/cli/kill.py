"""`unionfs kill`: send a signal to the commands of containers."""

from __future__ import annotations

import signal

from unionfs.cli import each, signals
from unionfs.cli.arguments import Parser
from unionfs.containers import pause, running
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore


def main(argv: list[str]) -> int:
    """Run `unionfs kill ARGV`."""
    parser = Parser(
        "kill",
        "Send a signal to the commands of containers. KILL, STOP and CONT are sent to all processes of a container.",
    )
    each.add_names(parser)
    parser.add_argument("-s", "--signal", metavar="SIGNAL", default="KILL", help="name or number (default: KILL)")
    arguments = parser.parse(argv)
    number = signals.number_of(arguments.signal)
    store = ContainerStore(arguments.root)

    def kill(container: Container) -> str:
        if number in (signal.SIGSTOP, signal.SIGCONT):
            pause.signal_all(container, number)
            return ""
        running.send(container, number)
        if number == signal.SIGKILL:
            running.kill(store, container)
        return ""

    return each.each(store, arguments.names, kill)
