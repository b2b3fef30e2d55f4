"""Translate user and group ids with ranges, as the lines of a uid_map or gid_map do (user_namespaces(7)). Pure.

Used for user namespaces, and for unions that show owners under other ids.
"""

from __future__ import annotations

from typing import Final, NamedTuple

OVERFLOW: Final = 65534
"""Replaces an id that is in no range (/proc/sys/kernel/overflowuid)."""


class IdRange(NamedTuple):
    """`length` consecutive ids: the id `inside` + N inside is the id `outside` + N outside."""

    inside: int
    outside: int
    length: int


IdRanges = tuple[IdRange, ...]
"""The ranges of user ids or of group ids. Where ranges overlap, the first one counts."""


def to_inside(ranges: IdRanges, number: int) -> int | None:
    """Translate an id outside to the id inside; None if no range has it."""
    for inside, outside, length in ranges:
        if outside <= number < outside + length:
            return inside + number - outside
    return None


def to_outside(ranges: IdRanges, number: int) -> int | None:
    """Translate an id inside to the id outside; None if no range has it."""
    for inside, outside, length in ranges:
        if inside <= number < inside + length:
            return outside + number - inside
    return None
