"""`unionfs exec`: one more command in a container that runs; its exit code is ours."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Final

from unionfs.cli import mount_flags, run
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import OWN_FAILURE, CommandError
from unionfs.containers import running, start
from unionfs.containers.diff import id_map_of
from unionfs.containers.store import ContainerStore
from unionfs.launcher.errors import LaunchError
from unionfs.launcher.run import join

_DESCRIPTION: Final = """\
Run COMMAND in a container that runs, beside what runs there already: with the container's variables, user and working
directory unless flags say otherwise. It ends with the container at the latest."""

_EPILOG: Final = """\
exit codes: the command's own, 128+N if signal N killed it, 125 if unionfs failed or the container does not run, 126 if
the command cannot be executed, 127 if it was not found."""


def main(argv: list[str]) -> int:
    """Run `unionfs exec ARGV`. Whatever fails on our side has exit code 125 or above."""
    try:
        return _exec(_parser().parse(argv))
    except CommandError as error:
        error.status = max(error.status, OWN_FAILURE)
        raise


def _parser() -> Parser:
    parser = Parser("exec", _DESCRIPTION, _EPILOG)
    parser.usage = "unionfs exec [OPTIONS] CONTAINER COMMAND [ARG...]"
    add = parser.add_argument
    add("words", metavar="CONTAINER COMMAND", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    add("-i", "--interactive", action="store_true", help="let the command read standard input")
    add("-t", "--tty", action="store_true", help="give the command a terminal")
    add("-d", "--detach", action="store_true", help="return when the command runs")
    add("-e", "--env", metavar="NAME[=VALUE]", action="append", help="set a variable; without =, pass it on")
    add("--env-file", metavar="FILE", action="append", help="such variables, one on a line")
    add("-w", "--workdir", metavar="DIR", help="where the command starts (default: as the container's)")
    add("-u", "--user", metavar="USER[:GROUP]", help="default: the container's")
    add("--root", metavar="DIR", help="where containers are kept (default: $XDG_DATA_HOME/unionfs)")
    add("--debug", action="store_true", help="show tracebacks")
    return parser


def _exec(arguments: argparse.Namespace) -> int:
    words = list(arguments.words)
    if words[:1] == ["--"]:
        del words[0]
    if len(words) < 2:
        what = "no command" if words else "no container"
        raise CommandError(f"exec: {what} given", hint="see unionfs exec --help", status=OWN_FAILURE)
    container = ContainerStore(arguments.root).find(words[0])
    job = start.job_of(container)
    wished = replace(
        job,
        command=tuple(words[1:]),
        environment=tuple({**dict(job.environment), **dict(run.environment(arguments))}.items()),
        user=job.user if arguments.user is None else arguments.user,
        workdir=mount_flags.inside("working directory", arguments.workdir) if arguments.workdir else job.workdir,
        interactive=arguments.interactive and not arguments.detach,
        terminal=arguments.tty,
    )
    id_map = id_map_of(container) if container.uid_map else None
    spec = start.make_spec(wished, container, id_map)
    namespaces = running.enter(container, "exec", OWN_FAILURE)
    try:
        if arguments.detach:
            kept = (*namespaces.fds, namespaces.root_fd)
            return run.detached(lambda ready: join(spec, namespaces, ready, attached=False), container, "", kept)
        return join(spec, namespaces)
    except LaunchError as error:
        raise CommandError(str(error), hint=error.hint, status=error.status) from error
