"""POSIX ACLs in the binary form of their extended attributes: checked, changed with a mode, ids translated. Pure.

acl(5), "OBJECT CREATION AND DEFAULT ACLs", "CORRESPONDENCE BETWEEN ACL ENTRIES AND FILE PERMISSION BITS". The form
(linux/posix_acl_xattr.h): a version of 32 bits, then entries of tag (16), permissions (16) and id (32), little endian.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Collection
from typing import Final

DEFAULT: Final = "system.posix_acl_default"
ACCESS: Final = "system.posix_acl_access"

_ENTRY: Final = struct.Struct("<HHI")
_HEADER: Final = 4
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_ORDER: Final = (_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER)
_VERSION: Final = 2


def _entries(acl: bytes) -> list[list[int]]:
    return [list(_ENTRY.unpack_from(acl, at)) for at in range(_HEADER, len(acl) - _ENTRY.size + 1, _ENTRY.size)]


def _packed(acl: bytes, entries: list[list[int]]) -> bytes:
    return acl[:_HEADER] + b"".join(_ENTRY.pack(*entry) for entry in entries)


def _shifts(entries: list[list[int]]) -> dict[int, int]:
    """Return tag -> shift of its permission bits in a mode. If there is a mask, it has the bits of the group class."""
    has_mask = any(entry[0] == _MASK for entry in entries)
    return {_USER_OBJ: 6, _OTHER: 0, (_MASK if has_mask else _GROUP_OBJ): 3}


def check(acl: bytes) -> None:
    """Refuse an invalid ACL, as the kernel's filesystems do. Raises: EOPNOTSUPP for an unknown version, EINVAL."""
    if len(acl) < _HEADER or int.from_bytes(acl[:_HEADER], "little") != _VERSION:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    entries = _entries(acl)
    tags = [entry[0] for entry in entries]
    once = all(tags.count(tag) == 1 for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER)) and tags.count(_MASK) <= 1
    needs_mask = (_USER in tags or _GROUP in tags) and _MASK not in tags
    known = all(tag in _ORDER and entry[1] <= 7 for tag, entry in zip(tags, entries, strict=True))
    whole = len(acl) == _HEADER + len(entries) * _ENTRY.size
    if not whole or not known or not once or needs_mask or sorted(tags, key=_ORDER.index) != tags:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def apply_mode(default: bytes, mode: int) -> tuple[bytes, int]:
    """Return access ACL and mode of a new object: each class keeps what both the default ACL and `mode` grant."""
    entries = _entries(default)
    shift_of = _shifts(entries)
    kept = mode & ~0o777
    for entry in entries:
        shift = shift_of.get(entry[0])
        if shift is not None:
            entry[1] &= (mode >> shift) & 7
            kept |= entry[1] << shift
    return _packed(default, entries), kept


def with_mode(access: bytes, mode: int) -> bytes:
    """Return the access ACL as chmod(2) to `mode` leaves it."""
    entries = _entries(access)
    shift_of = _shifts(entries)
    for entry in entries:
        shift = shift_of.get(entry[0])
        if shift is not None:
            entry[1] = (mode >> shift) & 7
    return _packed(access, entries)


def mode_of(access: bytes, mode: int) -> int:
    """Return the mode of an object that had `mode`, after the ACL `access` was set."""
    entries = _entries(access)
    shift_of = _shifts(entries)
    kept = mode & ~0o777
    for entry in entries:
        shift = shift_of.get(entry[0])
        if shift is not None:
            kept |= (entry[1] & 7) << shift
    return kept


def says_more(access: bytes) -> bool:
    """Whether an ACL has entries that a mode cannot express; a minimal one (acl(5), "minimum ACLs") has none."""
    return any(entry[0] not in (_USER_OBJ, _GROUP_OBJ, _OTHER) for entry in _entries(access))


def translated(acl: bytes, users: Callable[[int], int], groups: Callable[[int], int]) -> bytes:
    """Return the ACL with the ids of its user and group entries translated."""
    entries = _entries(acl)
    for entry in entries:
        if entry[0] == _USER:
            entry[2] = users(entry[2])
        elif entry[0] == _GROUP:
            entry[2] = groups(entry[2])
    return _packed(acl, entries)


def permits(access: bytes, wanted: int, uid: int, groups: Collection[int], owner_gid: int) -> bool:
    """Whether an access ACL grants all of `wanted` (R_OK, W_OK, X_OK) to a process that is not the file's owner;
    `owner_gid` is the file's group. acl(5), "ACCESS CHECK ALGORITHM"."""
    entries = _entries(access)
    mask = next((bits for tag, bits, _ in entries if tag == _MASK), 7)
    for tag, bits, number in entries:
        if tag == _USER and number == uid:
            return not wanted & ~(bits & mask)
    of_groups = [
        bits & mask
        for tag, bits, number in entries
        if (tag == _GROUP_OBJ and owner_gid in groups) or (tag == _GROUP and number in groups)
    ]
    if of_groups:
        return any(not wanted & ~bits for bits in of_groups)
    return not wanted & ~next((bits for tag, bits, _ in entries if tag == _OTHER), 0)
