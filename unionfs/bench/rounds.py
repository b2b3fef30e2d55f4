"""Order the sessions of interleaved rounds, and sum up their results.

In each round every system has one session, and the order of the systems is reversed every round: a temporary
disturbance of the machine affects all systems alike, and no system always follows the same other one.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def order(contestants: Sequence[T], number: int) -> Sequence[T]:
    """Return the contestants in their order in round `number`, counted from 0."""
    return contestants[:: -1 if number % 2 else 1]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the median, least and most of the values of all rounds, and the values."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "values": values}


def left_out(entries: Iterable[Mapping[str, str]], question: str) -> list[str]:
    """Return the systems that were not measured and why, a line for each reason; `question` is the key of the
    question."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        grouped.setdefault((entry["system"], entry["why"]), []).append(entry[question] or "everything")
    return [f"{system} in {', '.join(where)}: {why}" for (system, why), where in grouped.items()]
