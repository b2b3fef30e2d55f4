"""The record of a file of the upper whose data are, in whole or in part, still a lower file's (core.partial). Pure.

It is the value of markers.PARTIAL_XATTR: decimal numbers, separated by spaces.
"""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

_VERSION: Final = b"1"


class Before(NamedTuple):
    """The attributes that filling a file changes besides its data; they are restored afterwards."""

    mtime_ns: int
    mode: int  # as on disk
    capability: bytes  # security.capability; empty: none


class Record(NamedTuple):
    """The value of markers.PARTIAL_XATTR."""

    limit: int  # bytes from here on are never the lower's
    size: int  # of the lower file when it was copied up, in bytes
    mtime_ns: int  # likewise
    ino: int  # likewise
    own_ino: int = 0  # inode number of the upper's file, when it got its first block; 0: it has none
    born_ns: int = 0  # its birth time; 0: the filesystem has none
    before: Before | None = None  # set while the file is being filled


def encode(record: Record) -> bytes:
    """Encode a record as the value of the attribute: decimal numbers, a capability in hexadecimal."""
    text = b"%s %d %d %d %d %d %d" % (_VERSION, *record[:6])
    if record.before is None:
        return text
    mtime_ns, mode, capability = record.before
    return text + b" %d %d %s" % (mtime_ns, mode, capability.hex().encode() or b"-")


def decode(value: bytes) -> Record:
    """Decode a record. EIO if it is damaged or of another version."""
    words = value.split(b" ")
    try:
        if words[0] != _VERSION or len(words) not in (7, 10):
            raise ValueError
        numbers = [int(word) for word in words[1:7]]
        before = None
        if len(words) == 10:
            capability = b"" if words[9] == b"-" else bytes.fromhex(words[9].decode())
            before = Before(int(words[7]), int(words[8]), capability)
    except ValueError:
        raise OSError(errno.EIO, f"a record of a partial file cannot be read: {value[:80]!r}") from None
    return Record(numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], before)
