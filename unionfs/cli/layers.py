"""Run the `layers` command (`layers.cli`) with the ids that the files of layers need."""

from __future__ import annotations

import sys

from layers.cli import command
from unionfs import standard_descriptors
from unionfs.cli.errors import FAILURES, status_of, tell
from unionfs.containers import images


def main(argv: list[str] | None = None) -> int:
    """Run `layers ARGV`."""
    standard_descriptors.open_missing()
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or {"-h", "--help"} & set(arguments) or arguments[0] == "help":
        return command.main(arguments)
    try:
        return images.with_ids(lambda: command.main(arguments, images.layers_in_use, images.bases))
    except FAILURES as error:
        print(tell(error), file=sys.stderr)
        return status_of(error)
