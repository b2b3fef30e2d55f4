"""The attributes and names in replies of the transport behind libfuse, as pyfuse3's values.

pyfuse3 has one field, st_ino, for the number that the kernel uses in requests and the number that stat(2) shows. The
underlying struct fuse_entry_param has two. st_ino must survive a remount and node ids must not be reused, so they
cannot be the same.
"""

from __future__ import annotations

import ctypes
import logging
import os
from typing import Final

from pyfuse3 import EntryAttributes

from unionfs.core.attrs import Attrs, Entry

log = logging.getLogger(__name__)

_INO_OFFSET: Final = object.__basicsize__ + 8 + 8 + 8
"""Offset of st_ino in EntryAttributes: after the object's head, fuse_entry_param's ino and generation, and st_dev."""


class AttributeReplies:
    """Makes pyfuse3's values from the union's."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s  # of names and attributes; changed by the adapter
        self._generation = int.from_bytes(os.urandom(4), "little") | 1  # immutable: of handles of this mount
        self._splits_ino = _can_split_ino()  # immutable

    def entry(self, entry: Entry) -> EntryAttributes:
        return self.node(entry.nodeid, entry.attrs)

    def node(self, nodeid: int, attrs: Attrs) -> EntryAttributes:
        out = EntryAttributes()
        out.st_ino = nodeid
        out.generation = self._generation
        if self._splits_ino:
            _set_ino(out, attrs.ino)
        out.entry_timeout = out.attr_timeout = self.timeout_s
        out.st_mode, out.st_nlink = attrs.mode, attrs.nlink
        out.st_uid, out.st_gid, out.st_rdev = attrs.uid, attrs.gid, attrs.rdev
        out.st_size, out.st_blocks, out.st_blksize = attrs.size, attrs.blocks, attrs.blksize
        out.st_atime_ns, out.st_mtime_ns, out.st_ctime_ns = attrs.atime_ns, attrs.mtime_ns, attrs.ctime_ns
        return out

    def listed(self, ino: int, kind: int) -> EntryAttributes:
        """Return a listing entry without attributes: node id 0, so the kernel caches nothing (fuse_direntplus)."""
        out = EntryAttributes()
        if self._splits_ino:
            _set_ino(out, ino)
        else:
            out.st_ino = ino
        out.st_mode = kind
        return out


def _set_ino(out: EntryAttributes, ino: int) -> None:
    ctypes.c_uint64.from_address(id(out) + _INO_OFFSET).value = ino


def _can_split_ino() -> bool:
    """Whether EntryAttributes has the expected layout. If not, st_ino shows the node id and a warning is logged."""
    probe = EntryAttributes()
    number = 0x0123_4567_89AB_CDEF
    probe.st_ino = number
    words = (ctypes.c_uint64 * 4).from_address(id(probe) + object.__basicsize__)
    if words[0] == number and words[3] == number and words[1] == words[2] == 0:
        return True
    log.warning("this pyfuse3 is laid out differently: st_ino shows node ids, which change with every mount")
    return False
