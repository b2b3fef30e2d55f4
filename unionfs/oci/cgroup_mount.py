"""The step for a mount of type cgroup: shows the container's groups at the place of the machine's."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NamedTuple

from unionfs.launcher import steps
from unionfs.oci.cgroups import BESIDE, UNIFIED, Hierarchy, hierarchies
from unionfs.oci.config import Mount
from unionfs.oci.mount_options import attributes
from unionfs.syscalls.mounts import (
    MOUNT_ATTR_RDONLY,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    DetachedMount,
    mount,
    new_mount,
    open_tree,
    set_attributes,
)


class CgroupMount(NamedTuple):
    """Mount the hierarchies of control groups: new mounts in a cgroup namespace of our own, else the container's groups
    bound. Version 1 has a directory for each hierarchy in a small tmpfs."""

    entry: Mount
    cgroups: tuple[tuple[str, str], ...]  # the container's group in each hierarchy (cgroups.Cgroup)
    own: bool  # whether we are in a cgroup namespace of our own

    def describe(self) -> str:
        return f"mount cgroups on {self.entry.destination}"

    def open_on_host(self) -> Callable[[], None]:
        found = {one.name: self._open(one) for one in hierarchies() if one.name != BESIDE}
        return lambda: self._attach(found)

    def _open(self, hierarchy: Hierarchy) -> DetachedMount:
        wanted = attributes(self.entry.options.flags)
        if self.own:
            try:
                if hierarchy.name == UNIFIED:
                    return new_mount("cgroup2", (), wanted)
                name = hierarchy.name
                words = (
                    [("none", ""), ("name", name[5:])]
                    if name.startswith("name=")
                    else [(one, "") for one in hierarchy.controllers]
                )
                return new_mount("cgroup", words, wanted)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EBUSY, errno.EACCES):
                    raise
        directory = dict(self.cgroups).get(hierarchy.name) or hierarchy.directory("", default="")
        tree = open_tree(directory)
        tree.set_attributes(wanted, recursive=True)
        return tree

    def _attach(self, found: dict[str, DetachedMount]) -> None:
        target = steps.directory_at(self.entry.destination)
        if UNIFIED in found:
            found[UNIFIED].attach(target)
            return
        mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755,size=64k")
        for name, tree in found.items():
            directory = os.path.join(target, name.removeprefix("name="))
            os.mkdir(directory, 0o755)
            tree.attach(directory)
            for controller in name.split(","):
                if controller != name:
                    os.symlink(name, os.path.join(target, controller))
        if self.entry.options.flags & MS_RDONLY:
            set_attributes(target, MOUNT_ATTR_RDONLY)
