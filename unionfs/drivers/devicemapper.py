"""The driver `devicemapper`: each layer and each container has a thin device, a snapshot of the one below it.

    ROOT/devicemapper/            see `thin_pool`
    ROOT/devicemapper/filling     where the device of a layer is mounted while it is filled
    ROOT/devicemapper/fill.lock   locked meanwhile
    CONTAINER/thin                the key of the container's device, which is mounted on CONTAINER/upper

The device `base` is an empty ext4. The device of a layer is a snapshot of that of the layer below it (of `base` for the
lowest), to which the layer's changes are applied; its key is a digest of these layers. It is removed with any of them.
Directories that are not layers of the store may change between two containers, so they are copied to the container's
own device.

Mounts are made in private mount namespaces, so the kernel removes them when their processes end, and then the devices.
Only filesystems made by this driver are ever mounted: the store must be root's alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from typing import Final

from unionfs import store_files
from unionfs.drivers import device_tools, merged_copy, vfs
from unionfs.drivers.driver import DriverError, MountRequest, RootfsMounts, of_store
from unionfs.drivers.thin_pool import BASE, CONTAINER, LAYER, READY, Pool, Usage
from unionfs.syscalls import files, mounts, peers
from unionfs.syscalls.namespaces import CLONE_NEWNS, unshare

is_whole: Final = True

_OTHERS: Final = "--driver fuse and --driver vfs need none of this"


def check(root: str, lowers: Sequence[str]) -> None:
    if os.geteuid() != 0 or not peers.has_all_users():
        raise DriverError("the devicemapper driver works only as root of the machine", _OTHERS)
    if not device_tools.load_thin_pool():
        raise DriverError("this kernel has no device mapper with thin provisioning (dm_thin_pool)", _OTHERS)
    device_tools.check()
    try:
        owner = store_files.owner_of(root)
    except store_files.OwnerError as error:
        raise DriverError(str(error), error.hint) from error
    if owner:
        raise DriverError(f"{root}: user {owner} can replace the store", "--root DIR names one of root's own")


def use_pool(root: str, device: str) -> None:
    """Use the thin pool `device` for the devices of the store. Raises: DriverError, OSError."""
    check(root, ())
    Pool(root).use(device)


def usage(root: str) -> Usage | None:
    """The usage of the store's pool; None if it has none. Raises: DriverError, OSError."""
    check(root, ())
    pool = Pool(root)
    return pool.usage() if pool.exists() else None


def mount(request: MountRequest, rootfs_mounts: RootfsMounts) -> None:
    upper = request.union.upper
    assert upper is not None
    check(request.root, ())  # a container that exists may be started on another kernel
    pool = Pool(request.root)
    try:
        sweep(request.root)
        with pool.held():
            key = _key(request.directory)
            if key is None or pool.state(key) != READY:
                layers, others = of_store(request.root, request.union.lowers)
                origin = _layers(pool, layers)
                key = _new_key(request.directory)
                with _filling(pool, key, CONTAINER, (request.directory,), origin, upper):
                    if others:
                        merged_copy.add(others, upper, hidden=request.union.hidden)
            elif problem := pool.usage().problem:
                request.warn(f"the pool of {request.root}: {problem}")
            pool.mount(key, upper)
    except OSError as error:
        raise DriverError.of("making the container's device", error) from error
    rootfs_mounts.add(upper)
    vfs.show(request, rootfs_mounts)


def remove(directory: str) -> None:
    """Remove the device of a tree."""
    key = _key(directory)
    if key is None:
        return
    root = os.path.dirname(os.path.dirname(os.path.abspath(directory)))
    with _as_os_error(directory):
        check(root, ())
        Pool(root).remove(key)


def show_upper(directory: str) -> None:
    """Let this process read the upper of a tree, running or not: it enters a mount namespace of its own. Raises:
    DriverError, OSError."""
    upper = os.path.join(directory, "upper")
    key = _key(directory)
    root = os.path.dirname(os.path.dirname(os.path.abspath(directory)))
    if key is None or os.path.ismount(upper) or Pool(root).state(key) != READY:
        return
    check(root, ())
    unshare(CLONE_NEWNS)
    mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_SLAVE)
    Pool(root).mount(key, upper)
    mounts.set_attributes(upper, mounts.MOUNT_ATTR_RDONLY)


def sweep(root: str) -> None:
    """Remove the devices of removed layers and containers. Raises: OSError."""
    pool = Pool(root)
    if os.geteuid() != 0 or not pool.exists():
        return
    with _as_os_error(root):
        if outdated := pool.outdated():
            check(root, ())
            pool.remove(*outdated)


def _layers(pool: Pool, layers: Sequence[str]) -> str:
    """Make the devices of the layers, top first, that are missing. Returns the key of the topmost, or of the base."""
    keys = [(_digest(layers[depth:]), layers[depth:]) for depth in reversed(range(len(layers)))]
    if all(pool.state(key) == READY for key, _ in keys) and pool.state(BASE) == READY:
        return keys[-1][0] if keys else BASE
    if problem := pool.usage().problem:
        raise _full(pool, problem)
    with store_files.hold_lock(os.path.join(pool.place, "fill.lock")):
        mountpoint = os.path.join(pool.place, "filling")
        os.makedirs(mountpoint, 0o700, exist_ok=True)
        pool.remove(*pool.unfinished())  # of killed processes: only this one makes devices of layers now
        if pool.state(BASE) != READY:
            with _filling(pool, BASE, BASE, (), None, mountpoint):
                os.rmdir(os.path.join(mountpoint, "lost+found"))
        origin = BASE
        for key, of in keys:
            if pool.state(key) != READY:
                with _filling(pool, key, LAYER, of, origin, mountpoint):
                    merged_copy.put_on_top(of[0], mountpoint)
            origin = key
        return origin


@contextlib.contextmanager
def _filling(pool: Pool, key: str, kind: str, of: Sequence[str], origin: str | None, mountpoint: str) -> Iterator[None]:
    """Context in which a new device is mounted to be filled. It is READY afterwards, and removed after an error.

    Preconditions: no other process makes `key`: an incomplete one is of a process that was killed.
    """
    pool.remove(key)
    if problem := pool.usage().problem:
        raise _full(pool, problem)
    pool.begin(key, kind, of, origin)
    try:
        if origin is None:
            pool.format(key)
        pool.mount(key, mountpoint)
        try:
            yield
            _sync(mountpoint)
        finally:
            mounts.umount2(mountpoint, mounts.UMOUNT_NOFOLLOW)
    except BaseException:
        with contextlib.suppress(DriverError):
            pool.remove(key)
        raise
    pool.finish(key)


def _sync(mountpoint: str) -> None:
    """Write all data to the device. Raises: OSError if it has no room for them, which unmounting would not report."""
    fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        files.syncfs(fd)
    finally:
        os.close(fd)


def _full(pool: Pool, problem: str) -> DriverError:
    hint = "unionfs rm and unionfs rmi free space; unionfs stats --pool shows how much is used"
    return DriverError(f"the thin pool of {pool.place} takes no new device: {problem}", hint)


def _key(directory: str) -> str | None:
    try:
        return store_files.read_file(os.path.join(directory, "thin")).decode("ascii", "replace")
    except FileNotFoundError:
        return None


def _new_key(directory: str) -> str:
    """The key of a container's device; the former one if that device was not made."""
    key = _key(directory)
    if key is None:
        key = secrets.token_hex(16)
        new = os.path.join(directory, "thin.new")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        store_files.write_file(new, key.encode(), synced=True)
        os.rename(new, os.path.join(directory, "thin"))
    return key


def _digest(layers: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(layers).encode(errors="surrogateescape")).hexdigest()[:40]


@contextlib.contextmanager
def _as_os_error(path: str) -> Iterator[None]:
    try:
        yield
    except DriverError as error:
        raise OSError(errno.EIO, str(error), path) from error
