"""READDIR and READDIRPLUS: fill a reply with as many entries of a listing as fit.

Knows the Union and the layout of an entry. Keeps no state between requests: each brings the cookie to resume after.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from unionfs.core.attrs import IFDIR
from unionfs.core.union import Union
from unionfs.fuse.kernel import abi, encode

_DIRENT: Final = abi.DIRENT.size
_DIRENTPLUS: Final = abi.DIRENTPLUS.size
_LEAST: Final = _DIRENTPLUS + 8  # bytes of a line
_DOT_DOT: Final = 2  # the cookie of ".."; that of "." is less


def readdir(union: Union, nodeid: int, cookie: int, size: int) -> list[bytes]:
    """Return the encoded entries after `cookie`, up to `size` bytes; none at the end.

    Raises: as Union.readdir; EINVAL when not even one entry fits.
    """
    lines: list[bytes] = []
    room = size
    for name, after, ino, kind in union.readdir(nodeid, cookie):
        room -= _DIRENT + ((len(name) + 7) & ~7)
        if room < 0:
            break
        lines.append(encode.dirent(name, after, ino, kind))
    return _some(lines, room)


def readdirplus(union: Union, encoder: encode.Encoder, nodeid: int, cookie: int, size: int) -> list[bytes]:
    """As `readdir`, with the result of a lookup of each entry, which counts as one lookup.

    ".", ".." and entries whose lookup fails come without it and uncounted: the kernel looks them up if it needs to.
    An error after the first entry is left for the next request to find, so that no counted entry is lost.
    """
    lines: list[bytes] = []
    room = size
    before = cookie
    try:
        while some := union.names(nodeid, before, size // _LEAST + 1):
            for after, name in some:
                room -= _DIRENTPLUS + ((len(name) + 7) & ~7)
                if room < 0:
                    break
                line = None
                if after <= _DOT_DOT:
                    line = encode.bare_direntplus(name, after, union.dot_ino(nodeid, after), IFDIR)
                else:
                    try:
                        entry = union.find(nodeid, name, True)
                        if entry is not None:
                            line = encoder.direntplus(entry, name, after)
                    except FileNotFoundError:
                        pass
                    except OSError:
                        line = _without_entry(union, nodeid, before, after)
                if line is not None:
                    lines.append(line)
                before = after
            if lines or room < 0:
                break
    except OSError:
        if not lines:
            raise
    finally:
        union.record_listed()
    return _some(lines, room)


def _without_entry(union: Union, nodeid: int, before: int, cookie: int) -> bytes | None:
    """Encode the entry with `cookie`, the next after `before`, without a lookup; None if it has gone."""
    for name, after, ino, kind in union.readdir(nodeid, before):
        return encode.bare_direntplus(name, after, ino, kind) if after == cookie else None
    return None


def _some(lines: list[bytes], room: int) -> list[bytes]:
    if not lines and room < 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return lines
