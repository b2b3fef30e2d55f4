"""Steps that make the mounts, devices and hidden paths of config.json. They are steps of `launcher.steps`.

Each opens files of the host while the root is still the host's, and resolves paths of the container only in the
container's root, so that no symlink there leads out of it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final, NamedTuple

from unionfs.launcher import steps
from unionfs.oci.config import Device, Mount
from unionfs.oci.mount_options import MountOptions, attributes
from unionfs.oci.tree_copy import copy_tree
from unionfs.syscalls.files import filesystem_type
from unionfs.syscalls.mounts import (
    MOUNT_ATTR_ATIME,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_NOATIME,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_STRICTATIME,
    DetachedMount,
    mount,
    open_tree,
    set_attributes,
)

_ATIMES: Final = MS_RELATIME | MS_NOATIME | MS_STRICTATIME
_NULL: Final = os.makedev(1, 3)
_PROC_SUPER_MAGIC: Final = 0x9FA0  # statfs(2)
_LINKS: Final = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
)
_FILES_OF_PROC: Final = frozenset(
    f"/proc/{name}"
    for name in (
        *("cpuinfo", "diskstats", "loadavg", "meminfo", "net/dev", "slabinfo", "stat", "swaps", "uptime"),
        *("sys/crypto/fips_enabled", "sys/kernel/ns_last_pid"),
    )
)
"""Files of /proc that may be mounted over: they describe the machine. Mounts over other files of /proc would deceive
the container and this runtime (CVE-2019-16884)."""


class BindMount(NamedTuple):
    """Bind a file or directory of the host."""

    source: str
    target: str
    options: MountOptions

    def describe(self) -> str:
        return f"bind {self.source} on {self.target}"

    def open_on_host(self) -> Callable[[], None]:
        tree = open_tree(self.source, recursive=self.options.is_recursive)
        _change(tree, self.options.flags, self.options.cleared, recursive=False)
        _change(tree, self.options.recursive_set, self.options.recursive_cleared, recursive=True)
        return lambda: self._attach(tree)

    def _attach(self, tree: DetachedMount) -> None:
        is_proc = filesystem_type(tree.fd) == _PROC_SUPER_MAGIC
        target = _allowed(self.target, is_proc=is_proc)
        steps.attach_at(tree, target)
        _propagate(os.path.realpath(target), self.options.propagation)


class FilesystemMount(NamedTuple):
    """Mount a filesystem of type `kind`. A tmpfs that is read-only becomes so by `MakeReadOnly`, at the end."""

    kind: str
    source: str
    target: str
    options: MountOptions

    def describe(self) -> str:
        return f"mount {self.kind} on {self.target}"

    def execute(self) -> None:
        in_kernel = self.kind in ("proc", "sysfs")
        _allowed(self.target, is_proc=self.kind == "proc")
        target = steps.own_directory(self.target) if in_kernel else steps.directory_at(self.target)
        flags = self.options.flags & (~MS_RDONLY if self.kind == "tmpfs" else ~0)
        covered = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mount(self.source or self.kind, target, self.kind, flags, ",".join(self.options.data))
            if self.kind == "tmpfs" and not any(word.startswith("mode=") for word in self.options.data):
                os.chmod(target, stat.S_IMODE(os.fstat(covered).st_mode))  # as with runc
            if self.kind == "tmpfs" and self.options.copies_up:
                copy_tree(covered, target)
        finally:
            os.close(covered)
        _propagate(target, self.options.propagation)


class Devices(NamedTuple):
    """Make device nodes; in a user namespace, where mknod(2) of devices fails, bind the host's of the same path."""

    devices: tuple[Device, ...]
    bound: bool

    def describe(self) -> str:
        return f"make the devices {', '.join(device.path for device in self.devices)}"

    def open_on_host(self) -> Callable[[], None]:
        nodes = [open_tree(device.path) if self.bound and device.kind != "p" else None for device in self.devices]
        return lambda: self._place(nodes)

    def _place(self, nodes: list[DetachedMount | None]) -> None:
        for device, node in zip(self.devices, nodes, strict=True):
            steps.directory_at(os.path.dirname(device.path))
            if node is None:
                self._make_node(device)
            else:
                steps.attach_at(node, device.path)

    def _make_node(self, device: Device) -> None:
        kinds = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
        wanted = kinds[device.kind], os.makedev(device.major, device.minor)
        try:
            os.mknod(device.path, wanted[0] | device.mode, wanted[1])
        except FileExistsError:
            there = os.lstat(device.path)
            if (stat.S_IFMT(there.st_mode), there.st_rdev) != wanted:
                raise
        os.chown(device.path, device.uid, device.gid, follow_symlinks=False)
        os.chmod(device.path, device.mode)


class DeviceLinks(NamedTuple):
    """Make the symlinks that programs expect in /dev. Existing entries stay, except /dev/ptmx."""

    def describe(self) -> str:
        return "make the links in /dev"

    def execute(self) -> None:
        for path, target in _LINKS:
            if path == "/dev/ptmx" and os.path.lexists(path) and os.path.isdir("/dev/pts"):
                os.unlink(path)
            if not os.path.lexists(path):
                os.symlink(target, path)


class MaskPaths(NamedTuple):
    """Cover files with /dev/null and directories with an empty one; missing paths are skipped."""

    paths: tuple[str, ...]

    def describe(self) -> str:
        return "hide paths"

    def open_on_host(self) -> Callable[[], None]:
        status = os.stat("/dev/null")
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _NULL:
            raise OSError(errno.ENODEV, "is not the null device", "/dev/null")
        nulls = [open_tree("/dev/null") for _ in self.paths]
        for null in nulls:
            null.set_attributes(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)  # it keeps its mode
        return lambda: self._cover(nulls)

    def _cover(self, nulls: list[DetachedMount]) -> None:
        for path, null in zip(self.paths, nulls, strict=True):
            if os.path.isdir(path):
                mount("tmpfs", os.path.realpath(path), "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=0k")
            elif os.path.exists(path):
                null.attach(os.path.realpath(path))
                continue
            null.close()


class FreezePaths(NamedTuple):
    """Make paths read-only, with all mounts below them; missing paths are skipped."""

    paths: tuple[str, ...]

    def describe(self) -> str:
        return "make paths read-only"

    def execute(self) -> None:
        for path in self.paths:
            if os.path.exists(path):
                real = os.path.realpath(path)
                mount(real, real, None, MS_BIND | MS_REC)
                set_attributes(real, MOUNT_ATTR_RDONLY)


class WorkingDirectory(NamedTuple):
    """Make the working directory if it is missing. A failure is reported when the process changes to it."""

    path: str

    def describe(self) -> str:
        return f"make the directory {self.path} if it is missing"

    def execute(self) -> None:
        try:
            os.makedirs(os.path.realpath(self.path), 0o755, exist_ok=True)
        except OSError:
            return


def bind_or_filesystem(entry: Mount, bundle: str) -> BindMount | FilesystemMount:
    """The step for one of the mounts; not for cgroups."""
    if entry.options.is_bind:
        return BindMount(os.path.join(bundle, entry.source), entry.destination, entry.options)
    return FilesystemMount(entry.kind, entry.source, entry.destination, entry.options)


def _is_in_proc(target: str) -> bool:
    resolved = os.path.realpath(target)
    return resolved == "/proc" or resolved.startswith("/proc/")


def _allowed(target: str, *, is_proc: bool) -> str:
    """Return `target`. Raises: EPERM when it is in /proc and may not be mounted over."""
    resolved = os.path.realpath(target)
    if _is_in_proc(target) and not (resolved == "/proc" and is_proc) and resolved not in _FILES_OF_PROC:
        raise OSError(
            errno.EPERM, "mounts in /proc are not allowed, except over the files that describe the machine", target
        )
    return target


def _change(tree: DetachedMount, flags: int, cleared: int, *, recursive: bool) -> None:
    added, removed = attributes(flags), attributes(cleared)
    if (flags | cleared) & _ATIMES:
        removed |= MOUNT_ATTR_ATIME
    if added | removed:
        tree.change_attributes(added, removed, recursive=recursive)


def _propagate(target: str, changes: tuple[int, ...]) -> None:
    for flags in changes:
        mount(None, target, None, flags)
