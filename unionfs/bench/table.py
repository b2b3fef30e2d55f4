"""Show a run on a terminal: its progress, then one table for each series, with the systems as columns."""

from __future__ import annotations

import sys
from typing import IO, Any, Final

from unionfs.bench.cases import words
from unionfs.bench.summary import Found, beside_cp, duration, left_out, measured, systems_in, where

_BLOCKS: Final = 8192  # smaller files are written in whole blocks, so their bytes have no meaning


def progress(text: str) -> None:
    """Print a line on stderr that replaces the line before."""
    sys.stderr.write(f"\r\033[K{text}")
    sys.stderr.flush()


def show(found: Found, file: IO[str] | None = None) -> None:
    """Print all tables."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    out = file or sys.stdout
    console = Console(file=out, width=None if out.isatty() else 160, highlight=False)
    for series in measured(found):
        table = Table(
            title=f"{series['title']} ({series['ground']}, {series['cache']})",
            box=box.SIMPLE_HEAD,
            title_justify="left",
            title_style="bold",
        )
        shown = systems_in(series)
        table.add_column(series["axis"] or "what", no_wrap=True)
        for system in shown:
            table.add_column(system, justify="right")
        for point in series["points"]:
            table.add_row(x_text(series, point), *(cell(point["systems"].get(system), point) for system in shown))
        console.print(table)
        if line := beside_cp(series):
            console.print(line + "\n", markup=False)
    console.print(
        f"Medians of up to {found['rounds']} rounds, ± half of the spread; in brackets what was written, "
        "where it is not the whole file. Less is better."
    )
    console.print(f"{where(found)}; {found['seconds']:.0f} s", markup=False)
    for line in left_out(found):
        console.print(f"left out: {line}", markup=False)


def x_text(series: Found, point: Found) -> str:
    """Return the value of x in words."""
    if point["label"]:
        return str(point["label"])
    return words(point["x"]) if series["unit"] == "B" else f"{point['x']:g}"


def cell(figures: dict[str, Any] | None, point: Found) -> str:
    """Return a figure with its spread, and the bytes written if these are not about the whole file."""
    if figures is None:
        return ""
    if "resident" in figures:
        return f"{figures['resident'] * 100:.0f} %"
    half = (figures["most"] - figures["least"]) / 2
    text = duration(figures["median"]) + (f" ± {duration(half)}" if figures["rounds"] > 1 else "")
    written = figures.get("bytes")
    if (
        written is not None
        and point["files"] == 1
        and point["size"] > _BLOCKS
        and not (0.9 < written / point["size"] < 1.2)
    ):
        text += f" [{words(written)}]"
    return text
