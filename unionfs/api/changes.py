"""What an upper changed, for users: `unionfs.changes.listing` with its values made plain."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from unionfs.api.making import paths_of
from unionfs.api.paths import StrPath
from unionfs.changes import listing
from unionfs.changes.objects import Branches, Object

Kind = Literal["added", "changed", "deleted"]

_KINDS: dict[str, Kind] = {listing.ADDED: "added", listing.CHANGED: "changed", listing.DELETED: "deleted"}


@dataclass(frozen=True, slots=True)
class Side:
    """What a path was before, or is now. `mode` holds the type, too; `size` is that of a file."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True, slots=True)
class Change:
    """One path that the upper added, changed or deleted.

    `what` says in what a changed one differs: type, content, mode, owner, xattrs, mtime; empty for a directory that is
    listed because of something in it. Of a deleted directory only the top is listed.
    """

    kind: Kind
    path: str  # from the union's root, with a leading slash
    what: tuple[str, ...]
    old: Side | None  # None of what was added
    new: Side | None  # None of what was deleted


def list_changes(upper: StrPath, lowers: Iterable[StrPath]) -> list[Change]:
    """What an upper changes of the union of the lowers, the topmost first, sorted by path.

    Only reads, and costs what the upper holds; the union may be mounted and in use. What was written but is equal to
    what was there is no change. Raises OSError, EACCES above all, for what cannot be read.
    """
    with Branches(os.fsdecode(upper), paths_of(lowers)) as branches:
        return [
            Change(_KINDS[one.kind], os.fsdecode(one.path), one.what, _side(one.old), _side(one.new))
            for one in listing.changes(branches).changes
        ]


def _side(found: Object | None) -> Side | None:
    if found is None:
        return None
    size = found.size if stat.S_ISREG(found.mode) else 0
    return Side(found.mode, found.uid, found.gid, size, found.mtime_ns)
