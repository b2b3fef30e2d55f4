"""`layers check`: find marks and owners that are contradictory, without effect, or of another dialect."""

from __future__ import annotations

import json
import os

from layers import lint
from layers.cli import subjects
from layers.cli.command import Parser
from layers.cli.subjects import TAR
from layers.errors import FOUND
from layers.tree import LayerTrees
from unionfs.printable import printable


def main(argv: list[str]) -> int:
    """Run `layers check ARGV`."""
    parser = Parser(
        "check",
        "Find faults of the marks and owners of a layer, or of each layer of an image. Exit code 3 when there is one.",
    )
    parser.add_argument("layers", metavar="LAYER|IMAGE", nargs="+")
    parser.add_argument(
        "--dialect", choices=("aufs", "overlay"), help="report marks of the other one (default: both are right)"
    )
    parser.add_argument(
        "--beneath",
        metavar="DIR",
        action="append",
        default=[],
        help="a directory beneath the layer, topmost first: find marks without effect, and files whose data in that "
        "directory have changed or are missing",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    subjects.add_root(parser)
    arguments = parser.parse_args(argv)
    found = []
    for text in arguments.layers:
        subject = subjects.parse(text)
        if subject.kind == TAR:
            with open(subject.text, "rb") as file:
                found += [(text, one) for one in lint.of_tar(file)]
            continue
        with subjects.directories(subject, arguments) as directories, LayerTrees() as branches:
            for depth, directory in enumerate(directories):
                lowers = [*directories[depth + 1 :], *arguments.beneath]
                beneath = branches.view(lowers) if len(directories) > 1 or arguments.beneath else None
                for one in lint.of_directory(branches.open(directory), beneath, arguments.dialect):
                    found.append((directory, one))
    if arguments.json:
        findings = [{"layer": where, "path": os.fsdecode(one.path), "what": one.what} for where, one in found]
        print(json.dumps(findings, indent=1))
    else:
        for where, one in found:
            print(f"{printable(where)}: {printable(one.path)}: {printable(one.what)}")
    return FOUND if found else 0
