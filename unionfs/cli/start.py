"""`unionfs start`: run containers that were created or have ended, with their changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from unionfs.cli import each, notes, parents, store_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError, status_of
from unionfs.containers import background, create, running, start
from unionfs.containers.errors import ContainerError
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.launcher.errors import LaunchError


def main(argv: list[str]) -> int:
    """Run `unionfs start ARGV`."""
    parser = Parser(
        "start",
        "Run containers that were created or have ended, in the background, with the same command and their changes.",
        "exit codes: 0 all are running, 1 not all; with --attach that of the command, as with `unionfs run`.",
    )
    parser.add_argument("names", metavar="CONTAINER", nargs="+", help="a name, an id, or the beginning of an id")
    parser.add_argument("-a", "--attach", action="store_true", help="print its output, and wait for its end")
    parser.add_argument("-i", "--interactive", action="store_true", help="connect standard input; implies --attach")
    store_flags.add_root(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)
    attach = arguments.attach or arguments.interactive
    if attach and len(arguments.names) > 1:
        parser.error("only one container can be attached to")
    if attach:
        return _attached(store.find(arguments.names[0]), interactive=arguments.interactive)

    def run(container: Container) -> str:
        in_background(container)
        return ""

    return each.each(store, arguments.names, run)


def _attached(container: Container, *, interactive: bool) -> int:
    _check(container)
    try:
        return start.run(container, notes.warn, parents.leave_beside_container, interactive=interactive, again=True)
    except (ContainerError, LaunchError) as error:
        status = status_of(error, passes_on_codes=True)
        raise CommandError(str(error), hint=error.hint, status=status) from error


def in_background(container: Container) -> None:
    """Run a container, unless it is running or another process starts it. Raises: ContainerError, LaunchError."""
    store = ContainerStore(container.root)
    if container.is_running():
        running.wait_for_start(store, container)
        return  # success, as with docker
    _check(container)

    def run(ready: Callable[[], None]) -> int:
        started = partial(parents.leave_beside_container, ready)
        return start.run(container, notes.warn, started, attached=False, again=True)

    try:
        background.run(container, run)
    except ContainerError:
        current = store.load(container.id)
        if not current.is_running():
            raise
        running.wait_for_start(store, current)


def _check(container: Container) -> None:
    """Raises: ContainerError if the container cannot be started or is running."""
    if container.config.kind != "run":
        raise ContainerError("starting the container", container.name, "it is a view of this machine (try)")
    if container.is_running():
        raise ContainerError("starting the container", container.name, "it is running")
    create.check_sources(container.config)
