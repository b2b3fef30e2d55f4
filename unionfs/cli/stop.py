"""`unionfs stop`: end containers."""

from __future__ import annotations

from unionfs.cli import each, signals
from unionfs.cli.arguments import Parser
from unionfs.containers import running
from unionfs.containers.complete import complete_upper
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore


def main(argv: list[str]) -> int:
    """Run `unionfs stop ARGV`."""
    parser = Parser(
        "stop",
        "End containers with their stop signal (SIGTERM unless the image or `run --stop-signal` says otherwise), and\n"
        "with SIGKILL if they do not end in time. A container that has already ended is no error.",
    )
    each.add_names(parser)
    parser.add_argument(
        "-t", "--time", metavar="SECONDS", type=float, default=10, help="seconds until SIGKILL is sent (default: 10)"
    )
    parser.add_argument("-s", "--signal", metavar="SIGNAL", help="the first signal, instead of the stop signal")
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)
    asked = signals.number_of(arguments.signal) if arguments.signal else None

    def stop(container: Container) -> str:
        number = asked or signals.number_of(container.config.stop_signal)
        ended = running.stop(store, container, number, arguments.time)
        if ended is not None:
            complete_upper(ended, "stopping")
        return ""

    return each.each(store, arguments.names, stop)
