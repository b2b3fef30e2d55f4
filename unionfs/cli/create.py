"""`unionfs create`: make a container without running it yet."""

from __future__ import annotations

from typing import Final

from unionfs.cli import run
from unionfs.cli.errors import OWN_FAILURE, CommandError, PullFailedError
from unionfs.containers.store import ContainerStore

_DESCRIPTION: Final = """\
Make a container as `unionfs run` would, and print its id. `unionfs start` runs it; `unionfs cp` reaches into it before
that."""


def main(argv: list[str]) -> int:
    """Run `unionfs create ARGV`."""
    try:
        arguments = run.parser("create", _DESCRIPTION, "exit codes: 0 made, 125 failed.").parse(argv)
        made = run.make(arguments, ContainerStore(arguments.root))
    except PullFailedError:
        return OWN_FAILURE
    except CommandError as error:
        error.status = max(error.status, OWN_FAILURE)
        raise
    if made is not None:
        print(made[1].id)
    return 0
