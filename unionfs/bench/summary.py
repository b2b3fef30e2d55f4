"""Sum up a run as one object: medians and spread, omissions, the machine. Answer questions about that object.

The object is what --json writes; the table, the pictures, the page and the claims read nothing else.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from unionfs.bench import facts, rounds, systems
from unionfs.bench.cases import Series, words
from unionfs.bench.copyup import Choice, Result

FORMAT: Final = 1
"""Changes when a reader of an older object would misunderstand a newer one."""

Found = Mapping[str, Any]


def summary(result: Result, choice: Choice) -> dict[str, Any]:
    """Return the object that --json writes."""
    seen = {sample["system"] for sample in result.samples}
    shown = [system for system in choice.systems if system in seen]
    return {
        "format": FORMAT,
        "what": "copyup",
        "machine": facts.machine(),
        "versions": {system: systems.version(system) for system in shown},
        "filesystems": result.filesystems,
        "rounds": choice.run_size.rounds,
        "seconds": round(result.seconds, 1),
        "systems": shown,
        "series": [_series(series, result, shown) for series in choice.series],
        "left_out": result.left_out,
        "order": result.order,
    }


def _series(series: Series, result: Result, shown: Sequence[str]) -> dict[str, Any]:
    points = list(series.points)
    ground = next(iter(result.filesystems), "") if series.ground == "main" else series.ground
    samples: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for sample in result.samples:
        if sample["series"] == series.name:
            samples.setdefault((sample["system"], sample["point"]), []).append(sample)
    return {
        "name": series.name,
        "title": series.title,
        "axis": series.axis,
        "unit": series.unit,
        "ground": ground,
        "cache": series.cache,
        "per_file": series.per_file,
        "points": [
            {
                "x": point.x,
                "label": point.label,
                "trigger": point.trigger,
                "size": point.size,
                "files": point.files,
                "systems": {
                    system: _figures(samples[system, number], point.files if series.per_file else 1)
                    for system in shown
                    if (system, number) in samples
                },
            }
            for number, point in enumerate(points)
            if any(key[1] == number for key in samples)
        ],
    }


def _figures(samples: Sequence[Mapping[str, Any]], divisor: int) -> dict[str, Any]:
    """Of one point on one system: times in nanoseconds."""
    if "resident" in samples[0]:
        return {"resident": statistics.median(sample["resident"] for sample in samples), "rounds": len(samples)}
    times = [sample["ns"] / divisor for sample in samples]
    found = {**rounds.spread(times), "rounds": len(times)}
    again = [sample["again_ns"] for sample in samples if "again_ns" in sample]
    if again:
        found["again"] = statistics.median(again)
    written = [sample["bytes"] for sample in samples if sample.get("bytes") is not None]
    if written:
        found["bytes"] = statistics.median(written)
    return found


# -- questions ---------------------------------------------------------------------------------------------------------


def series_of(found: Found, name: str) -> Found | None:
    """Return the series of this name, if it was measured."""
    return next((one for one in found["series"] if one["name"] == name and one["points"]), None)


def measured(found: Found) -> Iterator[Found]:
    """Yield the series that have figures."""
    yield from (one for one in found["series"] if one["points"])


def systems_in(series: Found) -> list[str]:
    """Return the systems that have a figure somewhere in a series, in the order of SYSTEMS."""
    there = {system for point in series["points"] for system in point["systems"]}
    return [system for system in systems.SYSTEMS if system in there]


def beside_cp(series: Found) -> str:
    """Return the ratio of our time to that of the command `cp --reflink=auto`, in words; "" if it was not measured."""
    ratios = []
    for point in series["points"]:
        ours, cp = (point["systems"].get(system, {}).get("median") for system in (systems.OURS, systems.CP))
        if ours and cp and series["unit"] == "B":
            ratios.append(f"{ours / cp:.2f} at {words(point['x'])}")
    return f"ours / cp --reflink=auto: {', '.join(ratios)}" if ratios else ""


def duration(ns: float) -> str:
    """Return a time in three digits: "12.3 us", "4.56 ms", "7.89 s"."""
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= factor:
            return f"{ns / factor:.3g} {unit}" if ns < 1000 * factor else f"{ns / factor:.0f} {unit}"
    return f"{ns:.0f} ns"


def left_out(found: Found) -> list[str]:
    """Return the omissions with their reasons, a line for each reason."""
    return rounds.left_out(found["left_out"], "series")


def where(found: Found) -> str:
    """Return the machine in a line."""
    machine = found["machine"]
    return (
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB, Linux {machine['kernel']}, "
        f"{machine['utc']} UTC, load {machine['load']} at the end, as {machine['user']} user"
    )
