"""Decide who may look up the view of a union's lowers: processes of the user, namespaces and root that mounted it.
Remember when such a process last asked for the union, which decides between unions of the same lowers.

Containers have mount namespaces or root directories of their own, so that nothing in them finds the view. Knows
processes and the name of the view. Does not know requests or the content of the view.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Final

from unionfs.core.union import Union
from unionfs.core.view import View, root_descriptors
from unionfs.fuse.detachment import Mounted
from unionfs.fuse.mounting import MountOptions
from unionfs.fuse.options import ServeOptions
from unionfs.fuse.view_name import view_name

log = logging.getLogger(__name__)

_WAYS: Final = ("mnt", "user")
"""The namespaces that decide which mounts and users a process sees."""


class ViewOffer:
    """The offer of one union. On the union's thread only; `view` may be read from anywhere."""

    def __init__(self, union: Union, serve: ServeOptions, mount: MountOptions, mounted: Mounted) -> None:
        self.view: View | None = None  # set once, by the transport at the first lookup
        self.asked_ns = mounted.since_ns  # when the union was mounted or last asked for (time.monotonic_ns)
        self._union = union  # immutable
        self._serve = serve  # immutable
        self._mount = mount  # immutable
        self._namespaces = mounted.namespace(), os.stat("/proc/self/ns/user").st_ino  # immutable, as in _WAYS
        self._name = b""  # set once, when it is first asked for
        self._is_withdrawn = False  # set once, by `withdraw`

    def is_for(self, name: bytes, uid: int, pid: int) -> bool:
        """Whether `name`, which begins with PREFIX, is the view's, and process `pid` with the fsuid `uid` may have
        it."""
        try:
            if self._is_withdrawn or uid != os.geteuid() or not self._is_beside(pid):
                return False
            if not self._name:
                self._name = view_name(root_descriptors(self._union), self._union.options, self._serve, self._mount)
        except OSError:
            return False
        return name == self._name

    def withdraw(self) -> None:
        """Stop offering the view: the union is about to get other lowers."""
        self._is_withdrawn = True

    def give(self, pid: int) -> None:
        """Note that process `pid` was led to the view."""
        log.info("process %d is given the view of the lowers", pid)

    def note_asked(self, uid: int, pid: int) -> None:
        """Note that process `pid` with the fsuid `uid` calls statfs(2) on the union.

        Container tools do that to see whether a union is mounted, just before they mount the stack below it. So of
        several unions with the same lowers, the one that was asked for last has the view that is wanted."""
        try:
            if uid == os.geteuid() and self._is_beside(pid):
                self.asked_ns = time.monotonic_ns()
        except OSError:
            pass  # the process has ended

    def _is_beside(self, pid: int) -> bool:
        """Whether a process, which waits for us, has the namespaces in which the union is mounted, and their root."""
        if os.readlink("/proc/self") != str(os.getpid()):
            return False  # another pid namespace's /proc, in which `pid` means another process
        if tuple(os.stat(f"/proc/{pid}/ns/{way}").st_ino for way in _WAYS) != self._namespaces:
            return False
        return os.readlink(f"/proc/{pid}/root") == "/"
