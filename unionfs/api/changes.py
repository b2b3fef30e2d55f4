"""List the changes of an upper: the results of `unionfs.changes.listing` as public values."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from unionfs.api.arguments import paths_of
from unionfs.api.paths import StrPath
from unionfs.changes import listing
from unionfs.changes.objects import Branches, Object

Kind = Literal["added", "changed", "deleted"]

_KINDS: dict[str, Kind] = {listing.ADDED: "added", listing.CHANGED: "changed", listing.DELETED: "deleted"}


@dataclass(frozen=True, slots=True)
class Side:
    """The state of a path before or after the change. `mode` includes the type; `size` is in bytes, 0 except for
    files."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int

    @property
    def is_dir(self) -> bool:
        """Whether the object is a directory."""
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True, slots=True)
class Change:
    """One path that the upper added, changed or deleted.

    `what` lists the differences of a changed path: type, content, mode, owner, xattrs, mtime; it is empty for a
    directory of which only the content changed. Of a deleted directory only the top is listed.
    """

    kind: Kind
    path: str  # from the union's root, with a leading slash
    what: tuple[str, ...]
    old: Side | None  # None for an added path
    new: Side | None  # None for a deleted path


def list_changes(upper: StrPath, lowers: Iterable[StrPath]) -> list[Change]:
    """List the changes of an upper to the union of the lowers, the topmost first, sorted by path.

    It only reads; the time depends on the size of the upper; the union may be mounted and in use. A file that was
    written but equals the lower's is no change. Raises: OSError, mostly EACCES, for files that cannot be read.
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
