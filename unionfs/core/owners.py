"""Whom files belong to: the ids that the branches store, and the ones that users of the union see. Pure.

Two ways, both of fuse-overlayfs: ranges of ids that are shown as other ids, and one id that stands for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

OVERFLOW: Final = 65534
"""Shown and stored for an id that no range has (/proc/sys/kernel/overflowuid)."""

_MAX: Final = (1 << 32) - 1


class Range(NamedTuple):
    """`length` ids from `stored` on are shown as those from `shown` on."""

    stored: int
    shown: int
    length: int


@dataclass(frozen=True, slots=True)
class IdMap:
    """How one kind of id, users' or groups', is translated. Without ranges and `all_as`, not at all."""

    ranges: tuple[Range, ...] = ()
    all_as: int | None = None  # every file is shown as this one's, and made as this one's as far as we may

    def shown(self, number: int) -> int:
        """What users see for an id that a branch stores."""
        if self.all_as is not None:
            return self.all_as
        for stored, shown, length in self.ranges:
            if stored <= number < stored + length:
                return shown + number - stored
        return OVERFLOW if self.ranges else number

    def stored(self, number: int) -> int:
        """What the upper stores for an id that users see; the first range that has it counts."""
        if self.all_as is not None:
            return self.all_as
        for stored, shown, length in self.ranges:
            if shown <= number < shown + length:
                return stored + number - shown
        return OVERFLOW if self.ranges else number


@dataclass(frozen=True, slots=True)
class Owners:
    """Both kinds of id."""

    users: IdMap = IdMap()
    groups: IdMap = IdMap()

    @property
    def squashed(self) -> bool:
        """Whether ids that this process may not give to a file are kept back silently (chown(2): EPERM, EINVAL)."""
        return self.users.all_as is not None or self.groups.all_as is not None


def parse_ranges(text: str) -> tuple[Range, ...]:
    """`STORED:SHOWN:LENGTH[:STORED:SHOWN:LENGTH...]`; empty parts are passed over. ValueError for anything else."""
    parts = [part for part in text.split(":") if part]
    if not all(part.isascii() and part.removeprefix("-").isdigit() for part in parts):
        raise ValueError("not numbers with colons between them")
    numbers = [int(part) for part in parts]
    if not numbers or len(numbers) % 3:
        raise ValueError("not in groups of three numbers")
    ranges = tuple(Range(*numbers[at : at + 3]) for at in range(0, len(numbers), 3))
    for stored, shown, length in ranges:
        if min(stored, shown) < 0 or length < 1 or max(stored, shown) + length - 1 > _MAX:
            raise ValueError("a number is out of range")
    return ranges
