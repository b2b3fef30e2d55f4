"""Open files under passthrough: which branch's file the kernel reads and writes by itself for each node.

The kernel's rules (fs/fuse/iomode.c): all opens of one inode that overlap in time have the same backing file, or none
of them has one and all go through the page cache; an open that breaks this fails with EIO. So an inode that is still
open by its lower file cannot be opened by the copy in the upper. Its node then gets another number: the open is
answered ESTALE, the kernel looks the name up again, finds the new number and opens that. Descriptors opened before keep
the lower's data, as on the kernel's overlay.

The record of nodes, where there is one, has the open files: the kernel's opens and backing ids outlive a daemon.
Knows descriptors and the device. Does not know the union or the layout of messages.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import Final

from unionfs.core.node_record import OPENED, OPENED_TO_WRITE, NodeRecord
from unionfs.core.recorded_node import OpenFile
from unionfs.fuse.kernel.data import HasFd
from unionfs.fuse.kernel.device import Device

log = logging.getLogger(__name__)

PLAIN: Final = 0
"""No backing file: reads and writes are messages."""


class Opens:
    """The open files of one mount. Used on the loop's thread only."""

    def __init__(self, device: Device, record: NodeRecord | None) -> None:
        """`record`: where another daemon finds the open files when this one dies; the files that it has are open
        already."""
        self._device = device  # immutable
        self._record = record  # immutable
        self._open: dict[int, OpenFile] = record.opens if record is not None else {}  # by node id
        self._plain_opens = 0
        self.written = {nodeid for nodeid, found in self._open.items() if found.writers}
        """Nodes open for writing: their attributes change without messages."""
        if record is not None:
            for backing_id in record.lost_backing_ids():
                if device.close_backing(backing_id):
                    record.backing_given(backing_id)

    def __len__(self) -> int:
        """Return the number of nodes that are open."""
        return len(self._open)

    @property
    def plain_opens(self) -> int:
        """The number of opens without a backing file so far."""
        return self._plain_opens if self._record is None else self._record.plain_opens

    def is_elsewhere(self, nodeid: int, file: HasFd, *, plain: bool = False) -> bool:
        """Whether the node is open with another backing file than `file`, or with any backing file although the new
        open is `plain`: then the kernel would refuse the new open."""
        found = self._open.get(nodeid)
        return found is not None and found.backing_id != PLAIN and (plain or found.identity != _identity(file))

    def open(self, nodeid: int, file: HasFd, *, writes: bool, plain: bool = False) -> int:
        """Count an open of the node, by `file` or `plain`. Returns the backing id for the kernel, or PLAIN.
        Preconditions: not `is_elsewhere`."""
        record = self._record
        found = self._open.get(nodeid)
        if found is None:
            backing_id = PLAIN if plain else self._backing_id(file)
            found = self._open[nodeid] = OpenFile(nodeid, backing_id, _identity(file))
        found.count += 1
        if writes:
            found.writers += 1
            self.written.add(nodeid)
        if record is not None:
            if found.slot:
                record.count_opens(found)
            else:
                record.put_open(found)
            record.note(nodeid | OPENED | (OPENED_TO_WRITE if writes else 0))
        if found.backing_id == PLAIN:
            if record is not None:
                record.opened_plainly()
            else:
                self._plain_opens += 1
        return found.backing_id

    def _backing_id(self, file: HasFd) -> int:
        try:
            backing_id = self._device.open_backing(file.fd)
        except OSError as exc:  # ELOOP: a branch on a stacked filesystem
            if not self.plain_opens:
                log.warning("files are opened without passthrough: %s", os.strerror(exc.errno or errno.EIO))
            return PLAIN
        if self._record is not None:
            self._record.backing_given(backing_id)
        return backing_id

    def release(self, nodeid: int, *, wrote: bool) -> None:
        """Count the end of an open, RELEASE."""
        found, record = self._open.get(nodeid), self._record
        if found is None:
            return
        found.count -= 1
        if wrote:
            found.writers -= 1
            if found.writers <= 0:
                self.written.discard(nodeid)
        if found.count > 0:
            if record is not None:
                record.count_opens(found)
            return
        if record is not None:
            record.backing_closing(found.backing_id)
            if found.slot:
                record.drop(found.slot)
        del self._open[nodeid]
        if found.backing_id != PLAIN:
            self._device.close_backing(found.backing_id)

    def take_back(self, note: int) -> None:
        """Undo an open that the previous daemon has counted, but not answered."""
        self.release(note & ~(OPENED | OPENED_TO_WRITE), wrote=bool(note & OPENED_TO_WRITE))


def _identity(file: HasFd) -> tuple[int, int]:
    st = os.fstat(file.fd)
    return st.st_dev, st.st_ino
