"""Remove a container and its changes, including files of subordinate ids."""

from __future__ import annotations

import os

from unionfs.containers.errors import ContainerError
from unionfs.containers.ids import id_map_of, my_ids
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.containers.volumes import VolumeStore, anonymous_names
from unionfs.drivers import driver as drivers
from unionfs.drivers.names import NAMES
from unionfs.launcher import idmap, userns
from unionfs.trees.remove import remove_path


def remove(store: ContainerStore, container: Container, *, volumes: bool = False, mine: bool = False) -> None:
    """Remove the container, and with `volumes` its anonymous volumes. `mine`: as in ContainerStore.remove.

    Raises: ContainerError, LaunchError.
    """
    id_map, driver = id_map_of(container), container.config.rootfs.driver
    try:
        take_back(container)
        store.remove(container, lambda path: _remove_mapped(id_map, path, driver), mine=mine)
        for name in anonymous_names(container) if volumes else ():
            VolumeStore(store.root).remove(name, lambda path: _remove_mapped(id_map, path, driver))
    except OSError as error:
        raise ContainerError.of("removing the container", error) from error


def take_back(container: Container) -> None:
    """Remove files that a killed apply has built on this machine and not renamed into place. Raises: OSError."""
    if os.path.lexists(container.journal):
        from unionfs.changes import apply as applying

        applying.take_back(container.journal)


def remove_leftovers(store: ContainerStore, container: Container) -> None:
    """Delete the files of a container that is hidden already (ContainerStore.hide). Raises: OSError, LaunchError."""
    id_map, driver = id_map_of(container), container.config.rootfs.driver
    store.finish_removals(container.id, lambda path: _remove_mapped(id_map, path, driver))


def remove_broken(store: ContainerStore, container_id: str) -> None:
    """Remove a container whose record cannot be read. Raises: ContainerError, LaunchError."""
    id_map = my_ids()
    try:
        store.remove_broken(container_id, lambda path: _remove_mapped(id_map, path, *NAMES))
    except OSError as error:
        raise ContainerError.of("removing the container", error) from error


def remove_volume(store: VolumeStore, name: str) -> None:
    """Remove a volume, including files of all ids of this user. Raises: ContainerError, OSError, LaunchError."""
    store.find(name)

    def body() -> bytes:
        store.remove(name, remove_path)
        return b""

    userns.call(my_ids(), body)


def _remove_mapped(id_map: idmap.NamespaceMap | None, path: str, *names: str) -> None:
    """Remove a tree: in this process if it has no files of other ids, else as root of a namespace with these ids."""

    def body() -> bytes:
        for name in names:
            drivers.by_name(name).remove(path)
        remove_path(path)
        return b""

    try:
        body()
    except PermissionError:
        userns.call(id_map, body)
