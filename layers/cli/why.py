"""`layers why`: show which layer brings a path, and which hide it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

from layers.cli import stacks, subjects
from layers.cli.command import Parser
from layers.cli.showing import human, json_entry, json_path, path_text, table, what
from layers.cli.stacks import StackLayer
from layers.errors import NotFound
from layers.safe_open import Path
from layers.size_report import BRINGS, COVERS, EMPTIES, HIDES, PASSES, Effect, effects, visible_effects
from layers.tarread import path_of
from unionfs.printable import printable

_DESCRIPTION = """\
Show the effect of each layer on PATH, the topmost layer first: it brings the path, hides it (a whiteout of it or of a
directory above it), empties it (an opaque directory), covers it (a file in the place of a directory above it), or only
passes through (it has files below it). Arrows mark the layers whose entries are visible; directories are merged.

Exit code 5 when no layer knows the path, 0 otherwise, also when the path does not show."""


def main(argv: list[str]) -> int:
    """Run `layers why ARGV`."""
    parser = Parser("why", _DESCRIPTION)
    parser.add_argument(
        "layers", metavar="LAYER|IMAGE", nargs="+", help="several arguments are one stack of layers, the first on top"
    )
    parser.add_argument("path", metavar="PATH", help="the path in the container, such as /etc/passwd")
    parser.add_argument("--json", action="store_true", help="print JSON")
    subjects.add_root(parser)
    arguments = parser.parse_intermixed_args(argv)  # LAYER... --root DIR PATH, too
    path = path_of(arguments.path.lstrip("/") or ".", arguments.path)
    with ExitStack() as opened:
        stack = stacks.of_subjects([subjects.parse(text) for text in arguments.layers], arguments, opened)
        found = effects([layer.pieces(fingerprints=False) for layer in stack.layers], path)
    if not found:
        raise NotFound("looking for a path", arguments.path, "no layer has it", hint="layers inspect lists layers")
    shown = visible_effects(found)
    lines = sorted(enumerate(found), key=lambda one: -one[1].layer)
    if arguments.json:
        effects_json = [_json(effect, stack.layers[effect.layer], shows=number in shown) for number, effect in lines]
        print(json.dumps({"path": json_path(path), "shows": bool(shown), "layers": effects_json}, indent=1))
        return 0
    rows = [
        (
            "->" if number in shown else "",
            str(effect.layer),
            printable(stack.layers[effect.layer].name),
            effect.what,
            _detail(effect, path),
            printable(" ".join(stack.layers[effect.layer].created_by.split()))[:60],
        )
        for number, effect in lines
    ]
    heads = ["", "#", "LAYER", "DOES", "WHAT", "MADE BY"]
    keep = range(6 if any(row[5] for row in rows) else 5)
    table([heads[column] for column in keep], [[row[column] for column in keep] for row in rows], right="#")
    if not shown:
        print(f"{path_text(path)} is not visible")
    return 0


def _detail(effect: Effect, path: Path) -> str:
    if effect.piece is not None:
        text = what(effect.piece.entry, effect.piece.stored)
        if effect.piece.metacopy:
            text += ", its data in a layer beneath"
        elif effect.piece.partial:
            text += ", the rest in a layer beneath"
        if effect.what == COVERS:
            text = f"{path_text(effect.at)}: {text}"
    else:
        text = {HIDES: "a whiteout", EMPTIES: "an opaque directory", PASSES: "a directory"}[effect.what]
        text += "" if effect.at == path else f" at {path_text(effect.at)}"
    if effect.files and effect.what in (BRINGS, PASSES):
        text += f", {effect.files} files below, {human(effect.stored)}"
    return text


def _json(effect: Effect, layer: StackLayer, *, shows: bool) -> dict[str, Any]:
    value: dict[str, Any] = {
        "layer": effect.layer,
        "subject": layer.name,
        "digest": layer.digest,
        "created_by": layer.created_by,
        "does": effect.what,
        "at": json_path(effect.at),
        "shows": shows,
        "files": effect.files,
        "stored": effect.stored,
    }
    return value | ({"entry": json_entry(effect.piece.entry)} if effect.piece is not None else {})
