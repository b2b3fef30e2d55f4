"""Check a configuration, and describe (`--dry-run`) or make the container."""

from __future__ import annotations

import os
import stat

from unionfs.containers import devices, etc, record, volume_mounts
from unionfs.containers.config import ContainerConfig
from unionfs.containers.errors import ContainerError
from unionfs.containers.ids import my_ids
from unionfs.containers.launch_spec import make_spec, uplink_program
from unionfs.containers.record import Container, Facts
from unionfs.containers.store import ContainerStore
from unionfs.containers.volumes import VolumeStore
from unionfs.core.options import OptionError, check_directory
from unionfs.drivers.driver import DriverError, by_name
from unionfs.drivers.names import FUSE
from unionfs.launcher import plan as plans


def new(store: ContainerStore, config: ContainerConfig, name: str = "") -> Container:
    """The value of the container that `create` would make; changes nothing on disk.

    Raises: ContainerError for a directory, volume or driver that cannot be used.
    """
    check_sources(config)
    if config.devices.names:
        devices.find(*config.devices)  # errors come before the container is made
    id_map = my_ids()
    facts = Facts(
        uid_map=id_map.uids if id_map else (),
        gid_map=id_map.gids if id_map else (),
        unmapped_as_root=id_map is not None and config.rootfs.driver != "overlay",
        skip_unreadable=id_map is not None and config.rootfs.shows_host,
        hidden=(os.path.realpath(store.root),),
        mountpoint_lower=config.mounts_on_rootfs,
    )
    container = record.new(store.root, config, name, facts)
    file = config.rootfs.file
    if file is None:
        return container
    mountpoint = container.image_mountpoint
    return container.with_lowers(tuple(os.path.join(mountpoint, one).rstrip("/") for one in file.directories))


def create(store: ContainerStore, config: ContainerConfig, name: str = "") -> Container:
    """Check the configuration, and make the container's record and directories.

    Raises: ContainerError, LaunchError.
    """
    container = new(store, config, name)
    _check_driver(config, store)
    if config.network.uplink:
        uplink_program(config)
    try:
        for volume in config.mounts.volumes:
            if volume.name:
                VolumeStore(store.root).create(volume.name)
        return store.add(container)
    except OSError as error:
        raise ContainerError.of("making the container", error) from error


def describe(container: Container) -> list[str]:
    """One line for each step of making and running the container. Raises: LaunchError."""
    spec = make_spec(container, container.config.process, my_ids())
    return [
        f"make a container {container.name or 'with a new name'} in {container.directory}",
        *(f"write {bind.source} for {bind.target}" for bind in etc.binds(container)),
        *plans.make(spec).describe(preparation=_describe_unions(container)),
    ]


def _describe_unions(container: Container) -> list[str]:
    unions = [(container.config.rootfs.lowers, container.directory)]
    unions += [((volume.source,), directory) for volume, directory in volume_mounts.overlay_volumes(container)]
    return [
        f"mount the union of {', '.join(lowers)} at {directory}/merged, with changes in {directory}/upper"
        for lowers, directory in unions
    ]


def check_sources(config: ContainerConfig) -> None:
    """Raises: ContainerError if a lower is not a directory, or a volume does not exist."""
    for lower in () if config.rootfs.file is not None else config.rootfs.lowers:  # it is opened when it is mounted
        try:
            check_directory("a lower directory", lower)
        except OptionError as error:
            hint = "pull the image again, and make a new container of it" if config.image is not None else ""
            raise ContainerError("run", "", str(error), hint=hint) from error
    for volume in config.mounts.volumes:
        if volume.name:
            continue
        try:
            is_directory = stat.S_ISDIR(os.stat(volume.source).st_mode)
        except OSError as error:
            raise ContainerError.of("binding the volume", error) from error
        if volume.overlay and not is_directory:
            raise ContainerError("binding the volume", volume.source, "only a directory can be shown with :O")


def _check_driver(config: ContainerConfig, store: ContainerStore) -> None:
    """Raises: ContainerError if the driver cannot make this root filesystem."""
    driver = config.rootfs.driver
    if config.rootfs.shows_host and driver != FUSE:
        why = f"only the {FUSE} driver can show this machine's own /"
        raise ContainerError("run", "", why, hint=f"--driver {FUSE}")
    try:
        by_name(driver).check(store.root, (*config.rootfs.lowers, "mountpoint-lower"))
    except DriverError as error:
        raise ContainerError("", "", str(error), hint=error.hint) from error
