"""POSIX ACLs as xattrs hold them: struct posix_acl_xattr_header and its entries, <linux/posix_acl_xattr.h>."""

from __future__ import annotations

import re
from typing import Final

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"

_TAGS: Final = {("u", False): 1, ("u", True): 2, ("g", False): 4, ("g", True): 8, ("m", False): 16, ("o", False): 32}
_NOBODY: Final = 0xFFFFFFFF


def acl(text: str) -> bytes:
    """`u::rwx,u:1234:r--,g::r-x,m::rwx,o::---` as the value of the xattr."""
    packed = b"\x02\0\0\0"
    entries = []
    for part in text.split(","):
        match = re.fullmatch(r"([ugmo]):(\d*):([r-][w-][x-])", part)
        assert match is not None, part
        perm = sum(bit for letter, bit in zip(match[3], (4, 2, 1), strict=True) if letter != "-")
        entries.append((_TAGS[match[1], bool(match[2])], perm, int(match[2]) if match[2] else _NOBODY))
    for tag, perm, who in sorted(entries):
        packed += tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little")
    return packed
