"""Run the `layers` command (`layers.cli`) with the ids that the files of layers need."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from layers.cli import command
from unionfs import standard_descriptors
from unionfs.cli.errors import FAILURES, CommandError, failed, format_failure, status_of
from unionfs.containers import images

_CONTAINER: Final = "container:"
_UNION: Final = "union:"


def main(argv: list[str] | None = None) -> int:
    """Run `layers ARGV`."""
    standard_descriptors.open_missing()
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or {"-h", "--help"} & set(arguments) or arguments[0] == "help":
        return command.main(arguments)
    try:
        unions = _mounted(arguments[1:]) if arguments[0] == "explore" else {}

        def directories_of(text: str, root: str) -> Sequence[str] | None:
            return unions[text] if text in unions else _of_container(text, root)

        return images.with_ids(lambda: command.main(arguments, images.layers_in_use, images.bases, directories_of))
    except FAILURES as error:
        print(format_failure(error), file=sys.stderr)
        return status_of(error)


def _mounted(words: Sequence[str]) -> dict[str, list[str]]:
    """The directories, top first, of the unions whose mountpoints are among the words of a command line. Asked for with
    the ids of the caller: a daemon answers its own user. Raises: CommandError."""
    from unionfs.cli import stats
    from unionfs.fuse import mounting

    found = {}
    for word in words:
        if word.startswith(_UNION) or mounting.union_at(os.path.realpath(word)) is not None:
            path = word.removeprefix(_UNION)
            union = next(stats.ask_daemon(path, "stats"), None)
            if union is None:
                raise CommandError(failed("explore", path, "the union's daemon ended without an answer"))
            found[word] = [union["upper"], *union["lowers"]] if union["upper"] else union["lowers"]
    return found


def _of_container(text: str, root: str) -> Sequence[str] | None:
    """The directories, top first, of a container; None where there is none of this name.

    With the prefix `container:` it must be one. Raises: ContainerError.
    """
    from unionfs.containers.errors import NoSuchContainerError
    from unionfs.containers.store import ContainerStore
    from unionfs.containers.why import of_container

    if not text.startswith(_CONTAINER) and ("/" in text or ":" in text or os.path.lexists(text)):
        return None
    try:
        container = ContainerStore(root).find(text.removeprefix(_CONTAINER))
    except NoSuchContainerError:
        if text.startswith(_CONTAINER):
            raise
        return None
    return of_container("/", container).directories
