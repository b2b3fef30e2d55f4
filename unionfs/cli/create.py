"""`unionfs create`: make a container without running it yet."""

from __future__ import annotations

from typing import Final

from unionfs.cli import container_flags, run

_DESCRIPTION: Final = """\
Make a container like `unionfs run`, but do not run it; print its id. `unionfs start` runs it; `unionfs cp` can copy
files before that."""


def main(argv: list[str]) -> int:
    """Run `unionfs create ARGV`."""
    container = run.make(container_flags.parser("create", _DESCRIPTION, "exit codes: 0 made, 125 failed.").parse(argv))
    if container is not None:
        print(container.id)
    return 0
