"""Check the access of this process to files of a union, by owner, groups, mode and ACL, as the kernel does for a mount.

The core itself does not check: on a mount the kernel does, before it sends a request (default_permissions).
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
    """The rights of the process at the time when this object was made."""

    def __init__(self) -> None:
        self._uid = os.geteuid()  # immutable
        self._groups = frozenset((os.getegid(), *os.getgroups()))  # immutable

    def require(self, core: Core, nodeid: int, attrs: Attrs, wanted: int) -> None:
        """Refuse access to a node; `wanted` is made of READ, WRITE, SEARCH. Raises: EACCES."""
        if self._uid != 0 and not self._permits(core, nodeid, attrs, wanted):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def require_removable(self, directory: Attrs, attrs: Attrs) -> None:
        """Refuse to remove a name from a sticky directory unless we own the file or the directory (unlink(2)). Raises:
        EPERM."""
        if self._uid not in (0, directory.uid, attrs.uid) and directory.mode & stat.S_ISVTX:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def require_owner(self, attrs: Attrs) -> None:
        """Refuse an operation that only the owner of a file may do. Raises: EPERM."""
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
