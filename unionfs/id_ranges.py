"""Ranges of user or group ids that are other ids elsewhere: the lines of a uid_map or gid_map (user_namespaces(7)).

Pure. Used for user namespaces, and for owners that a union shows as other owners.
"""

from __future__ import annotations

from typing import Final, NamedTuple

OVERFLOW: Final = 65534
"""Stands for an id that no range has (/proc/sys/kernel/overflowuid)."""


class IdRange(NamedTuple):
    """The `length` ids from `inside` on are, seen from outside, those from `outside` on."""

    inside: int
    outside: int
    length: int


IdRanges = tuple[IdRange, ...]
"""One kind of id, users' or groups'. Where ranges overlap, the first counts."""


def to_inside(ranges: IdRanges, number: int) -> int | None:
    """The id inside for an id outside; None if no range has it."""
    for inside, outside, length in ranges:
        if outside <= number < outside + length:
            return inside + number - outside
    return None


def to_outside(ranges: IdRanges, number: int) -> int | None:
    """The id outside for an id inside; None if no range has it."""
    for inside, outside, length in ranges:
        if inside <= number < inside + length:
            return outside + number - inside
    return None
