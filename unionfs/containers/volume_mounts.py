"""The volumes of one container: bind mounts, unions over overlay volumes, and the copies that fill empty volumes.

    CONTAINER/volumes/N/{upper,work,merged}   the union of an overlay volume, removed when the container ends

Does not mount anything.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from unionfs.containers.config import Volume
from unionfs.containers.record import Container
from unionfs.containers.volumes import VolumeStore, anonymous_names
from unionfs.launcher.spec import Bind
from unionfs.trees.open_beneath import open_in_root
from unionfs.trees.remove import remove_path

_OVERLAYS: Final = "volumes"


def binds(container: Container) -> tuple[Bind, ...]:
    """The bind mounts of the container's volumes."""
    overlays = dict(overlay_volumes(container))
    return (
        *(Bind(directory, path) for path, directory in anonymous_volumes(container)),
        *(
            Bind(
                os.path.join(overlays[volume], "merged") if volume in overlays else volume.source,
                volume.target,
                volume.read_only,
            )
            for volume in container.config.mounts.volumes
        ),
    )


def overlay_volumes(container: Container) -> list[tuple[Volume, str]]:
    """The overlay volumes, each with the directory of its branches."""
    overlays = [volume for volume in container.config.mounts.volumes if volume.overlay]
    directory = os.path.join(container.directory, _OVERLAYS)
    return [(volume, os.path.join(directory, str(number))) for number, volume in enumerate(overlays)]


def make_overlays(container: Container) -> None:
    """Make the directories of these unions, empty. Raises: OSError."""
    remove_overlays(container)
    for volume, directory in overlay_volumes(container):
        for part in ("upper", "work", "merged"):
            os.makedirs(os.path.join(directory, part), 0o755, exist_ok=True)
        # The root of the union shows the upper's mode, so the upper gets the volume's.
        os.chmod(os.path.join(directory, "upper"), stat.S_IMODE(os.stat(volume.source).st_mode))


def remove_overlays(container: Container) -> None:
    """Remove the directories of these unions. Raises: OSError."""
    remove_path(os.path.join(container.directory, _OVERLAYS))


def anonymous_volumes(container: Container) -> list[tuple[str, str]]:
    """The anonymous volumes: path in the container, and the directory shown there."""
    store = VolumeStore(container.root)
    targets = container.config.mounts.anonymous
    return [(path, store.path(name)) for path, name in zip(targets, anonymous_names(container), strict=True)]


def make_and_populate(container: Container) -> None:
    """Make missing volumes in the store, and copy the root filesystem's files at the target into each empty
    volume. Raises: OSError.

    Preconditions: the container's union is mounted.
    """
    store = VolumeStore(container.root)
    mounts = container.config.mounts
    wanted = [
        (path, store.create(name, anonymous=True).directory)
        for path, name in zip(mounts.anonymous, anonymous_names(container), strict=True)
    ]
    for volume in mounts.volumes:
        if volume.name:
            data = store.create(volume.name).directory
            wanted += [(volume.target, data)] if volume.populate else []
    empty = [(path, data) for path, data in wanted if not os.listdir(data)]
    if not empty:
        return
    root_fd = os.open(container.merged, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path, data in empty:
            _populate(root_fd, path, data, owner=(0, 0) if _has_one_id(container) else None)
    finally:
        os.close(root_fd)


def _has_one_id(container: Container) -> bool:
    return sum(count for _, _, count in container.facts.uid_map) == 1


def _populate(root_fd: int, path: str, data: str, owner: tuple[int, int] | None) -> None:
    """Replace `data`, an empty directory, atomically by a copy of `path`, which is built beside it."""
    new = f"{data}.{os.getpid()}"
    remove_path(new)
    try:
        _copy_directory(root_fd, path, new, owner)
        os.rename(new, data)
    except OSError as error:
        remove_path(new)
        if error.errno != errno.ENOTEMPTY:  # another container was faster
            raise


def _copy_directory(root_fd: int, path: str, new: str, owner: tuple[int, int] | None) -> None:
    try:
        source_fd = open_in_root(root_fd, path, os.O_PATH | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        os.mkdir(new, 0o755)
        return
    from unionfs.containers.copy import Copy  # late: few volumes need filling

    try:
        parent_fd = os.open(os.path.dirname(new), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            Copy(owner).run(source_fd, ".", parent_fd, os.path.basename(new))
        finally:
            os.close(parent_fd)
    finally:
        os.close(source_fd)
