"""Translate owners between the ids that the branches store and those that users of the union see. Pure.

Two ways, as in fuse-overlayfs: ranges of ids that are shown as other ids, and one id shown for all.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from unionfs.id_ranges import OVERFLOW, IdRange, IdRanges, to_inside, to_outside

_MAX: Final = (1 << 32) - 1


class IdTranslation(NamedTuple):
    """The translation of user ids or of group ids; the identity without `ranges` and `all_as`."""

    ranges: IdRanges = ()  # inside: as users see it; outside: as branches store it
    all_as: int | None = None  # the id shown for every file, and given to new files if permitted

    def shown(self, number: int) -> int:
        """Return the id that users see for an id that a branch stores."""
        if self.all_as is not None:
            return self.all_as
        if not self.ranges:
            return number
        found = to_inside(self.ranges, number)
        return OVERFLOW if found is None else found

    def stored(self, number: int) -> int:
        """Return the id that the upper stores for an id that users see; the first matching range counts."""
        if self.all_as is not None:
            return self.all_as
        if not self.ranges:
            return number
        found = to_outside(self.ranges, number)
        return OVERFLOW if found is None else found


class OwnerTranslation(NamedTuple):
    """The translation of user ids and group ids."""

    users: IdTranslation = IdTranslation()
    groups: IdTranslation = IdTranslation()

    @property
    def squashed(self) -> bool:
        """Whether chown(2) errors for ids that this process may not set (EPERM, EINVAL) are ignored."""
        return self.users.all_as is not None or self.groups.all_as is not None


def parse_ranges(text: str) -> IdRanges:
    """Parse `STORED:SHOWN:LENGTH[:STORED:SHOWN:LENGTH...]`; empty parts are skipped. ValueError for anything else."""
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
