"""List mounts by /proc/self/mountinfo (proc_pid_mountinfo(5)), and unmount them.

Never accesses the mounted tree itself: a `stat` on a mount whose daemon is dead or stuck would wait for it.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.support.timing import limit

_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo. `options` are the superblock's."""

    mountpoint: Path
    fstype: str
    source: str
    options: str


def mounts() -> list[Mount]:
    """Every mount of this mount namespace, in the order of mounting."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        left, right = line.split(b" - ", 1)
        fstype, source, options = right.split(b" ", 2)
        found.append(
            Mount(
                Path(os.fsdecode(_unescape(left.split(b" ")[4]))),
                *map(os.fsdecode, (fstype, _unescape(source), options)),
            )
        )
    return found


def mount_at(path: Path) -> Mount | None:
    """The topmost mount whose mountpoint is exactly `path` (which must be absolute and free of symlinks)."""
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == path), None)


def unmount_below(top: Path) -> list[Path]:
    """Detach all mounts at or below `top`, last mounted first, and return them.

    Detaching is lazy, so it neither waits for a daemon nor fails because the mount is in use. Mounts that this process
    may not unmount itself are unmounted by fusermount3.
    """
    gone = []
    for mount in reversed(mounts()):
        if mount.mountpoint == top or top in mount.mountpoint.parents:
            detach(mount.mountpoint)
            gone.append(mount.mountpoint)
    return gone


def detach(mountpoint: Path) -> None:
    """`umount -l` without following or accessing the mountpoint. No error if it is unmounted already."""
    as_root = ["umount", "--no-canonicalize", "--lazy", os.fspath(mountpoint)]
    as_user = ["fusermount3", "-u", "-z", os.fspath(mountpoint)]
    subprocess.run(
        as_root if os.geteuid() == 0 else as_user,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=limit(20),
        check=False,
    )


def _unescape(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda octal: bytes([int(octal[1], 8)]), field)
