"""Default ACLs: what a new object inherits from its directory when it is not made in place. acl(5), "OBJECT CREATION
AND DEFAULT ACLs".

The binary form is that of the extended attributes (linux/posix_acl_xattr.h): a version of 32 bits, then entries of
tag (16), permissions (16) and id (32), little endian.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final

from unionfs.core.branch import BranchDir
from unionfs.core.marks import proc_path

_ENTRY: Final = struct.Struct("<HHI")
_HEADER: Final = 4
_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x04, 0x10, 0x20
_DEFAULT: Final = "system.posix_acl_default"
_ACCESS: Final = "system.posix_acl_access"


def read_default(path: str) -> bytes | None:
    """The default ACL of a directory, or None if it has none or its filesystem knows none."""
    try:
        return os.getxattr(path, _DEFAULT)
    except OSError as exc:
        if exc.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def apply_mode(default: bytes, mode: int) -> tuple[bytes, int]:
    """The access ACL of a new object and its mode: each class keeps what both the default ACL and `mode` grant."""
    entries = [
        list(_ENTRY.unpack_from(default, at)) for at in range(_HEADER, len(default) - _ENTRY.size + 1, _ENTRY.size)
    ]
    has_mask = any(entry[0] == _MASK for entry in entries)
    shift_of = {_USER_OBJ: 6, _OTHER: 0, (_MASK if has_mask else _GROUP_OBJ): 3}
    kept = mode & ~0o777
    for entry in entries:
        shift = shift_of.get(entry[0])
        if shift is not None:
            entry[1] &= (mode >> shift) & 7
            kept |= entry[1] << shift
    return default[:_HEADER] + b"".join(_ENTRY.pack(*entry) for entry in entries), kept


def inherit(place: BranchDir, leaf: bytes, default: bytes, mode: int, *, is_dir: bool) -> int:
    """Give `leaf` what `default` says and return the mode that results."""
    access, kept = apply_mode(default, mode)
    fd = os.open(leaf, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.fd())
    try:
        if is_dir:
            os.setxattr(proc_path(fd), _DEFAULT, default)
        os.setxattr(proc_path(fd), _ACCESS, access)
    finally:
        os.close(fd)
    return kept
