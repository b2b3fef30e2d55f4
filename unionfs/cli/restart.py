"""`unionfs restart`: end containers and run them again."""

from __future__ import annotations

from unionfs.cli import each, signals, start
from unionfs.cli.arguments import Parser
from unionfs.containers import running
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore


def main(argv: list[str]) -> int:
    """Run `unionfs restart ARGV`."""
    parser = Parser("restart", "End containers, as `unionfs stop` does, and run them again in the background.")
    each.add_names(parser)
    parser.add_argument(
        "-t", "--time", metavar="SECONDS", type=float, default=10, help="seconds until SIGKILL is sent (default: 10)"
    )
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)

    def restart(container: Container) -> str:
        number = signals.number_of(container.config.stop_signal)
        if container.is_running():
            running.stop(store, container, number, arguments.time)
        start.in_background(store.load(container.id))
        return ""

    return each.each(store, arguments.names, restart)
