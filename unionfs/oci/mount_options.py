"""Options of mounts in config.json: words to flags. Pure.

Source: OCI runtime specification, config.md "Linux mount options"; mount(8).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from unionfs.syscalls import mounts as m

_MS_SYNCHRONOUS: Final = 16  # mount(2), <sys/mount.h>
_MS_MANDLOCK: Final = 64
_MS_DIRSYNC: Final = 128
_MS_NOSYMFOLLOW: Final = 256
_MS_SILENT: Final = 1 << 15
_MS_POSIXACL: Final = 1 << 16
_MS_I_VERSION: Final = 1 << 23
_ATIMES: Final = m.MS_RELATIME | m.MS_NOATIME | m.MS_STRICTATIME

_FLAGS: Final[dict[str, tuple[int, int]]] = {
    "ro": (m.MS_RDONLY, 0), "rw": (0, m.MS_RDONLY),
    "nosuid": (m.MS_NOSUID, 0), "suid": (0, m.MS_NOSUID),
    "nodev": (m.MS_NODEV, 0), "dev": (0, m.MS_NODEV),
    "noexec": (m.MS_NOEXEC, 0), "exec": (0, m.MS_NOEXEC),
    "sync": (_MS_SYNCHRONOUS, 0), "async": (0, _MS_SYNCHRONOUS),
    "remount": (m.MS_REMOUNT, 0),
    "mand": (_MS_MANDLOCK, 0), "nomand": (0, _MS_MANDLOCK),
    "dirsync": (_MS_DIRSYNC, 0),
    "nosymfollow": (_MS_NOSYMFOLLOW, 0), "symfollow": (0, _MS_NOSYMFOLLOW),
    "noatime": (m.MS_NOATIME, _ATIMES), "atime": (0, m.MS_NOATIME),
    "nodiratime": (m.MS_NODIRATIME, 0), "diratime": (0, m.MS_NODIRATIME),
    "relatime": (m.MS_RELATIME, _ATIMES), "norelatime": (0, m.MS_RELATIME),
    "strictatime": (m.MS_STRICTATIME, _ATIMES), "nostrictatime": (0, m.MS_STRICTATIME),
    "lazytime": (m.MS_LAZYTIME, 0), "nolazytime": (0, m.MS_LAZYTIME),
    "silent": (_MS_SILENT, 0), "loud": (0, _MS_SILENT),
    "acl": (_MS_POSIXACL, 0), "noacl": (0, _MS_POSIXACL),
    "iversion": (_MS_I_VERSION, 0), "noiversion": (0, _MS_I_VERSION),
    "defaults": (0, 0),
}  # fmt: skip
"""MS_* bits that a word sets, and that it clears."""

_PROPAGATION: Final = {
    "private": m.MS_PRIVATE, "shared": m.MS_SHARED, "slave": m.MS_SLAVE, "unbindable": m.MS_UNBINDABLE,
}  # fmt: skip
PROPAGATION: Final = {**_PROPAGATION, **{f"r{word}": flag | m.MS_REC for word, flag in _PROPAGATION.items()}}
"""MS_* bits of the words for propagation; those that begin with r also change all mounts below."""

ATTRIBUTES: Final = {
    m.MS_RDONLY: m.MOUNT_ATTR_RDONLY, m.MS_NOSUID: m.MOUNT_ATTR_NOSUID, m.MS_NODEV: m.MOUNT_ATTR_NODEV,
    m.MS_NOEXEC: m.MOUNT_ATTR_NOEXEC, m.MS_NODIRATIME: m.MOUNT_ATTR_NODIRATIME,
    _MS_NOSYMFOLLOW: m.MOUNT_ATTR_NOSYMFOLLOW, m.MS_RELATIME: m.MOUNT_ATTR_RELATIME,
    m.MS_NOATIME: m.MOUNT_ATTR_NOATIME, m.MS_STRICTATIME: m.MOUNT_ATTR_STRICTATIME,
}  # fmt: skip
"""MOUNT_ATTR_* of the MS_* bits that belong to a mount, not to its filesystem."""

_RECURSIVE: Final = (
    *("ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "nodiratime", "diratime", "relatime"),
    *("norelatime", "noatime", "atime", "strictatime", "nostrictatime", "nosymfollow", "symfollow"),
)
"""Words that, after an r, change the mount and all mounts below it (mount_setattr(2))."""
_BINDS: Final = ("bind", "rbind")
_COPY_UP: Final = "tmpcopyup"
_UNSUPPORTED: Final = ("idmap", "ridmap")

WORDS: Final = tuple(sorted((*_FLAGS, *PROPAGATION, *_BINDS, _COPY_UP, *(f"r{word}" for word in _RECURSIVE))))
"""All words that are options of mounts; others are passed to the filesystem."""


class MountOptions(NamedTuple):
    """The meaning of a list of words; a later word has priority."""

    is_bind: bool = False
    is_recursive: bool = False  # rbind
    flags: int = 0  # MS_* to set
    cleared: int = 0  # MS_* to clear on a bind mount
    recursive_set: int = 0  # MS_* to set on the mount and all below it
    recursive_cleared: int = 0
    propagation: tuple[int, ...] = ()  # MS_*, perhaps with MS_REC, in order
    copies_up: bool = False  # tmpcopyup: a tmpfs begins with a copy of the directory at its mountpoint
    data: tuple[str, ...] = ()  # for the filesystem


def parse(words: Iterable[str]) -> MountOptions:
    """The meaning of `options`. Raises: ValueError."""
    found = MountOptions()
    for word in words:
        if word in _FLAGS:
            flags, cleared = _FLAGS[word]
            found = found._replace(
                flags=found.flags & ~cleared | flags, cleared=found.cleared & ~flags | cleared & ~flags
            )
        elif word in PROPAGATION:
            found = found._replace(propagation=(*found.propagation, PROPAGATION[word]))
        elif word in _BINDS:
            found = found._replace(is_bind=True, is_recursive=found.is_recursive or word == "rbind")
        elif word[:1] == "r" and word[1:] in _RECURSIVE:
            flags, cleared = _FLAGS[word[1:]]
            found = found._replace(
                recursive_set=found.recursive_set & ~cleared | flags,
                recursive_cleared=found.recursive_cleared & ~flags | cleared & ~flags,
            )
        elif word == _COPY_UP:
            found = found._replace(copies_up=True)
        elif word in _UNSUPPORTED:
            raise ValueError(f"{word}: mounts with translated ids are not supported")
        elif word:
            found = found._replace(data=(*found.data, word))
    return found


def attributes(flags: int) -> int:
    """The MOUNT_ATTR_* of MS_* bits."""
    return sum(attribute for bit, attribute in ATTRIBUTES.items() if flags & bit)
