"""Move the daemon to a mount namespace of its own, so that it does not keep the union's namespace alive.

A process holds its mount namespace. A daemon that stays in the namespace of a container or of `unshare --mount` would
keep it alive for ever. It moves to a copy instead, and the kernel ends the FUSE connection when the last other process
of the original namespace has ended. From the copy it removes all mounts except those that it may still need by path:
they would keep filesystems busy that users want to unmount, among them its own union.

The daemon may hold no descriptor of the original namespace, so it remembers only its inode number. To unmount there, a
child process enters the namespace through any process that is still in it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from unionfs.fuse import mounting
from unionfs.fuse.view_name import is_view
from unionfs.syscalls import mountinfo
from unionfs.syscalls.mounts import MNT_DETACH, MS_REC, MS_SLAVE, UMOUNT_NOFOLLOW, mount, umount2
from unionfs.syscalls.namespaces import CLONE_NEWNS, setns, unshare

_NEEDED: Final = ("/", "/proc", "/usr", "/lib", "/lib64", sys.prefix, sys.base_prefix)
"""Paths that the daemon still opens: its own code, modules that it imports and libraries that they load."""


class Mounted:
    """The mount of this daemon's union, in the namespace in which it was mounted."""

    def __init__(self, mountpoint: str) -> None:
        self.mountpoint = mountpoint  # immutable; resolved
        self.since_ns = time.monotonic_ns()  # immutable
        self.connection = mounting.connection_at(mountpoint)  # immutable; None for an inherited descriptor
        self._namespace: int | None = None  # inode of the original mount namespace; set once, by `leave_namespace`

    @classmethod
    def continued(cls, mountpoint: str, connection: int | None, since_ns: int, namespace: int | None) -> Mounted:
        """Return the mount of another process, made of its `values`; `namespace` is None if that process has not left
        the mount's namespace."""
        made = cls.__new__(cls)
        made.mountpoint, made.connection, made.since_ns, made._namespace = mountpoint, connection, since_ns, namespace
        return made

    def values(self) -> dict[str, str | int | None]:
        """Return the arguments of `continued`."""
        return {
            "mountpoint": self.mountpoint,
            "connection": self.connection,
            "since_ns": self.since_ns,
            "namespace": self._namespace,
        }

    def namespace(self) -> int:
        """Return the inode number of the mount namespace in which the union is mounted."""
        return self._namespace or os.stat("/proc/self/ns/mnt").st_ino

    def leave_namespace(self) -> None:
        """Move this process to a mount namespace of its own, as the function `leave_namespace`."""
        if self.connection is not None:
            self._namespace = leave_namespace()

    def unmount(self) -> bool:
        """Unmount the union and its views lazily, in its original namespace. Returns whether they are gone from there,
        which they may have been before: programs may still have files open.

        May wait for answers of the union's serving thread: must not be called on that thread.
        """
        if self._namespace is None:
            return self._unmount_here()
        try:
            pid = os.fork()
        except OSError:  # RLIMIT_NPROC, memory
            return False
        if pid == 0:
            os._exit(0 if self._enter_namespace() and self._unmount_here() else 1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def _unmount_here(self) -> bool:
        """Unmount the union and its views. Returns whether either has been unmounted, by us or before."""
        views = [there.mountpoint for there in mountinfo.mounts() if there.minor == self.connection and is_view(there)]
        for view in views:
            with suppress(mounting.MountError):
                mounting.unmount(view, lazy=True)
        return self._unmount_union() or bool(views)

    def _unmount_union(self) -> bool:
        if self.connection is None:
            return False
        if mounting.connection_at(self.mountpoint) != self.connection:
            return True  # unmounted by others, or another filesystem was mounted over it
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


def leave_namespace() -> int | None:
    """Move this process to a mount namespace of its own, unless the present one is process 1's, and return the inode
    number of the one it has left; None: it stays.

    Preconditions: this is the only thread; no path that is still to be opened is mounted later.
    """
    if os.geteuid() != 0 or _is_init_namespace():
        return None
    if mountinfo.topmost_at("/") is None:
        return None  # a chroot: "/" is not a mount and cannot be made a slave, so unmounts would propagate
    left = os.stat("/proc/self/ns/mnt").st_ino
    try:
        unshare(CLONE_NEWNS)
    except OSError:
        return None  # without CAP_SYS_ADMIN the daemon stays, and ends when the union is unmounted
    # Unmounts here must not propagate; those elsewhere must propagate here, or these copies would keep them busy.
    mount(None, "/", None, MS_REC | MS_SLAVE)
    _remove_mounts()
    return left


def _remove_mounts() -> None:
    """Remove every mount of this namespace that holds none of `_NEEDED`.

    Mounts that a user namespace may not remove stay until the originals are unmounted.
    """
    needed = [os.path.realpath(path) for path in (*_NEEDED, *sys.path)]
    for there in mountinfo.mounts():
        beneath = there.mountpoint.rstrip("/") + "/"
        if not any(f"{path}/".startswith(beneath) for path in needed):
            with suppress(OSError):  # removed with its parent mount
                umount2(there.mountpoint, MNT_DETACH | UMOUNT_NOFOLLOW)


def _is_init_namespace() -> bool:
    """Whether this mount namespace is the one of process 1, which never ends before the daemon."""
    try:
        return os.stat("/proc/self/ns/mnt").st_ino == os.stat("/proc/1/ns/mnt").st_ino
    except OSError:
        return False


def _pids() -> Iterator[str]:
    return (name for name in os.listdir("/proc") if name.isdigit())
