"""The sums of a daemon's recorded requests (control.activity_server), and a time line of them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

SLOTS_MAX: Final = 400
"""Number of slots of the time line. At twice as many, each two are joined."""


class Row(NamedTuple):
    """The requests of one kind, reason, program and directory (fuse.kernel.activity)."""

    kind: str  # the kernel's name of the opcode without FUSE_
    reason: str
    program: str
    directory: str
    requests: int = 0
    size: int = 0  # bytes read or written
    seconds: float = 0.0  # of the daemon's work for them
    copying: float = 0.0  # seconds that they waited for copy-ups that they caused
    blocked: float = 0.0  # ... for copy-ups that other requests had caused
    disk: float = 0.0  # ... for threads that read, wrote or synced data

    @property
    def waited(self) -> float:
        """Seconds waited, for whatever reason."""
        return self.copying + self.blocked + self.disk

    @property
    def cost(self) -> float:
        """Seconds that programs waited for the daemon."""
        return self.seconds + self.waited


_KEY: Final = ("kind", "reason", "program", "directory")
_NUMBERS: Final = ("requests", "size", "seconds", "copying", "blocked", "disk")


class Slot(NamedTuple):
    """A part of the time line."""

    begin: float  # seconds since the recording began
    end: float
    messages: dict[str, int]
    waited: dict[str, float]  # copying, blocked, disk: seconds


class Recording:
    """The profile of one union so far."""

    def __init__(self, name: str, settings: Mapping[str, Any], begin: float) -> None:
        self.name = name  # immutable
        self.settings = settings  # immutable: see fuse.traffic.Observation
        self.begin = begin  # immutable: seconds of time.monotonic
        self.seconds = 0.0
        self.is_complete = False  # whether the daemon sent the last line
        self.forgot = False
        self.files: list[dict[str, Any]] = []
        self.copy_ups: list[dict[str, Any]] = []
        self.slots: list[Slot] = []
        self._rows: dict[tuple[str, str, str, str], Row] = {}

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line of the daemon."""
        rows = [Row(*(row[key] for key in _KEY), *(row[number] for number in _NUMBERS)) for row in line["rows"]]
        for row in rows:
            key = (row.kind, row.reason, row.program, row.directory)
            before = self._rows.get(key)
            self._rows[key] = row if before is None else _sum(before, row)
        self.files, self.copy_ups = line.get("files", []), line.get("copy_ups", [])  # in the last line
        self.forgot = self.forgot or line["forgot"]
        before_s, self.seconds = self.seconds, line["at"] - self.begin
        messages = {kind: sum(row.requests for row in these) for kind, these in _grouped(rows, lambda row: row.kind)}
        waited = {kind: sum(getattr(row, kind) for row in rows) for kind in ("copying", "blocked", "disk")}
        self.slots.append(Slot(before_s, self.seconds, messages, waited))
        if len(self.slots) >= 2 * SLOTS_MAX:
            pairs = zip(self.slots[::2], self.slots[1::2], strict=True)
            self.slots = [_joined(first, second) for first, second in pairs]

    @property
    def rows(self) -> list[Row]:
        """All rows, those that cost most first."""
        return sorted(self._rows.values(), key=lambda row: (-row.cost, row))

    @property
    def messages(self) -> int:
        """The number of requests."""
        return sum(row.requests for row in self._rows.values())

    @property
    def cost(self) -> float:
        """Seconds that programs waited for the daemon."""
        return sum(row.cost for row in self._rows.values())

    def by(self, *fields: str) -> list[Row]:
        """The sums by some of the four fields that distinguish rows, those that cost most first; the other fields are
        empty."""
        sums = []
        for _, rows in _grouped(self._rows.values(), lambda row: tuple(getattr(row, field) for field in fields)):
            kind, reason, program, directory = (getattr(rows[0], name) if name in fields else "" for name in _KEY)
            one = Row(kind, reason, program, directory)
            for row in rows:
                one = _sum(one, row)
            sums.append(one)
        return sorted(sums, key=lambda row: (-row.cost, row))

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints for one union, without its causes."""
        return {
            "union": self.name,
            "seconds": round(self.seconds, 3),
            "complete": self.is_complete,
            "forgot": self.forgot,
            "settings": dict(self.settings),
            "messages": self.messages,
            "cost_s": round(self.cost, 6),
            "rows": [_rounded(row._asdict()) for row in self.rows],
            "files": [_rounded(each) for each in self.files],
            "copy_ups": [_rounded(each) for each in self.copy_ups],
            "timeline": [
                {**slot._asdict(), "begin": round(slot.begin, 3), "end": round(slot.end, 3),
                 "waited": _rounded(slot.waited)}
                for slot in self.slots
            ],
        }  # fmt: skip


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}


def _sum(one: Row, other: Row) -> Row:
    return one._replace(**{number: getattr(one, number) + getattr(other, number) for number in _NUMBERS})


def _joined(first: Slot, second: Slot) -> Slot:
    def both(of: Callable[[Slot], Mapping[str, Any]]) -> dict[str, Any]:
        one, other = of(first), of(second)
        return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}

    return Slot(first.begin, second.end, both(lambda slot: slot.messages), both(lambda slot: slot.waited))


def _grouped(rows: Iterable[Row], key_of: Callable[[Row], Any]) -> Iterable[tuple[Any, list[Row]]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(key_of(row), []).append(row)
    return found.items()
