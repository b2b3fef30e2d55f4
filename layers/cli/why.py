"""`layers why`: which layer brings a path, and which hide it."""

from __future__ import annotations

import json
from typing import Any

from layers.cli import stacks, subjects
from layers.cli.command import Parser
from layers.cli.showing import human, json_entry, json_path, path_text, table, what
from layers.cli.stacks import StackLayer
from layers.errors import NotFound
from layers.safe_open import Path
from layers.size_report import BRINGS, COVERS, EMPTIES, HIDES, PASSES, Act, acts, showing
from layers.tarread import path_of
from unionfs.printable import printable

_DESCRIPTION = """\
Tell what each layer does to PATH, the topmost layer first: brings it, hides it (a whiteout of it or of a directory
above it), empties it (an opaque directory), covers it (a file where a directory above it was), or only passes through.
The line with the arrow is what shows. Directories show what all layers bring to them.

Exit code 5 when no layer knows the path, 0 otherwise, also when nothing of it shows."""


def main(argv: list[str]) -> int:
    """Run `layers why ARGV`."""
    parser = Parser("why", _DESCRIPTION)
    parser.add_argument("layers", metavar="LAYER|IMAGE", nargs="+", help="several lie on each other, the first on top")
    parser.add_argument("path", metavar="PATH", help="in the container, as /etc/passwd")
    parser.add_argument("--json", action="store_true", help="print JSON")
    subjects.add_root(parser)
    arguments = parser.parse_intermixed_args(argv)  # LAYER... --root DIR PATH, too
    path = path_of(arguments.path.lstrip("/") or ".", arguments.path)
    stack = stacks.of_subjects([subjects.parse(text) for text in arguments.layers], arguments)
    found = acts([layer.pieces(fingerprints=False) for layer in stack.layers], path)
    if not found:
        raise NotFound("looking for a path", arguments.path, "no layer knows it", hint="layers inspect lists layers")
    shown = showing(found)
    lines = sorted(enumerate(found), key=lambda one: -one[1].layer)
    if arguments.json:
        told = [_told(act, stack.layers[act.layer], shows=number in shown) for number, act in lines]
        print(json.dumps({"path": json_path(path), "shows": bool(shown), "layers": told}, indent=1))
        return 0
    rows = [
        (
            "->" if number in shown else "",
            str(act.layer),
            printable(stack.layers[act.layer].name),
            act.what,
            _detail(act, path),
            printable(" ".join(stack.layers[act.layer].created_by.split()))[:60],
        )
        for number, act in lines
    ]
    heads = ["", "#", "LAYER", "DOES", "WHAT", "MADE BY"]
    keep = range(6 if any(row[5] for row in rows) else 5)
    table([heads[column] for column in keep], [[row[column] for column in keep] for row in rows], right="#")
    if not shown:
        print(f"{path_text(path)} does not show")
    return 0


def _detail(act: Act, path: Path) -> str:
    if act.piece is not None:
        text = what(act.piece.entry, act.piece.stored)
        if act.what == COVERS:
            text = f"{path_text(act.at)}: {text}"
    else:
        text = {HIDES: "a whiteout", EMPTIES: "an opaque directory", PASSES: "a directory"}[act.what]
        text += "" if act.at == path else f" at {path_text(act.at)}"
    if act.files and act.what in (BRINGS, PASSES):
        text += f", {act.files} files below, {human(act.stored)}"
    return text


def _told(act: Act, layer: StackLayer, *, shows: bool) -> dict[str, Any]:
    told: dict[str, Any] = {
        "layer": act.layer,
        "subject": layer.name,
        "digest": layer.digest,
        "created_by": layer.created_by,
        "does": act.what,
        "at": json_path(act.at),
        "shows": shows,
        "files": act.files,
        "stored": act.stored,
    }
    return told | ({"entry": json_entry(act.piece.entry)} if act.piece is not None else {})
