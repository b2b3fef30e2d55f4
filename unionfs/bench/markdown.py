"""Write a run as Markdown: the claims with our figures, a table for each series, what was left out."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from unionfs.bench.claims import answers
from unionfs.bench.summary import Found, beside_cp, left_out, measured, systems_in, where
from unionfs.bench.table import cell, x_text

BEGIN: Final = "<!-- copyup: begin (unionfs bench copyup --markdown benchmarks/README.md) -->"
END: Final = "<!-- copyup: end -->"


class NoMarkersError(Exception):
    """The file lacks the marker lines between which the figures are written; the message names them."""


def text(found: Found) -> str:
    """Return the whole run as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    filesystems = ", ".join(found["filesystems"].values())
    lines = [
        f"{where(found)}. Branches on {filesystems}. {versions}. Medians of up to {found['rounds']} rounds ± half "
        f"of the spread, {found['seconds'] / 60:.1f} minutes in all; in brackets what was written where it is not "
        "the whole file. Less is better.",
        "",
        "| what people say | our figures |",
        "|---|---|",
    ]
    for answer in answers(found):
        claim = answer.claim
        lines.append(f"| {claim.says} ([{claim.source}]({claim.url})) | {answer.figure} |")
    for series in measured(found):
        lines += ["", f"**{series['title']}** ({series['ground']}, {series['cache']})", "", *_table(series)]
        if line := beside_cp(series):
            lines += ["", line]
    out = left_out(found)
    if out:
        lines += ["", "Left out:", "", *[f"- {line}" for line in out]]
    return "\n".join(lines)


def _table(series: Found) -> list[str]:
    shown = systems_in(series)
    lines = [f"| {series['axis'] or 'what'} | {' | '.join(shown)} |", "|---" + "|---:" * len(shown) + "|"]
    for point in series["points"]:
        cells = [cell(point["systems"].get(system), point) for system in shown]
        lines.append(f"| {x_text(series, point)} | {' | '.join(cells)} |")
    return lines


def check(path: Path) -> None:
    """Look for the marker lines. Raises: NoMarkersError, OSError."""
    _parts(path, BEGIN, END)


def write_between_markers(path: Path, new: str, begin: str = BEGIN, end: str = END) -> None:
    """Replace what stands between the marker lines of a file. Raises: NoMarkersError, OSError."""
    before, after = _parts(path, begin, end)
    path.write_text(f"{before}{begin}\n\n{new}\n\n{end}{after}", encoding="utf-8")


def _parts(path: Path, begin: str, end: str) -> tuple[str, str]:
    before, found_begin, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise NoMarkersError(f"it has no lines {begin} and {end}")
    return before, after
