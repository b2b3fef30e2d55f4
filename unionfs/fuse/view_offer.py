"""Decide who may look up the view of a union's lowers: processes of the user, namespaces and root that mounted it.

Containers have mount namespaces or root directories of their own, so that nothing in them finds the view. Knows
processes and the name of the view. Does not know requests or the content of the view.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from unionfs.core.union import Union
from unionfs.core.view import View, root_descriptors
from unionfs.fuse.mounting import MountOptions
from unionfs.fuse.options import ServeOptions
from unionfs.fuse.view_name import view_name

log = logging.getLogger(__name__)

_WAYS: Final = ("mnt", "user")
"""The namespaces that decide which mounts and users a process sees."""


class ViewOffer:
    """The offer of one union. On the union's thread only; `view` and `given` may be read from anywhere."""

    def __init__(self, union: Union, serve: ServeOptions, mount: MountOptions, mount_namespace: int) -> None:
        """`mount_namespace`: the inode number of the one in which the union is mounted."""
        self.view: View | None = None  # set once, by the transport at the first lookup
        self.given = 0  # lookups that found the view
        self._union = union  # immutable
        self._serve = serve  # immutable
        self._mount = mount  # immutable
        self._namespaces = mount_namespace, os.stat("/proc/self/ns/user").st_ino  # immutable, as in _WAYS
        self._name = b""  # set once, when it is first asked for

    def is_for(self, name: bytes, uid: int, pid: int) -> bool:
        """Whether `name`, which begins with PREFIX, is the view's, and process `pid` with the fsuid `uid` may have
        it."""
        try:
            if uid != os.geteuid() or not self._is_beside(pid):
                return False
            if not self._name:
                self._name = view_name(root_descriptors(self._union), self._union.options, self._serve, self._mount)
        except OSError:
            return False
        if name != self._name:
            return False
        self.given += 1
        log.info("process %d mounts a view of the lowers", pid)
        return True

    def _is_beside(self, pid: int) -> bool:
        """Whether a process, which waits for us, has the namespaces in which the union is mounted, and their root."""
        if os.readlink("/proc/self") != str(os.getpid()):
            return False  # another pid namespace's /proc, in which `pid` means another process
        if tuple(os.stat(f"/proc/{pid}/ns/{way}").st_ino for way in _WAYS) != self._namespaces:
            return False
        return os.readlink(f"/proc/{pid}/root") == "/"
