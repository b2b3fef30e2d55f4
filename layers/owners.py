"""Owners, modes and devices that this process cannot give to a file, kept beside it in an extended attribute.

Pure. The attribute is the one that container tools use for the same purpose (containers/storage,
`user.containers.override_stat`): `UID:GID:MODE:TYPE` with MODE in octal and TYPE one of file, dir, symlink, pipe,
socket, block-MAJOR-MINOR, char-MAJOR-MINOR.
"""

from __future__ import annotations

import re
import stat
from typing import Final, NamedTuple

XATTR: Final = "user.containers.override_stat"

MAPPED: Final = "mapped"
"""Files get their owners: this process is root, or root of a user namespace that has all of them."""
NOTED: Final = "noted"
"""Files belong to this process; the attribute says whose they should be."""

_SHAPE: Final = re.compile(
    rb"([0-9]{1,10}):([0-9]{1,10}):([0-7]{1,5})(?::(file|dir|symlink|pipe|socket|(block|char)-([0-9]{1,8})-([0-9]{1,8})))?"
)
_TYPES: Final = {
    stat.S_IFREG: b"file",
    stat.S_IFDIR: b"dir",
    stat.S_IFLNK: b"symlink",
    stat.S_IFIFO: b"pipe",
    stat.S_IFSOCK: b"socket",
}
_KINDS: Final = {name: kind for kind, name in _TYPES.items()} | {b"block": stat.S_IFBLK, b"char": stat.S_IFCHR}


class Override(NamedTuple):
    """What a file should be. `kind` holds S_IFMT bits, 0 when it is what it seems; `device` is for devices."""

    uid: int
    gid: int
    mode: int
    kind: int = 0
    device: tuple[int, int] = (0, 0)


def write(override: Override) -> bytes:
    """The attribute's value."""
    kind = _TYPES.get(override.kind, b"file")
    if override.kind in (stat.S_IFBLK, stat.S_IFCHR):
        kind = b"%s-%d-%d" % (b"block" if override.kind == stat.S_IFBLK else b"char", *override.device)
    return b"%d:%d:%04o:%s" % (override.uid, override.gid, override.mode, kind)


def read(value: bytes) -> Override | None:
    """What the attribute says; None when it is malformed."""
    match = _SHAPE.fullmatch(value)
    if match is None:
        return None
    kind = _KINDS.get(match[5] or match[4] or b"", 0)
    device = (int(match[6]), int(match[7])) if match[5] else (0, 0)
    override = Override(int(match[1]), int(match[2]), int(match[3], 8), kind, device)
    return override if override.uid < 2**32 - 1 and override.gid < 2**32 - 1 and override.mode <= 0o7777 else None
