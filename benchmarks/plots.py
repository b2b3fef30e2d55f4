"""Draw a run as PNG and SVG: one group of bars a row, systems by colour, the spread as a line on each bar.

Rows of one unit share a picture; times of very different length share a logarithmic axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from unionfs.bench import systems

COLOURS: Final = {  # Okabe and Ito's palette for colour-blind readers
    systems.OURS: "#0072b2",
    systems.OURS_PYFUSE3: "#56b4e9",
    systems.OURS_PASSTHROUGH: "#cc79a7",
    systems.OURS_WITHOUT_KEEPER: "#e69f00",
    systems.FUSE_OVERLAYFS: "#d55e00",
    systems.OVERLAYFS: "#009e73",
    systems.NATIVE: "#999999",
}
_AXES: Final = {
    "s": ("time", "seconds"),
    "ms": ("delay", "milliseconds"),
    "us": ("operation", "microseconds"),
    "B": ("memory", "bytes"),
}
_BAR: Final = 0.8  # part of a row's height that its bars take


def draw(found: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draw a run (report.summary) into `directory`; return the files written."""
    import matplotlib as mpl

    mpl.use("agg")
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for unit, (name, axis) in _AXES.items():
        rows = [row for row in found["rows"] if row["unit"] == unit and row["systems"]]
        if rows:
            written += _bars(rows, found["systems"], f"{axis}, less is better", directory / name)
    ratios = [row for row in found["rows"] if row["ratios"]]
    if ratios:
        written += _ratios(ratios, directory / "ratios")
    layers = [row for row in found["rows"] if row["workload"].startswith("layers-")]
    if layers:
        written += _layers(layers, found["systems"], directory / "layers")
    return written


def _bars(rows: Sequence[Mapping[str, Any]], shown: Sequence[str], label: str, path: Path) -> list[Path]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.6 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    height = _BAR / len(shown)
    for number, system in enumerate(shown):
        places, medians, below, above = [], [], [], []
        for place, row in enumerate(rows):
            figures = row["systems"].get(system)
            if figures is not None and figures["median"] > 0:
                places.append(place + (number - (len(shown) - 1) / 2) * height)
                medians.append(figures["median"])
                below.append(figures["median"] - max(figures["least"], figures["median"] / 1000))
                above.append(figures["most"] - figures["median"])
        if places:
            spread = [below, above]
            colour = COLOURS[system]
            axes.barh(places, medians, height * 0.9, xerr=spread, color=colour, label=system, ecolor="#444444")
    axes.set_yticks(range(len(rows)), [row["row"] for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    _finish(axes, label)
    return _save(figure, path)


def _ratios(rows: Sequence[Mapping[str, Any]], path: Path) -> list[Path]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.35 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for peer in (systems.FUSE_OVERLAYFS, systems.OVERLAYFS):
        points = [(row["ratios"][peer], place) for place, row in enumerate(rows) if peer in row["ratios"]]
        if points:
            axes.scatter(*zip(*points, strict=True), color=COLOURS[peer], label=f"ours / {peer}", zorder=3)
    axes.axvline(1, color="#444444", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["row"] for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    _finish(axes, "ratio of medians; left of the line ours is ahead")
    return _save(figure, path)


def _layers(rows: Sequence[Mapping[str, Any]], shown: Sequence[str], path: Path) -> list[Path]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for system in shown:
        points = [
            (int(row["workload"].partition("-")[2]), row["systems"][system]["median"])
            for row in rows
            if system in row["systems"]
        ]
        if points:
            axes.plot(*zip(*points, strict=True), color=COLOURS[system], label=system, marker="o")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("lowers")
    _finish(axes, "")
    axes.set_ylabel("cold find, microseconds an entry")
    return _save(figure, path)


def _finish(axes: Any, label: str) -> None:
    if label:
        axes.set_xlabel(label)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize="small")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _save(figure: Any, path: Path) -> list[Path]:
    written = []
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=110)
        written.append(path.with_suffix(suffix))
    return written
