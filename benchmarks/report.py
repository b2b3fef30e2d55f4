"""Write the results of a run: as a table, as Markdown, as JSON."""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unionfs.bench import facts, markdown, rounds, systems

if TYPE_CHECKING:
    from benchmarks.suite import Choice, Result

BEGIN: Final = "<!-- results: begin (python -m benchmarks.suite --markdown benchmarks/README.md) -->"
END: Final = "<!-- results: end -->"

_AGAINST: Final = (systems.FUSE_OVERLAYFS, systems.OVERLAYFS)
_PROCESSOR_RATIO: Final = f"CPU, ours / {systems.FUSE_OVERLAYFS}"


def summary(result: Result, choice: Choice, filesystem: str) -> dict[str, Any]:
    """Return the object that --json writes."""
    return {
        "machine": {**facts.machine(), "filesystem": filesystem},
        "versions": _versions(choice.systems, result),
        "rootfs": choice.materials.facts(),
        "rounds": choice.rounds,
        "scale": choice.scale.factor,
        "systems": [system for system in choice.systems if any(key[2] == system for key in result.samples)],
        "rows": _rows(result, choice),
        "left_out": result.left_out,
        "order": result.order,
    }


def _rows(result: Result, choice: Choice) -> list[dict[str, Any]]:
    rows = []
    for (workload, name), phase in result.phases.items():
        found: dict[str, Any] = {}
        for system in choice.systems:
            samples = result.samples.get((workload, name, system), [])
            values = [value for one in samples if (value := phase.value(one, choice.scale)) is not None]
            if not values:
                continue
            found[system] = rounds.spread(values)
            found[system]["processor_s"] = statistics.median(one.processor_s for one in samples)
            cpu = [one.daemon_s for one in samples if one.daemon_s is not None]
            if cpu:
                found[system]["daemon_s"] = statistics.median(cpu)
            counted = next((one.messages for one in samples if one.messages is not None), None)
            if counted is not None:
                found[system]["messages"] = dict(counted)
        rows.append({"workload": workload, "row": name, "unit": phase.unit, "warm": phase.warm, "systems": found})
        ours = found.get(systems.OURS)
        rows[-1]["ratios"] = {
            peer: ours["median"] / found[peer]["median"]
            for peer in _AGAINST
            if ours is not None and peer in found and found[peer]["median"] > 0
        }
        peer = found.get(systems.FUSE_OVERLAYFS)
        if ours is not None and peer is not None and peer["processor_s"] > 0:
            rows[-1]["processor_ratio"] = ours["processor_s"] / peer["processor_s"]
    return rows


def _versions(chosen: Sequence[str], result: Result) -> dict[str, str]:
    missing = {one["system"] for one in result.left_out if not one["workload"]}
    found = {system: systems.version(system) for system in chosen if system not in missing}
    return {**found, "python": platform.python_version()}


def show(found: Mapping[str, Any]) -> None:
    """Print the table on a terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    table = Table(title=f"medians of {found['rounds']} rounds, ± half of the spread; less is better")
    for number, column in enumerate(_columns(found)):
        table.add_column(column, justify="left" if number == 0 else "right")
    for cells in _cells(found):
        table.add_row(*cells)
    console.print(table)
    for line in _left_out(found):
        console.print(line, markup=False)


def as_markdown(found: Mapping[str, Any]) -> str:
    """Return the table as Markdown, with the machine, the versions and what was left out."""
    where = found["machine"]
    versions = ", ".join(f"{name} {text}" for name, text in found["versions"].items())
    lines = [
        f"{where['cpu']}, {where['cpus']} CPUs, {where['memory_gib']} GiB, Linux {where['kernel']}, "
        f"branches on {where['filesystem']}, {where['utc']} UTC, "
        f"load {where['load']:.1f} at the end. {found.get('remark', '')}".rstrip(),
        "",
        f"Versions: {versions}. "
        f"Lower: {found['rootfs']['files']} files in {found['rootfs']['directories']} directories. "
        f"Medians of {found['rounds']} rounds, ± half of the spread; less is better.",
        "",
        "| " + " | ".join(_columns(found)) + " |",
        "|---" + "|---:" * (len(_columns(found)) - 1) + "|",
    ]
    lines += ["| " + " | ".join(cells) + " |" for cells in _cells(found)]
    left_out = _left_out(found)
    if left_out:
        lines += ["", *[f"- {line}" for line in left_out]]
    return "\n".join(lines)


def write_between_markers(path: Path, text: str) -> None:
    """Replace what stands between the marker lines of a file. Raises: NoMarkersError, OSError."""
    markdown.write_between_markers(path, text, BEGIN, END)


def _columns(found: Mapping[str, Any]) -> list[str]:
    columns = ["", *found["systems"]]
    columns += [f"ours / {peer}" for peer in _AGAINST if peer in found["systems"]]
    columns += [f"CPU of {system}" for system in found["systems"] if _has_daemon(found, system)]
    if systems.FUSE_OVERLAYFS in found["systems"]:
        columns.append(_PROCESSOR_RATIO)
    if any("messages" in figures for row in found["rows"] for figures in row["systems"].values()):
        columns.append("messages")
    return columns


def _cells(found: Mapping[str, Any]) -> list[list[str]]:
    table = []
    for row in found["rows"]:
        cells = [row["row"]]
        cells += [_figure(row["systems"].get(system), row["unit"]) for system in found["systems"]]
        peers = [peer for peer in _AGAINST if peer in found["systems"]]
        cells += [f"{row['ratios'][peer]:.2f}" if peer in row["ratios"] else "" for peer in peers]
        for system in found["systems"]:
            if _has_daemon(found, system):
                cells.append(_processor_time(row["systems"].get(system)))
        if _PROCESSOR_RATIO in _columns(found):
            cells.append(f"{row['processor_ratio']:.2f}" if "processor_ratio" in row else "")
        if "messages" in _columns(found):
            counted = row["systems"].get(systems.OURS, {}).get("messages")
            cells.append("" if counted is None else str(sum(counted.values())))
        table.append(cells)
    return table


def _processor_time(figures: Mapping[str, Any] | None) -> str:
    """The processor time of programs and daemon together, and the daemon's part."""
    if figures is None or "daemon_s" not in figures:
        return ""
    return f"{figures['processor_s']:.2f} ({figures['daemon_s']:.2f}) s"


def _has_daemon(found: Mapping[str, Any], system: str) -> bool:
    return any("daemon_s" in row["systems"].get(system, {}) for row in found["rows"])


def _figure(figures: Mapping[str, Any] | None, unit: str) -> str:
    if figures is None:
        return ""
    half = (figures["most"] - figures["least"]) / 2
    median = figures["median"]
    digits = 0 if median >= 100 else 1 if median >= 10 else 2 if median >= 1 else 3
    return f"{median:.{digits}f} ± {half:.{digits}f} {unit}"


def _left_out(found: Mapping[str, Any]) -> list[str]:
    return [f"left out: {line}" for line in rounds.left_out(found["left_out"], "workload")]
