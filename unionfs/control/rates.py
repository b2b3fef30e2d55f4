"""The activity of a union between two answers of its daemon to `stats`, and the programs that caused copy-ups. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple


class Caused(NamedTuple):
    """The copy-ups of one program in one directory."""

    command: str
    directory: str
    copy_ups: int
    size: int  # bytes copied
    ms: float  # of waiting of the programs


class Rates(NamedTuple):
    """The activity in some seconds. `messages` are counts by kind, the most frequent first."""

    seconds: float
    messages: dict[str, int]
    copy_ups: int
    copied: int  # bytes
    copying_s: float
    cpu_s: float  # of the daemon
    memory: int  # bytes of the daemon: its own, and its part of what it shares; 0: unknown
    nodes: int
    descriptors: int  # of the daemon, open now
    descriptors_most: int  # that it may have
    caused: tuple[Caused, ...]  # those that took longest first

    @property
    def requests(self) -> int:
        """The number of messages of all kinds."""
        return sum(self.messages.values())


_UNKNOWN: Final = {"open": 0, "most": 0}
"""The fields about descriptors, which daemons of older versions do not send."""


def between(old: Mapping[str, Any], new: Mapping[str, Any], traced: Sequence[Mapping[str, Any]] = ()) -> Rates:
    """Return the activity from the answer `old` to the answer `new` of one daemon; `traced` are the copy-ups meanwhile,
    as `trace` sends them. When another daemon has continued (see fuse.keeper), its processor time counts from 0."""
    counts = {kind: count - old["messages"].get(kind, 0) for kind, count in new["messages"].items()}
    messages = {kind: count for kind, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])) if count > 0}
    before, after = old["copy_ups"], new["copy_ups"]
    cpu_s = new["cpu_s"] - (old["cpu_s"] if new["pid"] == old["pid"] else 0)
    memory = new["memory_bytes"]
    return Rates(
        new["uptime_s"] - old["uptime_s"],
        messages,
        sum(after[kind] - before[kind] for kind in ("files", "directories", "others")),
        after["bytes"] - before["bytes"],
        after["seconds"] - before["seconds"],
        cpu_s,
        memory["pss"] if memory is not None else 0,
        new["nodes"],
        new.get("descriptors", _UNKNOWN)["open"],
        new.get("descriptors", _UNKNOWN)["most"],
        tuple(caused(traced)),
    )


def caused(traced: Sequence[Mapping[str, Any]]) -> list[Caused]:
    """The copy-ups of a trace by program and directory, those that took longest first."""
    sums: dict[tuple[str, str], Caused] = {}
    for one in traced:
        if "path" not in one:
            continue
        key = (one["command"], one["path"].rpartition("/")[0] or "/")
        known = sums.get(key, Caused(*key, 0, 0, 0.0))
        sums[key] = Caused(*key, known.copy_ups + 1, known.size + one["bytes"], known.ms + one["ms"])
    return sorted(sums.values(), key=lambda one: (-one.ms, one.directory, one.command))


def as_json(rates: Rates) -> dict[str, Any]:
    """The object that `--json` prints."""
    values = {
        **rates._asdict(),
        "descriptors": {"open": rates.descriptors, "most": rates.descriptors_most},
        "seconds": round(rates.seconds, 3),
        "copying_s": round(rates.copying_s, 6),
        "cpu_s": round(rates.cpu_s, 6),
        "caused": [one._asdict() for one in rates.caused],
    }
    del values["descriptors_most"]
    return values
