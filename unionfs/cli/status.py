"""`unionfs status`: how many paths a container has changed, and which of these have changed on this machine since."""

from __future__ import annotations

import json
import os
from collections import Counter

from unionfs.changes.merging import own
from unionfs.cli import each
from unionfs.cli.arguments import Parser
from unionfs.containers import apply, diff
from unionfs.containers.store import ContainerStore
from unionfs.printable import printable

_DESCRIPTION = """\
Show the state of a container and how many paths it has changed. If it shows this machine (try, run /), and does not
run, list what has changed on the machine beneath it since: those of its changed paths that `unionfs apply` would refuse
to replace. Its other changes can be applied."""

_EPILOG = """\
--json prints one object: name, status, added, changed, deleted, and beneath, a list of objects with path and why (null
if it runs, or shows other directories)."""


def main(argv: list[str]) -> int:
    """Run `unionfs status ARGV`."""
    parser = Parser("status", _DESCRIPTION, _EPILOG)
    parser.add_argument("container", metavar="CONTAINER", help="a name, an id, or the beginning of an id")
    parser.add_argument("--json", action="store_true", help="print JSON")
    each.add_root(parser)
    arguments = parser.parse(argv)
    container = ContainerStore(arguments.root).find(arguments.container)
    kinds = Counter(change.kind for change in own(diff.changes_of(container).changes))
    beneath = None
    if container.base == ("/",) and not container.is_running():
        beneath = list(dict.fromkeys(apply.prepare(container).plan.conflicts))
    if arguments.json:
        values = {
            "name": container.name,
            "status": container.status,
            "added": kinds["A"],
            "changed": kinds["C"],
            "deleted": kinds["D"],
            "beneath": None
            if beneath is None
            else [{"path": os.fsdecode(one.path), "why": one.why} for one in beneath],
        }
        print(json.dumps(values))
        return 0
    counts = f"{kinds['A']} added, {kinds['C']} changed, {kinds['D']} deleted"
    print(f"{printable(container.name)}: {container.status}, {counts}")
    for one in beneath or ():
        print(f"{printable(one.path)} {one.why}")
    return 0
