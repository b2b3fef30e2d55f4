"""`unionfs restart`: have containers end, and run them again."""

from __future__ import annotations

from unionfs.cli import launching, living, over, signals, start
from unionfs.cli.arguments import Parser
from unionfs.cli.containers import Container, ContainerStore


def main(argv: list[str]) -> int:
    """Run `unionfs restart ARGV`."""
    parser = Parser("restart", "Have containers end, as `unionfs stop` does, and run them again in the background.")
    over.add_names(parser)
    parser.add_argument("-t", "--time", metavar="SECONDS", type=float, default=10, help="until SIGKILL (default: 10)")
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)

    def restart(container: Container) -> str:
        number = signals.number_of(launching.job_of(container).stop_signal)
        if container.is_running():
            living.stop(store, container, number, arguments.time)
        start.in_background(store, store.find(container.id))
        return ""

    return over.each(store, arguments.names, restart)
