"""`unionfs merge`: bring the changes of a fork into the container that it was forked from."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from unionfs.changes.merging import Conflict
from unionfs.cli import each, notes, output
from unionfs.cli.arguments import Parser
from unionfs.containers import merge
from unionfs.containers.merge import OURS, REFUSE, THEIRS, ConflictError
from unionfs.containers.store import ContainerStore
from unionfs.printable import printable

_DESCRIPTION = """\
Bring the changes of the fork NAME into the container that it was forked from, and remove the fork. Either all changes
arrive or none, also if the command is killed. The fork must not run; the container may, and is paused meanwhile. Other
forks do not change.

If the container has changed the same files or directories since, the conflicts are listed and nothing is changed,
unless --theirs takes the fork's changes, --ours leaves out those that conflict, or PATHs select some."""

_EPILOG = """\
examples:
  unionfs merge --dry-run one           list the changes and the conflicts
  unionfs merge one                     merge them, and remove the fork
  unionfs merge --theirs one /etc       merge only what is at and below /etc, and keep the fork

exit codes: 0 merged, 1 conflicts or another failure, with nothing changed.

--json prints one object: merged, copied (whether files were copied; else branches are shared), changes (as in
`unionfs diff --json`), conflicts (path, fork, parent_path, parent)."""


def main(argv: list[str]) -> int:
    """Run `unionfs merge ARGV`."""
    parser = Parser("merge", _DESCRIPTION, _EPILOG)
    parser.flags_between = True
    add = parser.add_argument
    add("name", metavar="NAME", help="the fork")
    add("paths", metavar="PATH", nargs="*", help="merge only the changes at and below these paths, and keep the fork")
    add("--into", metavar="CONTAINER", help="another container on the same branches (default: the fork's parent)")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--theirs", action="store_true", help="where changes conflict, take the fork's")
    choice.add_argument("--ours", action="store_true", help="where changes conflict, leave the fork's out")
    add("--keep", action="store_true", help="do not remove the fork")
    add("--dry-run", action="store_true", help="only list changes and conflicts")
    add("--json", action="store_true", help="print JSON")
    each.add_root(parser)
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)
    fork = store.find(arguments.name)
    parent = store.find(arguments.into) if arguments.into else merge.parent_of(fork)
    paths = [os.fsencode(os.path.normpath(os.path.join("/", path))) for path in arguments.paths]
    try:
        done = merge.merge(
            fork,
            parent,
            choice=THEIRS if arguments.theirs else OURS if arguments.ours else REFUSE,
            paths=paths,
            keep=arguments.keep,
            dry_run=arguments.dry_run,
            warn=notes.warn,
        )
    except ConflictError as error:
        if arguments.json:
            print(json.dumps(_as_json(False, False, [], error.conflicts)))
        else:
            _print_conflicts(error.conflicts)
        raise
    if arguments.json:
        changes = output.as_json(done.changes)
        print(json.dumps(_as_json(not arguments.dry_run, done.copied, changes, done.conflicts)))
        return 0
    _print_conflicts(done.conflicts)
    output.print_lines(done.changes)
    return 0


def _print_conflicts(found: list[Conflict]) -> None:
    for one in found:
        there = "" if one.parent_path == one.path else f" {printable(one.parent_path)}"
        print(f"conflict: {printable(one.path)}: {one.fork}; there{there}: {one.parent}", file=sys.stderr)


def _as_json(merged: bool, copied: bool, changes: list[Any], found: list[Conflict]) -> dict[str, Any]:
    conflicts = [
        {
            "path": os.fsdecode(one.path),
            "fork": one.fork,
            "parent_path": os.fsdecode(one.parent_path),
            "parent": one.parent,
        }
        for one in found
    ]
    return {"merged": merged, "copied": copied, "changes": changes, "conflicts": conflicts}
