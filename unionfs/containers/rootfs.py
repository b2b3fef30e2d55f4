"""The root filesystem of a container: make its branches and mount its union, by the container's driver.

    CONTAINER/mountpoint-lower/   the lowest branch: empty directories and files, as mountpoints
    CONTAINER/mountpoints         paths of mountpoints that were made in the upper, because a layer hides that branch

Without that lowest branch, a mountpoint that the layers lack would be made in the upper, and be listed as a change.
Runs in the monitor or another separate process, as root of the container's user namespace.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, TypedDict

from unionfs import store_files
from unionfs.containers import etc, foreign_layers, volume_mounts
from unionfs.containers.errors import ContainerError
from unionfs.containers.record import Container
from unionfs.core.options import OptionError, Options
from unionfs.core.owners import IdTranslation, OwnerTranslation
from unionfs.drivers.driver import DriverError, MountRequest, by_name, is_whole
from unionfs.drivers.names import FUSE
from unionfs.fuse.options import DEFAULT_TRANSPORT
from unionfs.launcher import idmap
from unionfs.launcher.errors import LaunchError
from unionfs.launcher.monitor import RootfsMounts, unmount_all
from unionfs.syscalls.mounts import MOUNT_ATTR_RDONLY, MS_BIND, MS_REC, MS_SLAVE, mount, set_attributes
from unionfs.syscalls.namespaces import CLONE_NEWNS, set_child_subreaper
from unionfs.trees.open_beneath import open_in_root

if TYPE_CHECKING:
    from unionfs.mount_parent.client import Parent

OWN_MOUNTS: Final = CLONE_NEWNS
"""The namespace that `mounted` needs."""

_OWN_DIRECTORIES: Final = ("/proc", "/sys", "/dev")


def mountpoints_file(container: Container) -> str:
    """The file in which the launcher records the mountpoints that it made, each path ended by NUL."""
    return os.path.join(container.directory, "mountpoints")


def mountpoints(container: Container) -> frozenset[bytes]:
    """Paths of mountpoints in the container, which are not listed as changes while they are empty."""
    try:
        return frozenset(store_files.read_file(mountpoints_file(container)).split(b"\0")) - {b""}
    except FileNotFoundError:
        return frozenset()


def note_mountpoints(container: Container, paths: frozenset[bytes]) -> None:
    """Record further mountpoints that branches of the container have. Raises: OSError."""
    new = paths - mountpoints(container)
    if new:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with open(store_files.open_file(mountpoints_file(container), flags, 0o644), "ab") as file:
            file.write(b"".join(path + b"\0" for path in sorted(new)))


def make_mountpoint_lower(container: Container) -> None:
    """Make the lowest branch, if the container has one. Raises: OSError."""
    if not container.facts.mountpoint_lower:
        return
    config, lower = container.config, container.mountpoint_lower
    os.makedirs(lower, 0o755, exist_ok=True)
    own = () if config.rootfs.shows_host else _OWN_DIRECTORIES
    directories = [*(tmpfs.target for tmpfs in config.mounts.tmpfs), *config.mounts.anonymous, *own]
    files = [bind.target for bind in etc.binds(container)]
    for volume in config.mounts.volumes:
        (directories if stat.S_ISDIR(os.stat(volume.source).st_mode) else files).append(volume.target)
    for path in directories:
        os.makedirs(lower + path, 0o755, exist_ok=True)
    for path in files:
        os.makedirs(os.path.dirname(lower + path), 0o755, exist_ok=True)
        os.close(store_files.open_file(lower + path, os.O_WRONLY | os.O_CREAT, 0o644))


def count_of_daemons(container: Container) -> int:
    """The number of our daemons that serve mounts of the container."""
    return (container.config.rootfs.driver == FUSE) + sum(
        _driver_of(container, directory) == FUSE for _, directory in volume_mounts.overlay_volumes(container)
    )


def _driver_of(container: Container, directory: str) -> str:
    """The driver that mounts the union of a directory."""
    driver = container.config.rootfs.driver
    if is_whole(driver) and directory != container.directory:
        return FUSE  # a whole copy of a volume would cost too much
    return driver


def mount_rootfs(
    container: Container,
    rootfs_mounts: RootfsMounts,
    warn: Callable[[str], None],
    *,
    debug: bool,
    parents: list[Parent] | None = None,
    before: Callable[[], None] = lambda: None,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Mount the union of the root filesystem at `container.merged`. Raises: LaunchError, and what `before` and
    `meanwhile` raise.

    Our daemon is forked by one of `parents`, which is removed from the list, or by this process. `before` is called
    before the union is mounted, while the server of an image file starts; `meanwhile` while our daemon starts, too.
    """
    failures: list[LaunchError | ContainerError | OSError] = []

    def caught() -> None:
        try:
            meanwhile()
        except (LaunchError, ContainerError, OSError) as error:
            failures.append(error)  # raised when the daemon is known, which must be ended then

    foreign_layers.check_and_watch(container, rootfs_mounts)
    wait_for_image = _begin_image(container, rootfs_mounts)
    try:
        before()
        mount_union(container, rootfs_mounts, container.branches, container.directory, warn, debug, parents, caught)
    finally:
        wait_for_image()  # if that has failed, it is the reason for what has failed above
        if failures:
            raise failures[0]


def _begin_image(container: Container, rootfs_mounts: RootfsMounts) -> Callable[[], None]:
    """Begin to mount the container's image file, if it has one: see image_mount.begin."""
    if container.config.rootfs.file is None:
        return lambda: None
    from unionfs.containers import image_mount  # late: few containers need it

    return image_mount.begin(container, rootfs_mounts)


def mount_overlay_volumes(
    container: Container,
    rootfs_mounts: RootfsMounts,
    warn: Callable[[str], None],
    *,
    debug: bool,
    parents: list[Parent] | None = None,
) -> None:
    """Mount the unions of the overlay volumes, as `mount_rootfs` does. Raises: LaunchError."""
    for volume, directory in volume_mounts.overlay_volumes(container):
        mount_union(container, rootfs_mounts, (volume.source,), directory, warn, debug, parents)


def mount_union(
    container: Container,
    rootfs_mounts: RootfsMounts,
    lowers: tuple[str, ...],
    directory: str,
    warn: Callable[[str], None],
    debug: bool,
    parents: list[Parent] | None,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Mount the union of `lowers` and a directory that has upper/, work/ and merged/, at the last. Raises: LaunchError.

    A daemon of ours is forked by one of `parents`, which is taken from the list, or by this process. `meanwhile` is
    called once, while it starts or before.
    """
    driver = _driver_of(container, directory)
    if driver != FUSE:
        meanwhile()
    parent = parents.pop() if parents and driver == FUSE else None
    try:
        union = union_options(container, lowers, directory, driver)
        rootfs = container.config.rootfs
        request = MountRequest(
            union,
            directory,
            root=container.root,
            name=container.name,
            log=container.daemon_log,
            transport=rootfs.transport,
            debug=debug,
            warn=warn,
            keeper=rootfs.keeper,
            parent=parent,
            meanwhile=meanwhile,
        )
        rootfs_mounts.log = container.daemon_log
        by_name(driver).mount(request, rootfs_mounts)
    except OptionError as error:
        raise LaunchError("", "", str(error)) from error
    except DriverError as error:
        raise LaunchError("", "", str(error), hint=error.hint) from error


def union_options(container: Container, lowers: tuple[str, ...], directory: str, driver: str) -> Options:
    """The union of a directory that has upper/ and work/. Preconditions: as root of the container's user namespace.
    Raises: OptionError."""
    facts, rootfs = container.facts, container.config.rootfs
    is_root = directory == container.directory  # not an overlay volume, whose lower may be changed by others
    can_complete = is_root and driver == FUSE and rootfs.transport == DEFAULT_TRANSPORT
    partial_from = rootfs.partial_from if can_complete else 0
    return Options(
        lowers=lowers,
        upper=os.path.join(directory, "upper"),
        work=os.path.join(directory, "work"),
        whiteout=rootfs.whiteout,
        durability=rootfs.durability,
        passthrough=rootfs.passthrough and driver == FUSE,
        metacopy=partial_from > 0,
        partial_from=partial_from,
        unmapped_as_root=facts.unmapped_as_root,
        skip_unreadable=facts.skip_unreadable,
        hidden=facts.hidden,
        without_xattrs=_lowers_without_xattrs(container, lowers),
        **_ownership(driver),
    )


def _lowers_without_xattrs(container: Container, lowers: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the lowers that are in the container's image file, if its squashfs has no extended attributes.

    The identity that was recorded is the superblock; image_mount mounts no file with another one.
    """
    file, within = container.config.rootfs.file, f"{container.image_mountpoint}/"
    if file is None:
        return ()
    from layers import squashfs  # late: few containers need it

    if squashfs.has_xattrs(bytes.fromhex(file.identity)):
        return ()
    return tuple(lower for lower in lowers if f"{lower}/".startswith(within))


def read_upper(container: Container) -> None:
    """Let this process, which ends with the verb, read the container's upper, if its driver has it on a device. Raises:
    ContainerError."""
    if container.config.rootfs.driver != "devicemapper":
        return
    from unionfs.drivers import devicemapper

    try:
        devicemapper.show_upper(container.directory)
    except DriverError as error:
        raise ContainerError("", "", str(error), hint=error.hint) from error
    except OSError as error:
        raise ContainerError.of("mounting the container's device", error, subject=container.name) from error


class _Ownership(TypedDict):
    owners: OwnerTranslation | None
    overrides: str
    owners_kept: bool


def _ownership(driver: str) -> _Ownership:
    """With one id, our union shows all files as root's and records their owners beside them."""
    if driver == FUSE and idmap.maps_one_user():
        return {
            "owners": OwnerTranslation(IdTranslation(all_as=0), IdTranslation(all_as=0)),
            "overrides": "user",
            "owners_kept": True,
        }
    return {"owners": None, "overrides": "", "owners_kept": False}


@contextlib.contextmanager
def image_file_shown(container: Container) -> Iterator[None]:
    """Context in which a process that reads the branches of a container sees those in its image file, if it has one.
    Preconditions and errors: those of image_mount.shown."""
    if container.config.rootfs.file is None:
        yield
        return
    from unionfs.containers import image_mount

    with image_mount.shown(container):
        yield


@contextlib.contextmanager
def mounted(container: Container, warn: Callable[[str], None]) -> Iterator[int]:
    """Context with the root directory of a container that is not running, with its union and volumes mounted.

    Preconditions: in a separate process with the container's ids and OWN_MOUNTS. Raises: LaunchError, OSError.
    """
    set_child_subreaper()  # the daemon detaches from us, but stays our child
    mount(None, "/", None, MS_REC | MS_SLAVE)
    life_read, life_write = os.pipe()
    rootfs_mounts = RootfsMounts(life_read)
    try:
        if not os.path.isdir(container.mountpoint_lower):  # it was never run
            make_mountpoint_lower(container)
        mount_rootfs(container, rootfs_mounts, warn, debug=False)
        root_fd = os.open(container.merged, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            volume_mounts.make_and_populate(container)
            _bind_volumes(container, root_fd)
            yield root_fd
        finally:
            os.close(root_fd)
    finally:
        unmount_all(rootfs_mounts, life_write)


def _bind_volumes(container: Container, root_fd: int) -> None:
    """Bind the volumes, without overlay volumes, whose changes are discarded at the end. Raises: LaunchError."""
    overlays = {volume.target for volume, _ in volume_mounts.overlay_volumes(container)}
    for bind in volume_mounts.binds(container):
        if bind.target in overlays:
            continue
        try:
            fd = open_in_root(root_fd, bind.target)
            mount(bind.source, f"/proc/self/fd/{fd}", None, MS_BIND | MS_REC)
            os.close(fd)
            if bind.read_only:
                fd = open_in_root(root_fd, bind.target)
                set_attributes(f"/proc/self/fd/{fd}", MOUNT_ATTR_RDONLY)
                os.close(fd)
        except OSError as error:
            raise LaunchError.of("mounting the volume", error, path=bind.source) from error
