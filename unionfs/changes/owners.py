"""Choose the owner that a changed file gets on the machine, from the owner that the union showed inside.

Pure. Without a user namespace owners are equal. With one, several owners of the machine may have the same id inside
(unmapped owners are shown as root, and so is the user who made the namespace), so the owner must be chosen:

    an owner that did not change             stays exactly what it is on the machine
    root inside, applied by an ordinary user the user
    root inside, applied by root             the owner of the directory it goes to, if that one is shown as root too and
                                             the directory is not sticky; else the user of the namespace
    any other number inside                  that number
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from unionfs import posix_acl
from unionfs.changes.ids import ShownIds
from unionfs.changes.objects import Object
from unionfs.id_ranges import IdRanges, to_inside, to_outside

ACL_XATTRS: Final = (posix_acl.ACCESS, posix_acl.DEFAULT)
CAPABILITY_XATTR: Final = "security.capability"

_CAP_V2: Final = struct.Struct("<IIIII")  # <linux/capability.h>, struct vfs_cap_data
_CAP_V3_SIZE: Final = 24  # with the root id of its user namespace behind
_CAP_REVISION_2: Final = 0x02000000
_CAP_FLAGS: Final = 0x00FFFFFF


class Owner(NamedTuple):
    """Ids of the machine."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class OwnerChoice:
    """Chooses owners by the rules above, for one union and one process that applies its changes."""

    ids: ShownIds
    privileged: bool  # the process may give files to any user

    def choose(self, new: Object, old: Owner | None, parent: Owner, parent_mode: int) -> Owner:
        """The owner for `new`, which replaces a file of `old` (None: no file) in a directory of `parent`."""
        if not self.ids.foreign:
            return Owner(new.uid, new.gid)
        to_parent = self.privileged and not parent_mode & stat.S_ISVTX
        return Owner(
            self._choose(self.ids.uid_map, new.uid, old and old.uid, parent.uid, to_parent),
            self._choose(
                self.ids.gid_map, new.gid, old and old.gid, parent.gid, to_parent or bool(parent_mode & stat.S_ISGID)
            ),
        )

    def _choose(self, ranges: IdRanges, number: int, old: int | None, parent: int, to_parent: bool) -> int:
        if old is not None and self._shown(ranges, old) == number:
            return old
        if to_parent and self._shown(ranges, parent) == number:
            return parent
        if number == 0:
            own = to_outside(ranges, 0)
            return 0 if own is None else own
        return number

    def _shown(self, ranges: IdRanges, number: int) -> int:
        return self.ids.shown_id(ranges, number, of_lower=True)

    def translate(self, xattrs: dict[str, bytes]) -> dict[str, bytes]:
        """Attributes of an upper file as the machine needs them: with translated ids in ACLs and in capabilities."""
        if not self.ids.foreign:
            return xattrs
        result = dict(xattrs)
        users, groups = (partial(_inside_or_same, ranges) for ranges in (self.ids.uid_map, self.ids.gid_map))
        for name in ACL_XATTRS:
            if name in result:
                result[name] = posix_acl.translated(result[name], users, groups)
        if CAPABILITY_XATTR in result:
            result[CAPABILITY_XATTR] = _without_namespace(result[CAPABILITY_XATTR])
        return result


def _inside_or_same(ranges: IdRanges, number: int) -> int:
    """The id inside, if the owner has one other than root's; else the id unchanged."""
    return to_inside(ranges, number) or number


def _without_namespace(value: bytes) -> bytes:
    """Make a file capability that is valid everywhere from one that is valid in one user namespace."""
    if len(value) != _CAP_V3_SIZE:
        return value
    magic, *sets = _CAP_V2.unpack(value[: _CAP_V2.size])
    return _CAP_V2.pack(_CAP_REVISION_2 | magic & _CAP_FLAGS, *sets)
