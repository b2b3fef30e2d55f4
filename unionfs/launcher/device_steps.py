"""Setup steps that give a container device nodes (see `launcher.steps`)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final, NamedTuple

from unionfs.launcher.spec import DeviceNode
from unionfs.launcher.steps import attach_at
from unionfs.syscalls.mounts import (
    MNT_DETACH,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_NOEXEC,
    MS_NOSUID,
    DetachedMount,
    mount,
    open_tree,
    umount2,
)

_STAGING_DIRECTORY: Final = "/dev"  # in the host's root, in our mount namespace, from which no mount propagates
_ATTRIBUTES: Final = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC


class Device(NamedTuple):
    """Bind a device node of the host: in a user namespace mknod(2) of devices fails."""

    node: DeviceNode

    def describe(self) -> str:
        return f"bind {self.node.source} on {self.node.target}"

    def open_on_host(self) -> Callable[[], None]:
        tree = _open_node(self.node)
        tree.set_attributes(_ATTRIBUTES)
        return lambda: attach_at(tree, self.node.target)


class OwnDevices(NamedTuple):
    """Make new device nodes: with bound ones, root of the container could change mode or owner of the machine's nodes.

    They are made in a tmpfs that is unmounted afterwards, and bound one by one: /dev itself is mounted nodev, or a
    container with CAP_MKNOD could use any device. Where mknod(2) fails (root within another container), the host's
    nodes are bound read-only: then they can be read and written, but mode, owner and times cannot be changed.
    """

    nodes: tuple[DeviceNode, ...]

    def describe(self) -> str:
        return f"make the device nodes {', '.join(node.target for node in self.nodes)}"

    def open_on_host(self) -> Callable[[], None]:
        bound = [_open_node(node) for node in self.nodes]
        mount("tmpfs", _STAGING_DIRECTORY, "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=700,size=64k")
        try:
            made = [
                self._make_node(os.path.join(_STAGING_DIRECTORY, str(number)), node, tree)
                for number, (node, tree) in enumerate(zip(self.nodes, bound, strict=True))
            ]
        finally:
            umount2(_STAGING_DIRECTORY, MNT_DETACH)
        return lambda: self._attach(made)

    def _make_node(self, path: str, node: DeviceNode, bound: DetachedMount) -> DetachedMount:
        """Return a mount of a new node with the attributes of `bound`, unless `node` has others; if mknod(2) fails,
        `bound` itself, read-only."""
        original = os.fstat(bound.fd)
        try:
            os.mknod(path, original.st_mode, original.st_rdev)
        except PermissionError:
            bound.set_attributes(_ATTRIBUTES | MOUNT_ATTR_RDONLY)
            return bound
        bound.close()
        os.chown(
            path,
            original.st_uid if node.uid is None else node.uid,
            original.st_gid if node.gid is None else node.gid,
        )
        os.chmod(path, stat.S_IMODE(original.st_mode if node.mode is None else node.mode))
        own = open_tree(path)
        own.set_attributes(_ATTRIBUTES)
        return own

    def _attach(self, made: list[DetachedMount]) -> None:
        for node, tree in zip(self.nodes, made, strict=True):
            attach_at(tree, node.target)


def _open_node(node: DeviceNode) -> DetachedMount:
    tree = open_tree(node.source)
    mode = os.fstat(tree.fd).st_mode
    if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
        tree.close()
        raise OSError(errno.ENODEV, "it is no device node", node.source)
    return tree
