"""`layers inspect`: show sizes, hidden files and duplicate files of the layers of an image."""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from layers.cli import stacks, subjects
from layers.cli.command import Parser
from layers.cli.showing import human, json_path, path_text, table
from layers.cli.stacks import Stack, StackLayer
from layers.cli.subjects import Subject
from layers.entry import FILE
from layers.errors import FOUND, Malformed
from layers.pieces import Piece
from layers.size_report import HiddenFile, LayerFile, LayerSizes, SizeReport, measure
from unionfs.printable import printable

_DESCRIPTION = """\
Show sizes, numbers of files, whiteouts, and the largest files of layers. Of an image, and of layers with --stack, also
list hidden files, which every pull transfers: files that a higher layer replaces or removes, with that layer; and files
with the same content.

The efficiency is the visible part of the stored bytes. Files "replaced by the same content" only got another owner,
mode or time: set it in the build step that makes them. `layers why` explains one path."""


def main(argv: list[str]) -> int:
    """Run `layers inspect ARGV`."""
    parser = Parser("inspect", _DESCRIPTION)
    parser.add_argument("layers", metavar="LAYER|IMAGE", nargs="+")
    parser.add_argument(
        "--stack", action="store_true", help="several arguments are one stack of layers, the first on top"
    )
    parser.add_argument("--top", metavar="N", type=int, default=10, help="number of lines of each list (default: 10)")
    parser.add_argument(
        "--min-efficiency", metavar="PERCENT", type=_percent, default=0.0, help="exit code 3 if the efficiency is lower"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", metavar="FILE", help="write the page of `layers explore --html` instead")
    subjects.add_root(parser)
    arguments = parser.parse_args(argv)
    named = [subjects.parse(text) for text in arguments.layers]
    if arguments.html:
        _write_page(named, arguments)
        return 0
    wanted = [named] if arguments.stack else [[subject] for subject in named]
    results, poor = [], False
    for one in wanted:
        largest: list[list[tuple[int, str]]] = []
        with ExitStack() as keep:
            stack = stacks.of_subjects(one, arguments, keep)
            report = measure(_with_largest(layer.pieces(), largest, arguments.top) for layer in stack.layers)
        poor |= report.efficiency * 100 < arguments.min_efficiency
        if arguments.json:
            results.append(_json(stack, report, largest, arguments.top))
        else:
            _print(stack, report, arguments.top)
    if arguments.json:
        print(json.dumps(results, indent=1))
    return FOUND if poor else 0


def _write_page(named: list[Subject], arguments: argparse.Namespace) -> None:
    from layers.cli.explore import store_of, write_page
    from layers.explore.indexes import open_tree

    if len(named) > 1 and not arguments.stack:
        raise Malformed("inspect", "", "a page shows one image or stack", hint="--stack makes one stack of several")
    with ExitStack() as keep:
        stack = stacks.of_subjects(named, arguments, keep)
        tree = open_tree(stack.layers, store_of(stack), keep)
        write_page(arguments.html, tree, stack, str(stack.about.get("name") or ", ".join(arguments.layers)))


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage")
    return value


def _with_largest(pieces: Iterable[Piece], largest: list[list[tuple[int, str]]], top: int) -> Iterator[Piece]:
    """Pass the pieces on, and append the (size, path) of the `top` largest files to `largest`."""
    heap: list[tuple[int, str]] = []
    largest.append(heap)
    for piece in pieces:
        if piece.entry.kind == FILE and top > 0:
            one = (piece.stored, json_path(piece.entry.path))
            if len(heap) < top:
                heapq.heappush(heap, one)
            elif one > heap[0]:
                heapq.heapreplace(heap, one)
        yield piece


def _json(stack: Stack, report: SizeReport, largest: list[list[tuple[int, str]]], top: int) -> dict[str, Any]:
    layers = [
        {
            "subject": named.name,
            "digest": named.digest,
            "diff_id": named.diff_id,
            "packed": named.packed,
            "created": named.created,
            "created_by": named.created_by,
            "size": layer.stored,
            "hidden": layer.hidden,
            "files": layer.files,
            "directories": layer.directories,
            "symlinks": layer.symlinks,
            "links": layer.links,
            "special": layer.special,
            "whiteouts": layer.whiteouts,
            "opaque": layer.opaque,
            "redirects": layer.redirects,
            "largest": [{"path": path, "size": size} for size, path in sorted(heap, reverse=True)],
        }
        for named, layer, heap in zip(stack.layers, report.layers, largest, strict=True)
    ]
    return stack.about | {
        "layers": layers,
        "size": report.stored,
        "hidden": sum(layer.hidden for layer in report.layers),
        "efficiency": round(report.efficiency, 4),
        "hidden_files": [
            {
                "path": json_path(one.file.path),
                "size": one.file.piece.stored,
                "layer": one.file.layer,
                "by": one.by,
                "how": one.how,
            }
            for one in _worst(report)[:top]
        ],
        "duplicates": [
            {"size": group[0].piece.stored, "files": [{"path": json_path(f.path), "layer": f.layer} for f in group]}
            for group in report.duplicates()[:top]
        ],
    }


def _print(stack: Stack, report: SizeReport, top: int) -> None:
    about = stack.about
    if about:
        fields = (about["name"] or "(no name)", about["digest"], about["platform"], about["created"])
        print("  ".join(map(printable, fields)))
    rows = [
        (str(number), printable(named.name), human(named.packed) if named.packed else "-", human(layer.stored),
         human(layer.hidden) if layer.hidden else "-", *_counts(layer), _marks(layer), _command(named))
        for number, (named, layer) in enumerate(zip(stack.layers, report.layers, strict=True))
    ]  # fmt: skip
    heads = ["#", "LAYER", "PACKED", "SIZE", "HIDDEN", "FILES", "DIRS", "LINKS", "OTHERS", "MARKS", "MADE BY"]
    keep = [column for column, head in enumerate(heads) if head != "MADE BY" or any(row[column] for row in rows)]
    table(
        [heads[column] for column in keep],
        [[row[column] for column in keep] for row in reversed(rows)],
        right="#,PACKED,SIZE,HIDDEN,FILES,DIRS,LINKS,OTHERS",
    )
    if len(stack.layers) > 1:
        hidden = sum(layer.hidden for layer in report.layers)
        print(
            f"\nefficiency {report.efficiency:.1%}: of {human(report.stored)} in {len(stack.layers)} layers "
            f"{human(hidden)} are hidden"
        )
    worst = [one for one in _worst(report) if one.file.piece.stored][:top]
    table(
        ["SIZE", "IN", "BY", "HOW", "PATH"],
        [(human(one.file.piece.stored), str(one.file.layer), str(one.by), one.how, path_text(one.file.path))
         for one in worst],
        right="SIZE,IN,BY",
        title="hidden: in layer IN, by layer BY",
    )  # fmt: skip
    shown = heapq.nsmallest(top, report.visible, key=lambda one: (-one.piece.stored, one.path))
    table(
        ["SIZE", "IN", "PATH"],
        [(human(one.piece.stored), str(one.layer), path_text(one.path)) for one in shown if one.piece.stored],
        right="SIZE,IN",
        title="the largest visible files",
    )
    table(
        ["SIZE", "TIMES", "IN", "PATHS"],
        [_group(group) for group in report.duplicates()[:top]],
        right="SIZE,TIMES",
        title="duplicate files",
    )


def _counts(layer: LayerSizes) -> tuple[str, str, str, str]:
    return str(layer.files), str(layer.directories), str(layer.symlinks + layer.links), str(layer.special)


def _marks(layer: LayerSizes) -> str:
    marks = [f"{count} whiteouts ({dialect})" for dialect, count in layer.whiteouts.items()]
    marks += [f"{count} opaque ({dialect})" for dialect, count in layer.opaque.items()]
    marks += [f"{layer.redirects} redirects"] if layer.redirects else []
    return ", ".join(marks) or "-"


def _command(layer: StackLayer) -> str:
    """The build step of a layer, without the prefixes that Docker adds, at most 60 characters."""
    text = " ".join(layer.created_by.split()).removeprefix("/bin/sh -c ").removeprefix("#(nop) ")
    return printable(text if len(text) <= 60 else text[:59] + "…")


def _worst(report: SizeReport) -> list[HiddenFile]:
    return sorted(report.hidden, key=lambda one: (-one.file.piece.stored, one.file.path, one.file.layer))


def _group(group: list[LayerFile]) -> tuple[str, str, str, str]:
    paths = [path_text(one.path) for one in group[:3]] + (["..."] if len(group) > 3 else [])
    layers = sorted({one.layer for one in group})
    return human(group[0].piece.stored), str(len(group)), ",".join(map(str, layers)), "  ".join(paths)
