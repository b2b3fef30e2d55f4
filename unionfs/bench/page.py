"""Write a run as one HTML file: pictures, tables, claims, the machine. It loads nothing and needs no script.

Made for a phone first: one column, tables that scroll within themselves. Needs matplotlib for the pictures.
"""

from __future__ import annotations

import re
from html import escape
from typing import Final

from unionfs.bench import plots, systems
from unionfs.bench.cases import words
from unionfs.bench.claims import answers
from unionfs.bench.summary import Found, beside_cp, duration, left_out, measured, series_of, systems_in
from unionfs.bench.table import cell, x_text

_STYLE: Final = """
:root { color-scheme: light; --ink: #1f2933; --soft: #5b6770; --line: #e1e5e8; --paper: #ffffff; --ground: #f6f7f8;
  --accent: #0072b2; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
main { max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 1rem 0 .25rem; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 2rem 0 .75rem; }
h3 { font-size: 1rem; line-height: 1.35; margin: 0; }
p { margin: .5rem 0; }
a { color: var(--accent); }
.soft { color: var(--soft); font-size: .875rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.tile { background: var(--paper); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem .8rem; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { display: block; font-size: .8rem; line-height: 1.35; color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: .6rem; padding: .9rem; min-width: 0; }
figure { margin: .5rem 0 0; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif !important; }
details { margin-top: .5rem; }
summary { cursor: pointer; color: var(--accent); font-size: .875rem; padding: .25rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.claim { border-left: 3px solid var(--accent); padding: .1rem 0 .1rem .8rem; margin: 1rem 0; }
.claim p { margin: .15rem 0; }
ul { padding-left: 1.2rem; } li { margin: .25rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem .8rem; font-size: .875rem; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; }
"""


def page(found: Found) -> str:
    """Return the whole file. Raises: plots.NoMatplotlibError."""
    plots.check()
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<title>What copy-up costs</title>",
            f"<style>{_STYLE}</style></head><body><main>",
            "<h1>What copy-up costs</h1>",
            "<p>The first write to a file of a lower layer, on union filesystems side by side. "
            "Less is better everywhere; both axes are logarithmic; a bar shows the fastest and the slowest round.</p>",
            f'<p class="soft">{escape(_short(found))}</p>',
            _tiles(found),
            "<h2>Measured</h2>",
            '<div class="cards">',
            *(_card(series) for series in measured(found)),
            "</div>",
            "<h2>What people say, and our figures</h2>",
            *_claims(found),
            "<h2>How</h2>",
            _how(found),
            "<h2>Left out</h2>",
            _left_out(found),
            "</main></body></html>",
            "",
        ]
    )


def _short(found: Found) -> str:
    machine = found["machine"]
    return f"{machine['cpu']}, {machine['cpus']} CPUs, Linux {machine['kernel']}, {machine['utc']} UTC"


def _tiles(found: Found) -> str:
    """The few most important figures."""
    tiles = []
    for name, system in (("size-ext4", systems.OURS), ("size-btrfs", systems.OURS), ("size-btrfs", systems.SNAPSHOT)):
        series = series_of(found, name)
        point = series["points"][-1] if series is not None else None
        if point is not None and system in point["systems"]:
            what = f"{system}: 4 kB into {words(point['x'])} on {name.partition('-')[2]}"
            tiles.append((duration(point["systems"][system]["median"]), what))
    storm = series_of(found, "storm")
    for system in (systems.OURS, systems.FUSE_OVERLAYFS):
        if storm is not None and system in storm["points"][-1]["systems"]:
            point = storm["points"][-1]
            total = point["systems"][system]["median"] * point["files"]
            tiles.append((duration(total), f"{system}: chmod -R of {point['files']} files"))
    shown = "".join(f'<div class="tile"><b>{escape(b)}</b><span>{escape(text)}</span></div>' for b, text in tiles)
    return f'<div class="tiles">{shown}</div>'


def _card(series: Found) -> str:
    svg = plots.picture(series, "svg").decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    title = escape(f"{series['title']}: {series['ground']}")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    return (
        f'<section class="card" id="{escape(series["name"])}"><h3>{title}</h3>'
        f'<p class="soft">{escape(series["cache"])} page cache</p>'
        f"<figure>{svg}</figure>"
        f'<p class="soft">{escape(beside_cp(series))}</p>'
        f'<details><summary>figures</summary><div class="scroll">{_table(series)}</div></details></section>'
    )


def _table(series: Found) -> str:
    shown = systems_in(series)
    head = "".join(f"<th>{escape(system)}</th>" for system in shown)
    rows = []
    for point in series["points"]:
        cells = "".join(f"<td>{escape(cell(point['systems'].get(system), point))}</td>" for system in shown)
        rows.append(f"<tr><td>{escape(x_text(series, point))}</td>{cells}</tr>")
    return (
        f"<table><thead><tr><th>{escape(series['axis'])}</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _claims(found: Found) -> list[str]:
    return [
        f'<div class="claim"><p><b>{escape(answer.claim.says)}</b> '
        f'<a class="soft" href="{escape(answer.claim.url, quote=True)}">{escape(answer.claim.source)}</a></p>'
        f"<p>{escape(answer.figure)}</p></div>"
        for answer in answers(found)
    ]


def _how(found: Found) -> str:
    machine = found["machine"]
    facts = {
        "processor": f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB",
        "kernel": machine["kernel"],
        "branches": ", ".join(found["filesystems"].values()),
        "rounds": f"up to {found['rounds']}, the order of the systems turned around every round",
        "taken": f"{machine['utc']} UTC in {found['seconds']:.0f} s, load {machine['load']} at the end, "
        f"as {machine['user']} user",
        **{f"{name}": version for name, version in found["versions"].items()},
    }
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    return (
        f'<div class="card"><dl>{rows}</dl>'
        '<p class="soft">Timed is all that a program waits for: open, change, close. Before each point the lower file '
        "is read (warm) or its pages are dropped (cold). Bytes written are the extents of the upper's file that are "
        "not shared with another one. Copying systems copy within the time that is measured; what making the snapshot "
        "took is not in it.</p></div>"
    )


def _left_out(found: Found) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in left_out(found))
    return f'<ul class="soft">{lines}</ul>' if lines else '<p class="soft">Nothing.</p>'
