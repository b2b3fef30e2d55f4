"""`layers diff`: what is different between two trees."""

from __future__ import annotations

import json
import os

from layers.cli import subjects
from layers.cli.command import Parser
from layers.diff import changes
from layers.errors import FOUND, printable
from layers.tree import Branches


def main(argv: list[str]) -> int:
    """Run `layers diff ARGV`."""
    parser = Parser(
        "diff",
        "What makes B out of A: A for added, C for changed, D for deleted paths. Of images the whole trees are\n"
        "compared. Exit code 3 when there is a difference.",
    )
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--json", action="store_true", help="print JSON")
    subjects.add_root(parser)
    arguments = parser.parse_args(argv)
    first, second = subjects.parse(arguments.a), subjects.parse(arguments.b)
    found = []
    with (
        subjects.directories(first, arguments) as old,
        subjects.directories(second, arguments) as new,
        Branches() as branches,
    ):
        for change in changes(branches.view(old), branches.view(new)):
            path = "/" + os.fsdecode(b"/".join(change.path))
            found.append({"kind": change.kind, "path": path, "what": list(change.what)})
            if not arguments.json:
                what = f"  ({', '.join(change.what)})" if change.what else ""
                print(f"{change.kind} {printable(path)}{what}")
    if arguments.json:
        print(json.dumps(found, indent=1))
    return FOUND if found else 0
