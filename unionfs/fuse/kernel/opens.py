"""Open files under passthrough: which branch's file the kernel reads and writes by itself for each node.

The kernel's rules (fs/fuse/iomode.c): all opens of one inode that overlap in time have the same backing file, or none
of them has one and all go through the page cache; an open that breaks this fails with EIO. So an inode that is still
open by its lower file cannot be opened by the copy in the upper. Its node then gets another number: the open is
answered ESTALE, the kernel looks the name up again, finds the new number and opens that. Descriptors opened before keep
the lower's data, as on the kernel's overlay.

Knows descriptors and the device. Does not know the union or the layout of messages.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import Final, Protocol

from unionfs.fuse.kernel.device import Device

log = logging.getLogger(__name__)

PLAIN: Final = 0
"""No backing file: reads and writes are messages."""


class HasFd(Protocol):
    """A descriptor that stays open as long as a reference to this object exists."""

    fd: int


class _Open:
    """One node's file, open at least once."""

    __slots__ = ("backing_id", "identity", "count", "writers")

    def __init__(self, backing_id: int, identity: tuple[int, int]) -> None:
        self.backing_id = backing_id  # immutable
        self.identity = identity  # immutable: (st_dev, st_ino) of the backing file
        self.count = 0
        self.writers = 0


class Opens:
    """The open files of one mount. Used on the loop's thread only."""

    def __init__(self, device: Device) -> None:
        self._device = device  # immutable
        self._open: dict[int, _Open] = {}  # by node id
        self.plain_opens = 0  # opens without a backing file so far
        self.written: set[int] = set()
        """Nodes open for writing: their attributes change without messages."""

    def __len__(self) -> int:
        """Return the number of nodes that are open."""
        return len(self._open)

    def is_elsewhere(self, nodeid: int, file: HasFd, *, plain: bool = False) -> bool:
        """Whether the node is open by another file than `file`, or by a file although it is to be opened `plain`, so
        that it cannot be opened so."""
        found = self._open.get(nodeid)
        return found is not None and found.backing_id != PLAIN and (plain or found.identity != _identity(file))

    def open(self, nodeid: int, file: HasFd, *, writes: bool, plain: bool = False) -> int:
        """Count an open of the node, by `file` or `plain`. Returns the backing id for the kernel, or PLAIN.
        Preconditions: not `is_elsewhere`."""
        found = self._open.get(nodeid)
        if found is None:
            backing_id = PLAIN if plain else self._backing_id(file)
            found = self._open[nodeid] = _Open(backing_id, _identity(file))
        found.count += 1
        if writes:
            found.writers += 1
            self.written.add(nodeid)
        if found.backing_id == PLAIN:
            self.plain_opens += 1
        return found.backing_id

    def _backing_id(self, file: HasFd) -> int:
        try:
            return self._device.open_backing(file.fd)
        except OSError as exc:  # ELOOP: a branch on a stacked filesystem
            if not self.plain_opens:
                log.warning("files are opened without passthrough: %s", os.strerror(exc.errno or errno.EIO))
            return PLAIN

    def release(self, nodeid: int, *, wrote: bool) -> None:
        """Count the end of an open, RELEASE."""
        found = self._open.get(nodeid)
        if found is None:
            return
        found.count -= 1
        if wrote:
            found.writers -= 1
            if found.writers <= 0:
                self.written.discard(nodeid)
        if found.count <= 0:
            del self._open[nodeid]
            if found.backing_id != PLAIN:
                self._device.close_backing(found.backing_id)


def _identity(file: HasFd) -> tuple[int, int]:
    st = os.fstat(file.fd)
    return st.st_dev, st.st_ino
