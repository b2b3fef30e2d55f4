"""Read the mounts of this mount namespace from /proc/self/mountinfo (proc_pid_mountinfo(5)).

Reading the list touches no mounted filesystem, so it answers even when one of them is dead or stuck.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo. `mountpoint` starts at this process's root; `minor` is the number of a FUSE connection."""

    mount_id: int
    parent_id: int
    major: int
    minor: int
    root: str
    mountpoint: str
    options: str
    fstype: str
    source: str
    super_options: str  # of the filesystem; FUSE has user_id=N, the user that mounted it

    @property
    def user_id(self) -> int | None:
        """The uid of the user that mounted a FUSE filesystem; None for other filesystems."""
        found = [option for option in self.super_options.split(",") if option.startswith("user_id=")]
        return int(found[0].partition("=")[2]) if found else None


def mounts(pid: int | None = None) -> list[Mount]:
    """Return all mounts in the mount namespace of this process or of `pid`, in the order of mounting.

    Raises: OSError when /proc is not mounted, or the process has ended or may not be inspected.
    """
    with open(f"/proc/{pid or 'self'}/mountinfo", "rb") as listing:
        return [_parse(line) for line in listing]


def topmost_at(mountpoint: str) -> Mount | None:
    """Return the topmost mount at `mountpoint`, an absolute path without symlinks; None if nothing is mounted there."""
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == mountpoint), None)


def fd_mount_id(fd: int) -> int:
    """Return the id of the mount that `fd` is on, from proc_pid_fdinfo(5); -1 if the kernel does not list it."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        for line in info:
            if line.startswith(b"mnt_id:"):
                return int(line.split()[1])
    return -1


def mount_id(path: str) -> int:
    """Return the id of the mount that `path` is on. Raises: OSError, as open(2)."""
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
    if b"\\" in field:
        field = _ESCAPE.sub(lambda octal: bytes([int(octal[1], 8)]), field)
    return os.fsdecode(field)
