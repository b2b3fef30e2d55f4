"""The mounts of this mount namespace, as /proc/self/mountinfo lists them (proc_pid_mountinfo(5)).

Reading the list touches no mounted filesystem, so it answers even when one of them is dead or stuck.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo. `mountpoint` is seen from this process's root; the `minor` names a FUSE connection."""

    mount_id: int
    parent_id: int
    major: int
    minor: int
    root: str
    mountpoint: str
    options: str
    fstype: str
    source: str
    super_options: str  # of the filesystem; those of FUSE have user_id=N, who mounted it

    @property
    def user_id(self) -> int | None:
        """Who mounted a FUSE filesystem; None for others."""
        found = [option for option in self.super_options.split(",") if option.startswith("user_id=")]
        return int(found[0].partition("=")[2]) if found else None


def mounts(pid: int | None = None) -> list[Mount]:
    """Every mount that this process or another one sees, in the order of mounting. OSError when /proc is not mounted,
    the process has gone, or may not be looked into."""
    with open(f"/proc/{pid or 'self'}/mountinfo", "rb") as listing:
        return [_parse(line) for line in listing]


def topmost_at(mountpoint: str) -> Mount | None:
    """The mount seen at `mountpoint`, which must be absolute and free of symlinks; None if nothing is mounted there."""
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == mountpoint), None)


def fd_mount_id(fd: int) -> int:
    """The id of the mount that a descriptor is on, from fdinfo (proc_pid_fdinfo(5)); -1 if the kernel does not say."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        for line in info:
            if line.startswith(b"mnt_id:"):
                return int(line.split()[1])
    return -1


def mount_id(path: str) -> int:
    """The id of the mount that a path is on. Raises what open(2) raises."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return fd_mount_id(fd)
    finally:
        os.close(fd)


def _parse(line: bytes) -> Mount:
    left, right = line.rstrip(b"\n").split(b" - ", 1)
    mount_id, parent_id, device, root, mountpoint, options = left.split(b" ")[:6]
    fstype, source, super_options = right.split(b" ", 2)
    major, minor = device.split(b":")
    texts = map(_text, (root, mountpoint, options, fstype, source, super_options))
    return Mount(int(mount_id), int(parent_id), int(major), int(minor), *texts)


def _text(field: bytes) -> str:
    """Undo the octal escapes of space, tab, newline and backslash."""
    return os.fsdecode(_ESCAPE.sub(lambda octal: bytes([int(octal[1], 8)]), field))
