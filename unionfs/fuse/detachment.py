"""The daemon's own mount namespace, so that it does not keep alive the one in which its union is mounted.

A process holds its mount namespace. A daemon that stays in the namespace of a container or of `unshare --mount` would
therefore be the last one in it, for ever. It leaves for a copy instead, and then the kernel ends the FUSE connection
when the last other process of the original namespace is gone. From the copy it removes all mounts but those that it may
still need by path: they would keep busy what others want to unmount, and its own union is among them.

Nothing may hold on to the original namespace, so its number is all that is remembered. To unmount there, a child enters
it by way of any process that still lives in it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from unionfs.fuse import mounting
from unionfs.syscalls import mountinfo
from unionfs.syscalls.mounts import MNT_DETACH, MS_REC, MS_SLAVE, UMOUNT_NOFOLLOW, mount, umount2
from unionfs.syscalls.namespaces import CLONE_NEWNS, setns, unshare

_NEEDED: Final = ("/", "/proc", "/usr", "/lib", "/lib64", sys.prefix, sys.base_prefix)
"""Where the daemon will still look: for itself, for modules it imports and libraries they load."""


class Mounted:
    """A union of ours as it is seen at its mountpoint, wherever this process has gone meanwhile."""

    def __init__(self, mountpoint: str) -> None:
        self.mountpoint = mountpoint  # immutable; resolved
        self.connection = mounting.connection_at(mountpoint)  # immutable; None for an inherited descriptor
        self._namespace: int | None = None  # inode of the mount namespace we left; set once, by `leave_namespace`

    def leave_namespace(self) -> None:
        """Move this process to a mount namespace of its own, if the present one could ever end.

        Preconditions: this is the only thread; no path that is still to be opened is mounted later.
        """
        if self.connection is None or os.geteuid() != 0 or _is_init_namespace():
            return
        if mountinfo.topmost_at("/") is None:
            return  # a chroot: what happens to our copies of mounts could not be kept from happening to the originals
        left = os.stat("/proc/self/ns/mnt").st_ino
        try:
            unshare(CLONE_NEWNS)
        except OSError:
            return  # without CAP_SYS_ADMIN we stay, and end when we are unmounted
        self._namespace = left
        # What is removed here must stay elsewhere; what is removed elsewhere must go here, or we would keep it busy.
        mount(None, "/", None, MS_REC | MS_SLAVE)
        _remove_mounts()

    def unmount(self) -> bool:
        """Take the union away from its mountpoint, also while it is in use. False if that could not be done.

        May have to wait for answers of the process that serves the union: not to be called on its thread.
        """
        if self._namespace is None:
            return self._unmount_here()
        pid = os.fork()
        if pid == 0:
            os._exit(0 if self._enter_namespace() and self._unmount_here() else 1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def _unmount_here(self) -> bool:
        # Something else may have been mounted over it, or in its place.
        if self.connection is None or mounting.connection_at(self.mountpoint) != self.connection:
            return False
        try:
            mounting.unmount(self.mountpoint, lazy=True)
        except mounting.MountError:
            return False
        return True

    def _enter_namespace(self) -> bool:
        for pid in _pids():
            with suppress(OSError):
                fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if os.fstat(fd).st_ino == self._namespace:
                        setns(fd, CLONE_NEWNS)
                        return True
                finally:
                    os.close(fd)
        return False


def _remove_mounts() -> None:
    """Remove every mount of this namespace that holds none of `_NEEDED`.

    What a user namespace may not remove stays until it is removed where it was copied from.
    """
    needed = [os.path.realpath(path) for path in (*_NEEDED, *sys.path)]
    for there in mountinfo.mounts():
        beneath = there.mountpoint.rstrip("/") + "/"
        if not any(f"{path}/".startswith(beneath) for path in needed):
            with suppress(OSError):  # gone with the one it stood on
                umount2(there.mountpoint, MNT_DETACH | UMOUNT_NOFOLLOW)


def _is_init_namespace() -> bool:
    """Whether this mount namespace is the one of process 1, which lives as long as anything we could serve."""
    try:
        return os.stat("/proc/self/ns/mnt").st_ino == os.stat("/proc/1/ns/mnt").st_ino
    except OSError:
        return False


def _pids() -> Iterator[str]:
    return (name for name in os.listdir("/proc") if name.isdigit())
