"""A container's root: its steps in order. The process enters it to make them, returns, and enters it for good.

host's root        the steps open files and mounts of the host
container's root   mounts, devices (as by chroot(2): the host's root can be returned to)
host's root        hooks of the time before the root changes
container's root   for good, by pivot_root(2); then paths are hidden and made read-only
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from unionfs.launcher import steps
from unionfs.launcher.errors import LaunchError
from unionfs.oci import cgroup_mount
from unionfs.oci.config import Config, Device
from unionfs.oci.errors import OciError
from unionfs.oci.mount_options import PROPAGATION
from unionfs.oci.mount_steps import (
    DeviceLinks,
    Devices,
    FreezePaths,
    MaskPaths,
    WorkingDirectory,
    bind_or_filesystem,
)
from unionfs.syscalls.mountinfo import mounts
from unionfs.syscalls.mounts import (
    MNT_DETACH,
    MS_MOVE,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_SLAVE,
    mount,
    open_tree,
    umount2,
)
from unionfs.syscalls.namespaces import pivot_root

_DEVICES: Final = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))


class Root:
    """The root of one container, in a mount namespace of its own. Methods are called in their order, each once."""

    def __init__(
        self, config: Config, bundle: str, rootfs: str, cgroups: dict[str, str], *, bind_devices: bool
    ) -> None:
        self._config: Final = config
        self._rootfs: Final = rootfs
        early, late = _steps(config, bundle, cgroups, bind_devices=bind_devices)
        self._early = _opened(early)
        self._late = _opened(late)
        self._host_fd: Final = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._root_fd = -1  # set once, by make

    def make(self) -> None:
        """Mount the root filesystem, and all else within it. Raises: OciError, OSError."""
        tree = open_tree(self._rootfs)
        _keep_from_host(self._rootfs)
        tree.attach(self._rootfs)
        mount(None, self._rootfs, None, MS_PRIVATE)
        self._root_fd = os.open(self._rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._change(self._root_fd)
        _run(self._early)
        self._change(self._host_fd)

    def enter(self, *, pivot: bool) -> None:
        """Make it the root for good, and hide and protect paths. Raises: OciError, OSError."""
        os.fchdir(self._root_fd)
        if pivot:
            pivot_root(".", ".")  # the old root is now mounted over the new one
            umount2(".", MNT_DETACH)
        else:
            mount(".", "/", None, MS_MOVE)
            os.chroot(".")
        os.chdir("/")
        os.close(self._root_fd)
        os.close(self._host_fd)
        if self._config.root_propagation:
            mount(None, "/", None, PROPAGATION[self._config.root_propagation])
        _run(self._late)

    def _change(self, root_fd: int) -> None:
        os.fchdir(root_fd)
        os.chroot(".")


def separate_mounts(config: Config) -> None:
    """In a new mount namespace: set the configured propagation; by default mounts propagate only from the host to
    us."""
    mount(None, "/", None, PROPAGATION.get(config.root_propagation, MS_SLAVE | MS_REC) | MS_REC)


def _keep_from_host(rootfs: str) -> None:
    """With a shared root, make the mount that contains the root filesystem private: new mounts in it would show on the
    host, and pivot_root(2) refuses a shared one."""
    holding = [
        one for one in mounts() if rootfs == one.mountpoint or f"{rootfs}/".startswith(f"{one.mountpoint.rstrip('/')}/")
    ]
    if holding:
        mount(None, max(holding, key=lambda one: (len(one.mountpoint), one.mount_id)).mountpoint, None, MS_PRIVATE)


def _steps(
    config: Config, bundle: str, cgroups: dict[str, str], *, bind_devices: bool
) -> tuple[list[steps.Step | steps.HostStep], list[steps.Step | steps.HostStep]]:
    """The steps before and after the root changes for good."""
    early: list[steps.Step | steps.HostStep] = []
    for entry in config.mounts:
        if entry.kind in ("cgroup", "cgroup2") and not entry.options.is_bind:
            early.append(cgroup_mount.CgroupMount(entry, tuple(cgroups.items()), own="cgroup" in config.namespaces))
        else:
            early.append(bind_or_filesystem(entry, bundle))
    if not any(entry.destination == "/dev" and entry.options.is_bind for entry in config.mounts):
        early += [Devices(tuple(_devices(config)), bind_devices), DeviceLinks()]
    if config.process:
        early.append(WorkingDirectory(config.process.cwd))
    read_only = [
        entry.destination
        for entry in config.mounts
        if entry.kind == "tmpfs" and entry.options.flags & MS_RDONLY and not entry.options.is_bind
    ]
    late: list[steps.Step | steps.HostStep] = [
        *map(steps.MakeReadOnly, read_only),
        FreezePaths(config.frozen),
        MaskPaths(config.masked),
        *([steps.MakeReadOnly("/")] if config.read_only else []),
    ]
    return early, late


def _devices(config: Config) -> Iterator[Device]:
    """The devices that every container has, and those of the configuration, which have priority."""
    given = {device.path for device in config.devices}
    for name, major, minor in _DEVICES:
        if f"/dev/{name}" not in given:
            yield Device(f"/dev/{name}", "c", major, minor, 0o666, 0, 0)
    yield from config.devices


def _opened(wanted: list[steps.Step | steps.HostStep]) -> list[tuple[steps.Step | steps.HostStep, steps.Action]]:
    try:
        return steps.open_all(wanted)
    except LaunchError as error:
        raise OciError(_told(error)) from error


def _run(actions: list[tuple[steps.Step | steps.HostStep, steps.Action]]) -> None:
    try:
        steps.run_all(actions)
    except LaunchError as error:
        raise OciError(_told(error)) from error


def _told(error: LaunchError) -> str:
    return f"{error.what}: {error.path + ': ' if error.path else ''}{error.why[:1].lower()}{error.why[1:]}"
