"""Make FUSE usable on machines without udev and systemd, such as a bare chroot.

There /dev/fuse or /etc/mtab is missing, or /dev/fuse is closed to ordinary users; root mends that.
"""

from __future__ import annotations

import os
import platform
import stat
import subprocess
from pathlib import Path

from tests.support.timing import limit

_FUSE = Path("/dev/fuse")
_FUSE_DEVICE = os.makedev(10, 229)  # FUSE_MINOR in <linux/miscdevice.h>
_EVERYBODY_MAY = 0o666  # the mode that udev gives it on every distribution
_MTAB = Path("/etc/mtab")  # fusermount3 searches a mount there before it unmounts it


class NoFuseError(Exception):
    """FUSE cannot be used here; the message says why, and how to change that."""


def open_fuse_device() -> Path:
    """/dev/fuse, open to all users, on a machine on which all users can unmount. Root makes missing files.

    Raises: NoFuseError when this process may not mend it.
    """
    if os.geteuid() == 0:
        _mend()
    if not os.path.lexists(_MTAB):
        raise NoFuseError("/etc/mtab does not exist (as root: ln -s ../proc/self/mounts /etc/mtab)")
    if not _FUSE.exists():
        raise NoFuseError("/dev/fuse does not exist (as root: modprobe fuse)")
    if stat.S_IMODE(_FUSE.stat().st_mode) & _EVERYBODY_MAY != _EVERYBODY_MAY:
        raise NoFuseError("/dev/fuse is closed to ordinary users (as root: chmod 666 /dev/fuse)")
    return _FUSE


def _mend() -> None:
    if not os.path.lexists(_MTAB):
        _MTAB.symlink_to("../proc/self/mounts")  # as systemd-tmpfiles makes it
    if not _FUSE.exists():
        if not _kernel_has_fuse():
            subprocess.run(["modprobe", "fuse"], capture_output=True, check=False, timeout=limit(30))
        if _kernel_has_fuse() and not _FUSE.exists():
            os.mknod(_FUSE, stat.S_IFCHR | _EVERYBODY_MAY, _FUSE_DEVICE)
    if _FUSE.exists() and stat.S_IMODE(_FUSE.stat().st_mode) & _EVERYBODY_MAY != _EVERYBODY_MAY:
        _FUSE.chmod(_EVERYBODY_MAY)


def _kernel_has_fuse() -> bool:
    return "\tfuse\n" in Path("/proc/filesystems").read_text()


def lacks_keeper() -> str:
    """Why no mount can outlive its daemon here; empty if one can."""
    return "" if _kernel_release() >= (6, 9) else "the kernel has no FUSE_NOTIFY_RESEND (since Linux 6.9)"


def lacks_passthrough() -> str:
    """Why FUSE passthrough cannot be used here; empty if it can."""
    if _kernel_release() < (6, 9):
        return "the kernel has no FUSE passthrough (since Linux 6.9)"
    if os.geteuid() != 0 or Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
        return "FUSE passthrough is for root of the machine"
    return ""


def _kernel_release() -> tuple[int, ...]:
    return tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
