"""`unionfs start`: run containers again that have ended, on what they changed."""

from __future__ import annotations

import sys
from dataclasses import replace

from unionfs.cli import run
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import FAILED, CommandError, failed, tell
from unionfs.containers import start
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore


def main(argv: list[str]) -> int:
    """Run `unionfs start ARGV`."""
    parser = Parser(
        "start",
        "Run containers again, as they were run first, on what they have changed since. They run in the background.",
        "exit codes: 0 all run, 1 not all; with --attach that of the command, as `unionfs run` has it.",
    )
    parser.add_argument("names", metavar="CONTAINER", nargs="+", help="a name, an id, or how an id begins")
    parser.add_argument("-a", "--attach", action="store_true", help="show what it prints, and wait for its end")
    parser.add_argument("-i", "--interactive", action="store_true", help="with standard input; implies --attach")
    parser.add_argument("--root", metavar="DIR", help="where containers are kept (default: $XDG_DATA_HOME/unionfs)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)
    attach = arguments.attach or arguments.interactive
    if attach and len(arguments.names) > 1:
        parser.error("only one container can be attached to")
    if attach:
        return _attached(store, store.find(arguments.names[0]), interactive=arguments.interactive)
    status = 0
    for name in arguments.names:
        try:
            in_background(store, store.find(name))
        except CommandError as error:
            print(tell(error), file=sys.stderr)
            status = FAILED
        else:
            print(name)
    return status


def _attached(store: ContainerStore, container: Container, *, interactive: bool) -> int:
    _check(container)
    job = replace(start.job_of(container), interactive=interactive)
    return start.run(job, store, container, again=True)


def in_background(store: ContainerStore, container: Container) -> None:
    """Run it, unless it runs. Raises: CommandError."""
    if container.status == "running":
        return  # as docker has it: what is to run runs
    _check(container)
    job = replace(start.job_of(container), interactive=False)
    run.detached(lambda ready: start.run(job, store, container, ready, attached=False, again=True), container, "")


def _check(container: Container) -> None:
    if container.kind != "run":
        raise CommandError(failed("starting the container", container.name, "it is a view of this machine (try)"))
    if container.is_running():
        raise CommandError(failed("starting the container", container.name, "it runs already"))
    start.check_sources(start.job_of(container))
