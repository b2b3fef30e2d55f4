"""`unionfs top` without a container: lists all unions that answer, the busiest first, after each interval."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from typing import Any, Final, NamedTuple

from unionfs.cli import live
from unionfs.cli.units import human_size
from unionfs.control import rates
from unionfs.control.client import NoAnswerError
from unionfs.control.rates import Rates
from unionfs.printable import printable

_HEADS: Final = (
    "MESSAGES/S",
    "COPY-UPS",
    "COPIED",
    "WAITED MS",
    "PROCESSOR",
    "MEMORY",
    "NODES",
    "DESCRIPTORS",
    "MOST FREQUENT",
    "UNION",
)


class _Sampled(NamedTuple):
    name: str
    found: Rates


def run(arguments: Namespace) -> int:
    """List the unions after each interval. New unions are added, and ended ones left out."""
    before: dict[tuple[int, str], dict[str, Any]] = {}
    _sample(arguments.root, before)
    for _ in live.ticks(arguments.interval, arguments.count):
        found, unanswered = _sample(arguments.root, before)
        found.sort(key=lambda one: (-one.found.cpu_s, -one.found.requests, one.name))
        if arguments.json:
            print(json.dumps([{"union": one.name, **rates.as_json(one.found)} for one in found]), flush=True)
        else:
            live.draw(_lines(found, unanswered))
    return 0


def _sample(root: str | None, before: dict[tuple[int, str], dict[str, Any]]) -> tuple[list[_Sampled], int]:
    """Return the activity of each union since the last call, and how many did not answer: those of other users, or
    ending ones."""
    found: list[_Sampled] = []
    unanswered = 0
    now: dict[tuple[int, str], dict[str, Any]] = {}
    for target in live.all_targets(root):
        try:
            stats = target.stats()
        except NoAnswerError:
            unanswered += 1
            continue
        key = (target.mount.minor, target.name)
        now[key] = stats
        if key in before and stats["uptime_s"] >= before[key]["uptime_s"]:
            found.append(_Sampled(target.name, rates.between(before[key], stats)))
    before.clear()
    before.update(now)
    return found, unanswered


def _lines(found: list[_Sampled], unanswered: int) -> list[str]:
    rows = [_HEADS, *(_row(one) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS) - 1)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=True)]
        lines.append("  ".join([*cells, row[-1]]))
    note = f", {unanswered} give no answer" if unanswered else ""
    return [f"{time.strftime('%H:%M:%S')}  {len(found)} unions{note}", "", *lines, ""]


def _row(one: _Sampled) -> tuple[str, ...]:
    found = one.found
    seconds = max(found.seconds, 0.001)
    return (
        f"{found.requests / seconds:.0f}",
        str(found.copy_ups),
        human_size(found.copied),
        f"{found.copying_s * 1000:.1f}",
        f"{found.cpu_s / seconds:.0%}",
        human_size(found.memory),
        str(found.nodes),
        str(found.descriptors),
        next(iter(found.messages), "-"),
        printable(one.name),
    )
