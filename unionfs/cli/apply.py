"""`unionfs apply`: put the changes of a kept container in place on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Final

from unionfs.changes.apply import Applied
from unionfs.changes.check import Objection
from unionfs.changes.journal import Operation
from unionfs.changes.listing import Change
from unionfs.changes.stage import Progress
from unionfs.cli import notes, output, store_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError, failed
from unionfs.containers import apply, take_over
from unionfs.containers.record import Container
from unionfs.containers.remove import remove
from unionfs.containers.store import ContainerStore
from unionfs.printable import printable

_DESCRIPTION: Final = """\
Apply the changes of a container to this machine, and remove the container. It must be one that `unionfs try` kept, or
one of `unionfs run /` that has ended.

Everything is checked first: permissions, disk space, other filesystems, and whether files that would be replaced or
removed were changed on this machine since the container began. If a check fails, nothing is changed. Then all new files
are built beside their targets, and then renamed, so that every path has the whole old or the whole new file at
any moment. If the work is interrupted, run the command again to complete it."""

_EPILOG: Final = """\
exit codes: 0 all changes are applied, 1 not all (the message says which), 2 invalid command line."""


def main(argv: list[str]) -> int:
    """Run `unionfs apply ARGV`."""
    parser = Parser("apply", _DESCRIPTION, _EPILOG)
    parser.add_argument("name", metavar="NAME", help="the container's name, its id, or the beginning of the id")
    parser.add_argument(
        "--force", action="store_true", help="replace and remove even files that were changed meanwhile"
    )
    parser.add_argument("--strict", action="store_true", help="do nothing if a hard link would be broken")
    parser.add_argument(
        "--allow-privileged",
        action="store_true",
        help="as root, also apply devices, set-id files and capabilities that the container's owner could not make",
    )
    parser.add_argument("--dry-run", action="store_true", help="only check, and print what would be done")
    parser.add_argument(
        "--json", action="store_true", help="print one object: name, and changes as unionfs diff has them"
    )
    store_flags.add_root(parser)
    parser.acts_as_owner = False  # root applies the changes
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)
    container = store.find(arguments.name)
    owner = take_over.owner_of(container)
    if not owner:
        with store.changing(container) as current:
            _apply(current, arguments, lambda: remove(store, current))
        return 0
    with take_over.taken_over(container, owner) as taken:
        _apply(taken, arguments, lambda: take_over.end_journal(taken), owner)
    if not arguments.dry_run:
        take_over.remove_as_owner(container)
    return 0


def _apply(container: Container, arguments: Namespace, remove_it: Callable[[], None], owner: int = 0) -> None:
    if apply.is_begun(container):
        if arguments.dry_run:
            raise CommandError(
                failed("checking the changes", container.name, "some of them are already applied"),
                hint=f"unionfs apply {container.name} applies the others",
            )
        done = carry_on(container, remove_it, force=arguments.force)
        _print_done(container, done, as_json=arguments.json)
        return
    prepared = apply.prepare(container)
    if owner and not arguments.allow_privileged:
        take_over.refuse_rights(prepared, owner)
    if os.geteuid() == 0 and container.facts.uid_map:  # made by another user
        for right in prepared.plan.rights:
            notes.warn(f"note: {printable(right.path)} {right.what}")
    if not arguments.dry_run:
        put_in_place(prepared, remove_it, force=arguments.force, strict=arguments.strict)
    else:
        prepared.refuse(force=arguments.force, strict=arguments.strict)
        warn(prepared.plan.warnings)
    if arguments.json:
        print(json.dumps({"name": container.name, "changes": output.as_json(prepared.found.changes)}))
    else:
        output.print_lines(prepared.found.changes)


def put_in_place(prepared: apply.Prepared, remove_it: Callable[[], None], *, force: bool, strict: bool = False) -> None:
    """Apply the changes and remove the container; after a failure it stays. Raises: ContainerError, LaunchError."""
    prepared.refuse(force=force, strict=strict)
    warn(prepared.plan.warnings)
    with _progress() as progress:
        applied = apply.put_in_place(prepared, force=force, progress=progress)
    _finish(applied, remove_it)


def warn(objections: list[Objection]) -> None:
    """Print objections that do not prevent the apply."""
    for one in objections:
        notes.warn(f"note: {printable(one.path)} {one.why}")


def carry_on(container: Container, remove_it: Callable[[], None], *, force: bool) -> list[Operation]:
    """Complete an interrupted apply and remove the container. Preconditions: apply.is_begun()."""
    with _progress() as progress:
        applied = apply.carry_on(container, force=force, progress=progress)
    if applied is None:
        return []
    _finish(applied, remove_it)
    return applied.done


def _print_done(container: Container, done: list[Operation], *, as_json: bool) -> None:
    """Print the operations of the plan; the upper does not exist any more."""
    named = sorted((b"/" + os.fsencode(operation.path), operation.kind) for operation in done)
    if as_json:
        changes = [{"kind": kind, **output.path_as_json(path)} for path, kind in named]
        print(json.dumps({"name": container.name, "changes": changes}))
    else:
        output.print_lines([Change(kind, path, (), None, None) for path, kind in named])


def _finish(applied: Applied, remove_it: Callable[[], None]) -> None:
    for left in applied.not_removed:
        notes.warn(f"warning: the old content was not removed: {printable(left)}")
    remove_it()


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """Show the current operation on a terminal; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield lambda _what, _path: None
        return
    from rich.console import Console
    from rich.text import Text

    count = 0
    with Console(stderr=True).status("applying") as status:

        def tell(what: str, path: bytes) -> None:
            nonlocal count
            count += 1
            if count % 50 == 1:
                status.update(Text(f"{what} {count}: {printable(path)}"))

        yield tell
