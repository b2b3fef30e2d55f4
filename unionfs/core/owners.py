"""Whom files belong to: the ids that the branches store, and the ones that users of the union see. Pure.

Two ways, both of fuse-overlayfs: ranges of ids that are shown as other ids, and one id that stands for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from unionfs.id_ranges import OVERFLOW, IdRange, IdRanges, to_inside, to_outside

_MAX: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class IdTranslation:
    """How one kind of id, users' or groups', is translated. Without ranges and `all_as`, not at all."""

    ranges: IdRanges = ()  # inside: as users see it; outside: as branches store it
    all_as: int | None = None  # every file is shown as this one's, and made as this one's as far as we may

    def shown(self, number: int) -> int:
        """What users see for an id that a branch stores."""
        if self.all_as is not None:
            return self.all_as
        if not self.ranges:
            return number
        found = to_inside(self.ranges, number)
        return OVERFLOW if found is None else found

    def stored(self, number: int) -> int:
        """What the upper stores for an id that users see; the first range that has it counts."""
        if self.all_as is not None:
            return self.all_as
        if not self.ranges:
            return number
        found = to_outside(self.ranges, number)
        return OVERFLOW if found is None else found


@dataclass(frozen=True, slots=True)
class OwnerTranslation:
    """Both kinds of id."""

    users: IdTranslation = IdTranslation()
    groups: IdTranslation = IdTranslation()

    @property
    def squashed(self) -> bool:
        """Whether ids that this process may not give to a file are kept back silently (chown(2): EPERM, EINVAL)."""
        return self.users.all_as is not None or self.groups.all_as is not None


def parse_ranges(text: str) -> IdRanges:
    """`STORED:SHOWN:LENGTH[:STORED:SHOWN:LENGTH...]`; empty parts are passed over. ValueError for anything else."""
    parts = [part for part in text.split(":") if part]
    if not all(part.isascii() and part.removeprefix("-").isdigit() for part in parts):
        raise ValueError("not numbers with colons between them")
    numbers = [int(part) for part in parts]
    if not numbers or len(numbers) % 3:
        raise ValueError("not in groups of three numbers")
    triples = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    ranges = tuple([IdRange(shown, stored, length) for stored, shown, length in triples])
    for shown, stored, length in ranges:
        if min(stored, shown) < 0 or length < 1 or max(stored, shown) + length - 1 > _MAX:
            raise ValueError("a number is out of range")
    return ranges
