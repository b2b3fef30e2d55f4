"""Layers of a container that are in another user's store, whose owner may remove them at any moment.

They are checked before the container starts. While it runs, its monitor watches their directories, and ends the
container when one is removed: programs would take files that vanish one by one for files that never existed. On a
network filesystem a removal on another machine is not reported; there, and beyond the limit of inotify instances
(fs.inotify.max_user_instances), programs get errors or miss files.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from unionfs.containers.record import Container
from unionfs.launcher.errors import LaunchError
from unionfs.launcher.monitor import RootfsMounts
from unionfs.syscalls import inotify

_REMOVED: Final = "the owner of the store has removed this layer of the image"
_GONE: Final = inotify.MOVE_SELF | inotify.DELETE_SELF | inotify.UNMOUNT
_CHILD_GONE: Final = inotify.MOVED_FROM | inotify.DELETE


def foreign_layers(container: Container) -> list[str]:
    """The lowers of a container's image that are in another store than the container: ROOT/layers/HEX/diff."""
    if container.config.image is None:
        return []
    own = container.root + os.sep
    return [lower for lower in container.config.rootfs.lowers if not lower.startswith(own) and _is_layer(lower)]


def _is_layer(path: str) -> bool:
    parts = path.split(os.sep)
    return len(parts) > 3 and (parts[-3], parts[-1]) == ("layers", "diff")


def check_and_watch(container: Container, rootfs_mounts: RootfsMounts) -> None:
    """Check that the layers are there, reached without a symbolic link, and have the monitor watch them.

    Raises: LaunchError.
    """
    layers = foreign_layers(container)
    if not layers:
        return
    with contextlib.suppress(OSError):  # too many instances, or a filesystem that reports nothing
        rootfs_mounts.watched[_watch(layers)] = lambda fd: _removed(fd, layers)
    check(layers)


def check(layers: list[str]) -> None:
    """Raises: LaunchError if one of the directories is not there, or leads out of its store."""
    from layers import lookup
    from layers.errors import LayerError

    for layer in layers:
        try:
            lookup.check_foreign(layer.rsplit(os.sep, 3)[0], layer)
        except LayerError as error:
            raise LaunchError("", "", str(error), hint=error.hint) from error


def _watch(layers: list[str]) -> int:
    fd = inotify.init()
    try:
        for layer in layers:
            inotify.watch(fd, os.path.dirname(layer))
    except OSError:
        os.close(fd)
        raise
    return fd


def _removed(fd: int, layers: list[str]) -> LaunchError | None:
    """The failure of a container one of whose layers is removed, by the events of `_watch`; None for other changes."""
    for event in inotify.read(fd):
        if event.mask & _GONE or (event.mask & _CHILD_GONE and event.name == b"diff"):
            gone = [layer for layer in layers if not os.path.isdir(layer)]
            path = gone[0] if gone else layers[0]
            return LaunchError("running the container", path, _REMOVED, hint="pull the image again")
    return None
