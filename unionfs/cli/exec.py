"""`unionfs exec`: run one more command in a running container, and return its exit code."""

from __future__ import annotations

import argparse
from typing import Final

from unionfs.cli import container_flags, mount_flags, store_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError
from unionfs.containers import background, running
from unionfs.containers.ids import id_map_of
from unionfs.containers.launch_spec import make_spec
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.launcher.run import join
from unionfs.launcher.spec import Process

_DESCRIPTION: Final = """\
Run COMMAND in a running container, beside the container's own command, with the container's variables, user and working
directory unless flags say otherwise. If the container ends, COMMAND is killed."""

_EPILOG: Final = """\
exit codes: the command's own, 128+N if signal N killed it, 125 if unionfs failed or the container is not running,
126 if the command cannot be executed, 127 if it was not found."""


def main(argv: list[str]) -> int:
    """Run `unionfs exec ARGV`."""
    return _exec(_parser().parse(argv))


def _parser() -> Parser:
    parser = Parser("exec", _DESCRIPTION, _EPILOG)
    parser.usage = "unionfs exec [OPTIONS] CONTAINER COMMAND [ARG...]"
    add = parser.add_argument
    add("words", metavar="CONTAINER COMMAND", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    add("-i", "--interactive", action="store_true", help="let the command read standard input")
    add("-t", "--tty", action="store_true", help="give the command a terminal")
    add("-d", "--detach", action="store_true", help="return when the command has started")
    add("-e", "--env", metavar="NAME[=VALUE]", action="append", help="set a variable; without =, to its value here")
    add("--env-file", metavar="FILE", action="append", help="a file of variables, one on a line")
    add("-w", "--workdir", metavar="DIR", help="the working directory (default: the container's)")
    add("-u", "--user", metavar="USER[:GROUP]", help="default: the container's")
    store_flags.add_root(parser)
    add("--debug", action="store_true", help="show tracebacks")
    return parser


def run_in(container: Container, process: Process) -> int:
    """Run a process in a running container. Returns its exit code. Raises: ContainerError, LaunchError."""
    return join(make_spec(container, process, id_map_of(container)), running.enter(container, "exec"))


def _exec(arguments: argparse.Namespace) -> int:
    words = list(arguments.words)
    if words[:1] == ["--"]:
        del words[0]
    if len(words) < 2:
        what = "no command" if words else "no container"
        raise CommandError(f"exec: {what} given", hint="see unionfs exec --help")
    container = ContainerStore(arguments.root).find(words[0])
    own = container.config.process
    process = own._replace(
        command=tuple(words[1:]),
        environment=tuple({**dict(own.environment), **dict(container_flags.environment(arguments))}.items()),
        user=own.user if arguments.user is None else arguments.user,
        workdir=mount_flags.inside("working directory", arguments.workdir) if arguments.workdir else own.workdir,
        interactive=arguments.interactive and not arguments.detach,
        terminal=arguments.tty,
    )
    if not arguments.detach:
        return run_in(container, process)
    spec = make_spec(container, process, id_map_of(container))
    namespaces = running.enter(container, "exec")
    keep = (*namespaces.fds, namespaces.root_fd)
    background.run(container, lambda ready: join(spec, namespaces, ready, attached=False), keep)
    return 0
