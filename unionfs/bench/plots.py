"""Draw a run as PNG and SVG, one picture for each series; systems by colour and marker, the spread as a line.

Needs matplotlib (the extra `bench`); no other module of this package does.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unionfs.bench import systems
from unionfs.bench.cases import words
from unionfs.bench.summary import Found, measured, systems_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES: Final = {  # colour (Okabe and Ito's palette for colour-blind readers) and marker
    systems.OURS: ("#0072b2", "o"),
    systems.OURS_PARTIAL: ("#003f66", "h"),
    systems.OURS_PYFUSE3: ("#56b4e9", "s"),
    systems.FUSE_OVERLAYFS: ("#d55e00", "^"),
    systems.UNIONFS_FUSE: ("#e69f00", "v"),
    systems.OVERLAYFS: ("#009e73", "D"),
    systems.OVERLAYFS_ROOTLESS: ("#66c2a5", "d"),
    systems.SNAPSHOT: ("#cc79a7", "P"),
    systems.THIN_SNAPSHOT: ("#8b5a2b", "<"),
    systems.REFLINK: ("#8c6bb1", "X"),
    systems.COPY: ("#777777", "*"),
    systems.CP: ("#b0b0b0", "p"),
}
_WIDE: Final = 4.7  # inches: on a phone letters of 11 points are then shown at about 8
_HIGH: Final = 4.5
_INK: Final = "#333333"
_MARKER_SIZES: Final = {"*": 11, "X": 8, "P": 8, "d": 7.5}  # so that all look equally large
_GRID: Final = "#e4e4e4"
_LABELS_APART: Final = 0.13  # of the axis
_DODGE: Final = 0.009  # horizontal distance of systems, so that the spread of one does not cover another's
_RC: Final[dict[str, Any]] = {
    "font.family": "DejaVu Sans",  # matplotlib brings it
    "font.size": 11,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.fonttype": "none",  # keep text as text
}


class NoMatplotlibError(Exception):
    """matplotlib is not installed; the message says what to do."""

    def __init__(self) -> None:
        super().__init__("matplotlib is not installed; the table and --json work without it")


def check() -> None:
    """Look for matplotlib. Raises: NoMatplotlibError."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise NoMatplotlibError


def draw(found: Found, directory: Path) -> list[Path]:
    """Draw every series into `directory`; return the files written. Raises: NoMatplotlibError, OSError."""
    check()
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for series in measured(found):
        for suffix in ("png", "svg"):
            path = directory / f"{series['name']}.{suffix}"
            path.write_bytes(picture(series, suffix))
            written.append(path)
    return written


def picture(series: Found, suffix: str) -> bytes:
    """Return the picture of one series as PNG or SVG. Raises: NoMatplotlibError."""
    check()
    import matplotlib as mpl

    # Identifiers within one page must differ, so each picture has its own salt.
    with mpl.rc_context({**_RC, "svg.hashsalt": series["name"]}):  # type: ignore[dict-item]
        figure = _sharing(series) if series["name"].startswith("sharing") else _figure(series)
        data = io.BytesIO()
        figure.savefig(data, format=suffix, dpi=160, metadata={"Date": None} if suffix == "svg" else None)
    return data.getvalue()


def _figure(series: Found) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDE, _HIGH), layout="constrained")
    axes = figure.add_subplot()
    shown = systems_in(series)
    named = series["unit"] == "name"
    for number, system in enumerate(shown):
        _line(axes, series, system, number - (len(shown) - 1) / 2, named)
    axes.set_yscale("log")
    axes.set_ylabel("time for each file" if series["per_file"] else "time of the first write")
    _time_ticks(axes)
    if named:
        labels = [point["label"] for point in series["points"]]
        axes.set_xticks(range(len(labels)), labels, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.6, len(labels) - 0.4)
    else:
        axes.set_xscale("log")
        values = [point["x"] for point in series["points"]]
        axes.set_xticks(values, _thinned(values, [words(x) if series["unit"] == "B" else f"{x:g}" for x in values]))
        axes.xaxis.set_minor_formatter(_ticks(lambda _: ""))
        axes.minorticks_off()
        axes.set_xlabel(series["axis"] + (" (logarithmic)" if len(values) > 1 else ""))
    _finish(figure, axes, len(shown))
    return figure


def _thinned(values: Sequence[float], labels: Sequence[str]) -> list[str]:
    """The labels without those that would run into the next one; the first and the last always stay."""
    span = math.log10(max(values) / min(values)) or 1
    kept = [""] * len(values)
    last = math.inf
    for number in reversed(range(len(values))):
        at = math.log10(values[number]) / span
        if last - at >= _LABELS_APART or number == 0:
            kept[number], last = labels[number], at
    return kept


def _line(axes: Any, series: Found, system: str, offset: float, named: bool) -> None:
    colour, marker = STYLES[system]
    xs, medians, below, above = [], [], [], []
    span = math.log10(max(1.01, series["points"][-1]["x"] / max(1, series["points"][0]["x"]))) or 1
    for place, point in enumerate(series["points"]):
        figures = point["systems"].get(system)
        if figures is None or "median" not in figures:
            continue
        xs.append(place + offset * 0.07 if named else point["x"] * 10 ** (offset * _DODGE * span))
        medians.append(figures["median"])
        below.append(figures["median"] - figures["least"])
        above.append(figures["most"] - figures["median"])
    axes.errorbar(
        xs,
        medians,
        yerr=[below, above],
        color=colour,
        marker=marker,
        markersize=_MARKER_SIZES.get(marker, 6.5),
        linestyle="none" if named else "-",
        linewidth=1.6,
        elinewidth=1.1,
        capsize=2.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        label=system,
        gid=f"{series['name']}--{system}",
    )


def _time_ticks(axes: Any) -> None:
    """Labels with units; also between the powers of ten where there are few of these."""
    from matplotlib.ticker import LogLocator

    low, high = axes.get_ylim()
    few = math.log10(high / low) < 1.7
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if few else (1,)))
    axes.yaxis.set_major_formatter(_ticks(_time))
    axes.yaxis.set_minor_formatter(_ticks(lambda _: ""))


def _sharing(series: Found) -> Figure:
    """Bars: how much of a file the second mount finds in the page cache."""
    from matplotlib.figure import Figure

    shown = systems_in(series)
    figure = Figure(figsize=(_WIDE, 1.2 + 0.36 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    point = series["points"][0]
    for number, system in enumerate(shown):
        share = point["systems"][system]["resident"] * 100
        axes.barh(number, share, 0.6, color=STYLES[system][0], gid=f"{series['name']}--{system}")
        axes.text(share + 1.5, number, f"{share:.0f} %", va="center")
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xlabel("of the file, in percent")
    _finish(figure, axes, 0)
    return figure


def _finish(figure: Any, axes: Any, entries: int) -> None:
    axes.grid(visible=True, which="major", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if entries:
        figure.legend(
            loc="outside upper center",
            ncols=3,
            frameon=False,
            fontsize=9.5,
            handletextpad=0.3,
            columnspacing=0.9,
            handlelength=1.7,
        )


def _ticks(text: Any) -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: text(value))


def _time(ns: float) -> str:
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= factor * 0.999:
            return f"{ns / factor:g} {unit}"
    return f"{ns:g} ns"
