"""`unionfs stop`: have containers end."""

from __future__ import annotations

from unionfs.cli import each, signals
from unionfs.cli.arguments import Parser
from unionfs.containers import running
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore


def main(argv: list[str]) -> int:
    """Run `unionfs stop ARGV`."""
    parser = Parser(
        "stop",
        "Have containers end: by their stop signal (SIGTERM unless the image or `run --stop-signal` says otherwise),\n"
        "and those that do not end in time by SIGKILL. One that has ended already is fine.",
    )
    each.add_names(parser)
    parser.add_argument("-t", "--time", metavar="SECONDS", type=float, default=10, help="until SIGKILL (default: 10)")
    parser.add_argument("-s", "--signal", metavar="SIGNAL", help="another signal to begin with")
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)
    asked = signals.number_of(arguments.signal) if arguments.signal else None

    def stop(container: Container) -> str:
        number = asked or signals.number_of(container.config.stop_signal)
        running.stop(store, container, number, arguments.time)
        return ""

    return each.each(store, arguments.names, stop)
