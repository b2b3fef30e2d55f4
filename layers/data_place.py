"""The place of the data of a partial file, which a union has copied up without all of its data (core.partial).

Knows branches and marks. Changes nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final, NamedTuple

from layers.safe_open import Path
from layers.tree import LayerPath, MarkedView, View
from unionfs import markers, partial_record

MISSING: Final = "missing"
CHANGED: Final = "changed"


class DataPlace(NamedTuple):
    """The branches that have a file's data, and how much."""

    size: int  # of the file, in bytes
    own: int  # bytes that its branch has, holes left out
    is_partial: bool  # whether it may have data of its own; otherwise it has only attributes
    lower: LayerPath | None  # the file below that has the others; None: there is none
    fault: str = ""  # MISSING; CHANGED: the file below is not the one that was copied up; empty: neither


def data_place(view: View, path: Path) -> DataPlace | None:
    """Return where the data of the file are that `view` shows at `path`; None if they are all in its own branch. Raises
    OSError, also for a record that cannot be read."""
    node = MarkedView(view.branches).find(path)
    if node is None or node.kind != stat.S_IFREG:
        return None
    xattrs = node.place.branch.xattrs(node.place.path)
    if not any(mark in xattrs for mark in markers.METACOPY_XATTRS):
        return None
    is_partial = markers.is_partial(xattrs)
    own = _data_bytes(node.place, node.size) if is_partial else 0
    if node.data == node.place:
        return DataPlace(node.size, own, is_partial, None, MISSING)
    record = xattrs.get(markers.PARTIAL_XATTR)
    fault = CHANGED if record is not None and _has_changed(record, node.data) else ""
    return DataPlace(node.size, own, is_partial, node.data, fault)


def _has_changed(value: bytes, lower: LayerPath) -> bool:
    record, st = partial_record.decode(value), _stat(lower)
    return (record.size, record.mtime_ns, record.ino) != (st.st_size, st.st_mtime_ns, st.st_ino)


def _data_bytes(place: LayerPath, size: int) -> int:
    """Count the bytes of a file outside its holes (lseek(2)), or its allocated bytes if it cannot be opened to read."""
    fd = place.branch.open_path(place.path)
    found, at = 0, 0
    try:
        with open(f"/proc/self/fd/{fd}", "rb", buffering=0) as file:
            while at < size:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
                at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                found += at - start
    except PermissionError:
        return min(size, os.fstat(fd).st_blocks * 512)  # in units of 512 bytes (stat(2))
    except OSError as error:
        if error.errno != errno.ENXIO:  # there are no data after this offset
            raise
    finally:
        os.close(fd)
    return found


def _stat(place: LayerPath) -> os.stat_result:
    fd = place.branch.open_path(place.path)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)
