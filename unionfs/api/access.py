"""What this process may do with a file of a union, by owner, groups, mode and ACL: as the kernel decides for a mount.

The core itself does not ask: before a request reaches it through a mount, the kernel has (default_permissions).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from unionfs import posix_acl
from unionfs.core.attrs import Attrs
from unionfs.core.union import Union as Core

READ: Final = os.R_OK
WRITE: Final = os.W_OK
SEARCH: Final = os.X_OK


class Access:
    """The rights of the process as it was when this was made."""

    def __init__(self) -> None:
        self._uid = os.geteuid()  # immutable
        self._groups = frozenset((os.getegid(), *os.getgroups()))  # immutable

    def require(self, core: Core, nodeid: int, attrs: Attrs, wanted: int) -> None:
        """Refuse what the process may not do with a node: `wanted` is of READ, WRITE, SEARCH. EACCES."""
        if self._uid != 0 and not self._permits(core, nodeid, attrs, wanted):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def require_removable(self, directory: Attrs, attrs: Attrs) -> None:
        """Refuse to take a name out of a sticky directory that is neither's (unlink(2)). EPERM."""
        if self._uid not in (0, directory.uid, attrs.uid) and directory.mode & stat.S_ISVTX:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def require_owner(self, attrs: Attrs) -> None:
        """Refuse what only the owner of a file may do. EPERM."""
        if self._uid not in (0, attrs.uid):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def _permits(self, core: Core, nodeid: int, attrs: Attrs, wanted: int) -> bool:
        mode = attrs.mode
        if self._uid == attrs.uid:
            return not wanted & ~(mode >> 6)
        if mode & 0o070 and not stat.S_ISLNK(mode):
            value = core.find_xattr(nodeid, os.fsencode(posix_acl.ACCESS))
            if value is not None:
                return posix_acl.permits(value, wanted, self._uid, self._groups, attrs.gid)
        return not wanted & ~(mode >> 3 if attrs.gid in self._groups else mode)
