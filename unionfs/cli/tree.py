"""`unionfs tree`: list forks below the containers that they were forked from."""

from __future__ import annotations

import json

from unionfs.cli import each
from unionfs.cli.arguments import Parser
from unionfs.cli.units import human_size
from unionfs.containers import forks
from unionfs.containers.forks import ForkRow
from unionfs.printable import printable

_DESCRIPTION = """\
List containers that were forked, or have forks: each below the one that it was forked from, with the number of paths
that it has added, changed and deleted since, and the disk space of its own branches."""

_EPILOG = """\
--json prints one list of objects: name, id, parent (its id; empty if the container was not forked), depth, status,
added, changed, deleted, disk (bytes)."""


def main(argv: list[str]) -> int:
    """Run `unionfs tree ARGV`."""
    parser = Parser("tree", _DESCRIPTION, _EPILOG)
    parser.add_argument("--json", action="store_true", help="print JSON")
    each.add_root(parser)
    arguments = parser.parse(argv)
    rows = forks.tree(arguments.root)
    if arguments.json:
        print(json.dumps([_as_json(row) for row in rows]))
        return 0
    names = [f"{'  ' * row.depth}{printable(row.container.name)}" for row in rows]
    width = max([4, *map(len, names)])
    print(f"{'NAME':<{width}}  STATUS   ADDED  CHANGED  DELETED  DISK")
    for name, row in zip(names, rows, strict=True):
        kinds = row.changed
        counts = f"{kinds.get('A', 0):>5}  {kinds.get('C', 0):>7}  {kinds.get('D', 0):>7}"
        print(f"{name:<{width}}  {row.container.status:<7}  {counts}  {human_size(row.disk)}")
    return 0


def _as_json(row: ForkRow) -> dict[str, object]:
    return {
        "name": row.container.name,
        "id": row.container.id,
        "parent": row.container.parent,
        "depth": row.depth,
        "status": row.container.status,
        "added": row.changed.get("A", 0),
        "changed": row.changed.get("C", 0),
        "deleted": row.changed.get("D", 0),
        "disk": row.disk,
    }
