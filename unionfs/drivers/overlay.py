"""The driver `overlay`: the kernel's overlayfs, also in a user namespace, with its marks as `user.` attributes.

    CONTAINER/overlay/l/N           short names of the branches, top first: all must fit into one page of mount(2)
    CONTAINER/overlay/marks/N/...   layers of marks for lowers that are not layers of the store, see `marks`

Sources: Linux Documentation/filesystems/overlayfs.rst, mount(2).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Final

from unionfs.drivers import marks
from unionfs.drivers.driver import DriverError, MountRequest, RootfsMounts
from unionfs.syscalls import mounts
from unionfs.trees.remove import remove_path

is_whole: Final = False

LOWERS_MAX: Final = 500
"""OVL_MAX_STACK of the kernel."""

_OWN: Final = "overlay"
_OLD_KERNEL: Final = "without root it needs Linux 5.11 or newer"
_USE_FUSE: Final = "--driver fuse has no such limit"


def check(root: str, lowers: Sequence[str]) -> None:
    if len(lowers) > LOWERS_MAX:
        raise _too_many(len(lowers))


def mount(request: MountRequest, rootfs_mounts: RootfsMounts) -> None:
    own = os.path.join(request.directory, _OWN)
    try:
        remove_path(own)
        names = os.path.join(own, "l")
        os.makedirs(names, 0o755)
        lowers = _lowers(request, own)
        for number, path in enumerate(lowers):
            os.symlink(path, os.path.join(names, str(number)))
        if request.union.work is not None:  # left by a volatile mount: the kernel refuses to mount while it exists
            remove_path(os.path.join(request.union.work, "work"))
    except OSError as error:
        raise DriverError.of("preparing the overlay", error) from error
    _mount(request, names, len(lowers))
    rootfs_mounts.add(request.merged)


def remove(directory: str) -> None:
    """Remove nothing: all are ordinary files."""


def _lowers(request: MountRequest, own: str) -> list[str]:
    """The lowers, with layers of marks where necessary. Raises: DriverError, OSError."""
    found: list[str] = []
    for number, lower in enumerate(request.union.lowers):
        found += marks.readable(os.path.realpath(lower), os.path.join(own, "marks", str(number)))
    if len(found) == LOWERS_MAX + 1:
        found.pop()  # the lower with mountpoints; without it they are made in the upper
    if len(found) > LOWERS_MAX:
        raise _too_many(len(found))
    return found


def _too_many(count: int) -> DriverError:
    return DriverError(f"the kernel's overlayfs allows {LOWERS_MAX} layers, and there would be {count}", _USE_FUSE)


def _mount(request: MountRequest, names: str, count: int) -> None:
    options = [
        "lowerdir=" + ":".join(map(str, range(count))),
        *(("upperdir=../../upper", "workdir=../../work") if request.union.upper else ()),
        "userxattr",
        *(("volatile",) if request.union.durability == "volatile" else ()),
    ]
    os.chdir(names)
    try:
        mounts.mount(f"overlay:{request.name}", request.merged, "overlay", 0, ",".join(options))
    except OSError as error:
        raise DriverError.of("mounting the kernel's overlayfs", error, _hint_for(error)) from error
    finally:
        os.chdir("/")


def _hint_for(error: OSError) -> str:
    if error.errno == errno.ENODEV:
        return "this kernel has no overlayfs; --driver fuse needs none"
    if error.errno == errno.EPERM:
        return f"{_OLD_KERNEL}; --driver fuse works with older ones"
    return "its filesystem may not support overlayfs (see the kernel's log, dmesg); --driver fuse works on it"
