"""The superblock of a squashfs, by which a file is recognised before it is mounted. Pure.

Source: Documentation/filesystems/squashfs.rst and fs/squashfs/squashfs_fs.h of Linux: 96 bytes, little endian.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from layers.errors import Refused

SIZE: Final = 96
"""Bytes of the superblock."""

MAGIC: Final = b"hsqs"
_SUPERBLOCK: Final = Struct("<4sIIIIHHHHHHQQQQQQQQ")
_VERSION: Final = (4, 0)
_COMPRESSIONS: Final = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
_NONE: Final = (1 << 64) - 1
"""Start of a table that the file does not have."""
_WHAT: Final = "opening an image"


class Superblock(NamedTuple):
    """The fields of the superblock that are needed."""

    bytes_used: int  # of the file, from the superblock on
    compression: str


def has_xattrs(data: bytes) -> bool:
    """Whether files may have extended attributes, by the first SIZE bytes of a squashfs that `parse` has taken. Without
    the table of them no reader finds any, whatever the inodes say."""
    start: int = _SUPERBLOCK.unpack(data[:SIZE])[14]
    return start != _NONE


def parse(data: bytes, room: int, path: str) -> Superblock:
    """Check the first SIZE bytes of a squashfs. `room`: bytes of the file from there on.

    Raises: Refused for another format or version, and if the file is shorter than the superblock says.
    """
    if len(data) < SIZE or not data.startswith(MAGIC):
        raise Refused(_WHAT, path, "it is no squashfs")
    fields = _SUPERBLOCK.unpack(data[:SIZE])
    compression, version, used = fields[5], (fields[9], fields[10]), fields[12]
    if version != _VERSION:
        raise Refused(_WHAT, path, f"its squashfs has version {version[0]}.{version[1]}; only 4.0 is read")
    if compression not in _COMPRESSIONS:
        raise Refused(_WHAT, path, f"its squashfs has the unknown compression {compression}")
    if used < SIZE or used > room:
        why = f"it is truncated: its squashfs has {used} bytes, and the file {room}"
        raise Refused(_WHAT, path, why, hint="copy or download it again")
    return Superblock(used, _COMPRESSIONS[compression])
