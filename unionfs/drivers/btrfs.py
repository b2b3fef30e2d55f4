"""The driver `btrfs`: each container is a snapshot of a subvolume in which the layers are merged.

    ROOT/btrfs/KEY/tree      that subvolume, made once for all containers of the same layers; KEY: a digest of them
    ROOT/btrfs/KEY/lowers    the layers' directories, top first, one on a line

Its data are shared with the unpacked layers (reflink). It is removed with any of its layers. Directories that are not
layers of the store may change between two containers, so a container on them gets its own copy, as with `vfs`, in its
own subvolume.

Everything works without root; but deleting a subvolume takes as long as deleting its files unless the filesystem is
mounted with user_subvol_rm_allowed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Sequence
from typing import Final

from unionfs import store_files
from unionfs.drivers import merged_copy, vfs
from unionfs.drivers.driver import DriverError, MountRequest, RootfsMounts, of_store
from unionfs.syscalls import btrfs
from unionfs.trees.remove import remove_path

is_whole: Final = True

_SHARED: Final = "btrfs"
_NEW: Final = ".new-"


def check(root: str, lowers: Sequence[str]) -> None:
    os.makedirs(root, 0o700, exist_ok=True)
    if not btrfs.is_on_btrfs(root):
        raise DriverError(f"{root} is not on a Btrfs", "--root DIR names another directory")


def mount(request: MountRequest, rootfs_mounts: RootfsMounts) -> None:
    sweep(request.root)
    layers, others = of_store(request.root, request.union.lowers)
    if layers:
        vfs.fill(request, lambda path: _snapshot(request, layers, path), others)
    else:
        vfs.fill(request, btrfs.create, others)
    vfs.show(request, rootfs_mounts)


def remove(directory: str) -> None:
    """Delete the subvolumes of a tree; if that is not allowed, remove_path() deletes their files."""
    for name in ("upper", "upper.new"):
        _destroy(os.path.join(directory, name))


def sweep(root: str) -> None:
    """Remove subvolumes of removed layers, and incomplete ones."""
    shared = os.path.join(root, _SHARED)
    try:
        names = os.listdir(shared)
    except FileNotFoundError:
        return
    for name in names:
        place = os.path.join(shared, name)
        if name.startswith(_NEW) and _is_being_made(name):
            continue
        try:
            lowers = store_files.read_file(os.path.join(place, "lowers")).splitlines()
            if not name.startswith(_NEW) and all(map(os.path.isdir, lowers)):
                continue
        except (FileNotFoundError, NotADirectoryError):
            pass
        with contextlib.suppress(OSError):  # another process is doing this
            _destroy(os.path.join(place, "tree"))
            remove_path(place)


def _snapshot(request: MountRequest, lowers: tuple[str, ...], path: str) -> None:
    btrfs.snapshot(_shared(request, lowers), path)


def _shared(request: MountRequest, lowers: tuple[str, ...]) -> str:
    """The subvolume of these layers; makes it if it is missing. Raises: OSError."""
    key = hashlib.sha256("\n".join(lowers).encode(errors="surrogateescape")).hexdigest()[:40]
    place = os.path.join(request.root, _SHARED, key)
    subvolume = os.path.join(place, "tree")
    if os.path.isdir(place):
        return subvolume
    new = os.path.join(request.root, _SHARED, f"{_NEW}{os.getpid()}-{secrets.token_hex(4)}")
    os.makedirs(new, 0o755)
    try:
        btrfs.create(os.path.join(new, "tree"))
        merged_copy.add(lowers, os.path.join(new, "tree"), unmapped_as_root=request.union.unmapped_as_root)
        listed = "\n".join(lowers) + "\n"
        store_files.write_file(os.path.join(new, "lowers"), listed.encode(errors="surrogateescape"))
        os.rename(new, place)
    except OSError as error:
        _destroy(os.path.join(new, "tree"))
        remove_path(new)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
            raise
    return subvolume


def _is_being_made(name: str) -> bool:
    pid = name.removeprefix(_NEW).partition("-")[0]
    return os.path.exists(f"/proc/{pid}")


def _destroy(path: str) -> None:
    if btrfs.is_subvolume(path):
        with contextlib.suppress(OSError):
            btrfs.destroy(path)
