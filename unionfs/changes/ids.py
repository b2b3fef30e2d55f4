"""Translate the owners that this process reads from branches to those that the union shows inside.

Pure. A union in a user namespace shows its files with the ids of that namespace; outside, the same file has others
(user_namespaces(7)). Lowers may have owners without a mapping: those are shown as the user nobody, or as root
if the union was made with `unmapped_as_root`.
"""

from __future__ import annotations

from typing import NamedTuple

from unionfs.id_ranges import OVERFLOW, IdRanges, to_inside


class ShownIds(NamedTuple):
    """The translation for one union. The default is a union without a user namespace: owners stay as they are."""

    uid_map: IdRanges = ()  # empty: the process sees the ids of the union's own namespace
    gid_map: IdRanges = ()
    foreign: bool = False  # lowers hold owners that the union's namespace does not know
    unmapped_as_root: bool = False  # such owners are shown as root, not as the user nobody

    @classmethod
    def outside(cls, uid_map: IdRanges, gid_map: IdRanges, unmapped_as_root: bool) -> ShownIds:
        """The translation for a process outside of the union's user namespace."""
        return cls(uid_map, gid_map, True, unmapped_as_root)

    @classmethod
    def inside(cls, unmapped_as_root: bool) -> ShownIds:
        """The translation for a process in a user namespace with the same maps as the union's."""
        return cls((), (), True, unmapped_as_root)

    def shown_owner(self, uid: int, gid: int, *, of_lower: bool) -> tuple[int, int]:
        """The owner that the union shows for an object of the upper or of a lower."""
        if not self.foreign:
            return uid, gid
        return (
            self.shown_id(self.uid_map, uid, of_lower=of_lower),
            self.shown_id(self.gid_map, gid, of_lower=of_lower),
        )

    def shown_id(self, ranges: IdRanges, number: int, *, of_lower: bool) -> int:
        """One id of an owner; `ranges` is the map of its kind."""
        if not self.foreign:
            return number
        shown: int | None = number
        if ranges:
            shown = to_inside(ranges, number)
        elif number == OVERFLOW and of_lower:
            # Inside, the user nobody and an unmapped owner have the same id. In a lower it is the unmapped one.
            shown = None
        if shown is None:
            return 0 if self.unmapped_as_root and of_lower else OVERFLOW
        return shown
