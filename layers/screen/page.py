"""A stack of layers as one HTML file: a treemap, tables and a search. It loads nothing from anywhere.

Of a large image it lists only the PATHS_MAX largest paths, so that the file stays small; a directory counts with its
content. The page says how many are left out.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from html import escape
from typing import Any, Final

from layers.cli.showing import human
from layers.explore import waste
from layers.explore.tree_index import ROOT, TreeIndex
from layers.screen import words
from layers.screen.page_assets import SCRIPT, STYLE
from layers.screen.words import Layer
from unionfs.printable import printable, printable_line

PATHS_MAX: Final = 30_000
WASTED_MAX: Final = 2_000
_SEVERAL: Final = -1  # layers or causes of what is below a directory


def page(tree: TreeIndex, layers: Sequence[Layer], title: str, *, paths_max: int = PATHS_MAX) -> str:
    """The whole file. `layers` are bottom first."""
    found = _data(tree, layers, paths_max)
    size, files = tree.size(ROOT, tree.top)
    stored = sum(layer.about["stored"] for layer in tree.layers)
    left_out = found.pop("left_out")
    note = f" The {len(found['name'])} largest paths are listed; {left_out} smaller ones are not." if left_out else ""
    # In a script element only "</" and "<!--" mean anything (HTML, restrictions for contents of script elements).
    data = json.dumps(found, separators=(",", ":")).replace("<", "\\u003c")
    heads = {
        "layers": ["LAYER", "SIZE", "WASTED", "ADDED", "CHANGED", "REMOVED", "MADE BY"],
        "causes": ["SIZE", "FILES", "CAUSE", ""],
        "waste": ["SIZE", "IN", "PATH", "BECAUSE", "MADE BY"],
        "rows": ["PATH", "SIZE", "WASTED", "FILES", "LAYER"],
    }
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<title>{escape(printable_line(title))}</title><style>{STYLE}</style></head><body><main>
<h1>{escape(printable_line(title))}</h1>
<p class="soft">{human(size)} in {files} files show; {len(layers)} layers store {human(stored)}.{note}</p>
<div class="tools">
<label><input type="radio" name="what" id="what-shows" checked> what shows, by layer</label>
<label><input type="radio" name="what" id="what-wasted"> what is wasted, by cause</label>
<input type="search" id="search" placeholder="find a name" aria-label="find a name"></div>
<nav id="crumbs" aria-label="path"></nav>
<div id="map"></div>
<div class="tools soft" id="legend"></div>
{_table("rows", heads["rows"], {"SIZE", "WASTED", "FILES", "LAYER"})}
<h2>Layers</h2>
{_table("layers", heads["layers"], {"LAYER", "SIZE", "WASTED", "ADDED", "CHANGED", "REMOVED"})}
<h2>What is wasted</h2>
{_table("causes", heads["causes"], {"SIZE", "FILES"})}
<p></p>
{_table("waste", heads["waste"], {"SIZE", "IN"})}
</main><script type="application/json" id="data">{data}</script><script>{SCRIPT}</script></body></html>
"""


def _table(name: str, heads: Sequence[str], right: set[str]) -> str:
    cells = "".join(f"<th{' class=n' if head in right else ''}>{head}</th>" for head in heads)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody id="{name}"></tbody></table></div>'


def _data(tree: TreeIndex, layers: Sequence[Layer], paths_max: int) -> dict[str, Any]:
    wasted, cause_of = _wasted_below(tree)
    nodes, left_out = _largest(tree, wasted, paths_max)
    number_of = {node: number for number, node in enumerate(nodes)}
    causes = list(waste.CAUSES)
    found: dict[str, Any] = {"name": [], "parent": [], "size": [], "files": [], "wasted": [], "layer": [], "cause": []}
    for node in nodes:
        shown = tree.shown(node, tree.top)
        size, files = tree.size(node, tree.top)
        is_file = shown >= 0 and not tree.is_directory(shown)
        found["name"].append(printable(tree.name(node)))
        found["parent"].append(number_of[tree.parent(node)] if node != ROOT else -1)
        found["size"].append(size)
        found["files"].append(files)
        found["wasted"].append(wasted.get(node, 0))
        found["layer"].append(tree.layer_of[shown] if is_file else _only_layer(tree, node))
        found["cause"].append(cause_of.get(node, _SEVERAL))
    sums = waste.sums(tree)
    found["causes"] = [
        {"name": cause, "means": waste.CAUSES[cause], "size": sums[cause].size, "files": sums[cause].files}
        for cause in causes
    ]
    found["layers"] = [_layer(tree, layers, number) for number in range(len(layers))]
    found["waste"] = [
        [one.size, tree.layer_of[one.entry], words.path(tree, tree.node_of[one.entry]), words.whose(tree, one),
         words.command(layers[one.by])]
        for one in waste.largest(tree, WASTED_MAX)
    ]  # fmt: skip
    found["left_out"] = left_out
    return found


def _layer(tree: TreeIndex, layers: Sequence[Layer], number: int) -> dict[str, Any]:
    added, changed, removed = tree.effects(number)
    return {
        "name": printable(layers[number].name),
        "made_by": words.command(layers[number]),
        "size": tree.layers[number].about["stored"],
        "hidden": tree.hidden_in[number],
        "added": added,
        "changed": changed,
        "removed": removed,
    }


def _only_layer(tree: TreeIndex, node: int) -> int:
    """Return the only layer with entries below a directory; _SEVERAL if there are more."""
    found = tree.changing_layers(node)
    return found[0] if len(found) == 1 else _SEVERAL


def _wasted_below(tree: TreeIndex) -> tuple[dict[int, int], dict[int, int]]:
    """Return for each node the wasted bytes at and below it, and the number of their cause, or _SEVERAL."""
    causes = {cause: number for number, cause in enumerate(waste.CAUSES)}
    sizes: dict[int, int] = {}
    cause_of: dict[int, int] = {}
    for source in (waste.hidden(tree), waste.twice(tree)):
        for one in source:
            cause = causes[one.cause]
            node = tree.node_of[one.entry]
            while node >= 0:
                sizes[node] = sizes.get(node, 0) + one.size
                cause_of[node] = cause if cause_of.get(node, cause) == cause else _SEVERAL
                node = tree.parent(node)
    return sizes, cause_of


def _largest(tree: TreeIndex, wasted: dict[int, int], most: int) -> tuple[list[int], int]:
    """The paths with the most bytes that show or are wasted, each behind the directory that it is in; and how many
    paths are left out. The root is always among them."""
    nodes = [ROOT]
    waiting: list[tuple[int, int]] = []
    todo = ROOT
    seen = 1
    while True:
        for child in tree.all_children(todo):
            weight = tree.size(child, tree.top)[0] + wasted.get(child, 0)
            if weight or tree.shown(child, tree.top) >= 0:
                heapq.heappush(waiting, (-weight, child))
                seen += 1
        if not waiting or len(nodes) == most:
            return nodes, seen - len(nodes) + _below(tree, waiting)
        todo = heapq.heappop(waiting)[1]
        nodes.append(todo)


def _below(tree: TreeIndex, waiting: Sequence[tuple[int, int]]) -> int:
    """Return the number of files below directories whose content is left out."""
    files = 0
    for _, node in waiting:
        shown = tree.shown(node, tree.top)
        if shown >= 0 and tree.is_directory(shown):
            files += tree.size(node, tree.top)[1]
    return files
