"""The driver `vfs`: a full copy of the layers, made when the container is first mounted. Works everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final

from unionfs.drivers import merged_copy
from unionfs.drivers.driver import DriverError, MountRequest, RootfsMounts
from unionfs.syscalls import mounts
from unionfs.trees.remove import remove_path

is_whole: Final = True


def check(root: str, lowers: Sequence[str]) -> None:
    """Check nothing: whether the disk has enough space is known only after copying."""


def mount(request: MountRequest, rootfs_mounts: RootfsMounts) -> None:
    fill(request, _begin, request.union.lowers)
    show(request, rootfs_mounts)


def remove(directory: str) -> None:
    """Remove nothing: all are ordinary files."""


def fill(request: MountRequest, begin: Callable[[str], None], lowers: Sequence[str]) -> None:
    """Fill an empty upper with a copy of the merged lowers. It is built beside the upper: a crash leaves all or none.

    `begin` makes the directory to which `lowers` are added. Raises: DriverError.
    """
    upper = request.union.upper
    assert upper is not None
    if os.path.isdir(upper) and os.listdir(
        upper
    ):  # not empty, so it was copied before: a copy has at least the mountpoints
        return
    new = os.path.join(request.directory, "upper.new")
    try:
        remove_path(new)
        begin(new)
        if lowers:
            merged_copy.add(lowers, new, unmapped_as_root=request.union.unmapped_as_root, hidden=request.union.hidden)
        os.rename(new, upper)
    except OSError as error:
        remove_path(new)
        raise DriverError.of("copying the layers", error) from error


def show(request: MountRequest, rootfs_mounts: RootfsMounts) -> None:
    """Bind the upper to the mountpoint. Raises: DriverError."""
    try:
        mounts.mount(request.union.upper, request.merged, None, mounts.MS_BIND)
    except OSError as error:
        raise DriverError.of("mounting the copy", error) from error
    rootfs_mounts.add(request.merged)


def _begin(path: str) -> None:
    os.mkdir(path, 0o755)
