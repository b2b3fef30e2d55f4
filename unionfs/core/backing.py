"""Descriptors of the files that the kernel itself reads and writes (FUSE passthrough).

The kernel opens a file again by the path and mount of the descriptor, with the flags of the program's open(2). So a
lower's descriptor is opened through a private, read-only, noatime copy of its mount: no open can write the lower or
change its access times.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from unionfs.core import partial
from unionfs.core.branch import Branch, BranchDir
from unionfs.core.fds import FileFd
from unionfs.core.node import FileNode
from unionfs.core.options import OptionError
from unionfs.syscalls import mounts
from unionfs.trees.open_beneath import open_beneath

_OPEN: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Backing:
    """The private mounts of one union's branches."""

    def __init__(self, lowers: list[Branch], upper: Branch | None, *, atime: bool) -> None:
        """`atime`: reading may move the access times of the upper's files. Raises OptionError."""
        self._branches: list[Branch] = []  # that have a private mount; changed by add and close
        for branch in lowers:
            self.add(branch)
        if upper is not None and not atime:
            self._add(upper, 0)

    def add(self, branch: Branch) -> None:
        """Add one more lower. Raises OptionError."""
        self._add(branch, mounts.MOUNT_ATTR_RDONLY)

    def _add(self, branch: Branch, attributes: int) -> None:
        if branch.private is None:  # else another process has made the private mount
            branch.private = _private(branch, attributes)
        self._branches.append(branch)

    def close(self) -> None:
        """Drop the mounts. No method may be called afterwards."""
        for branch in self._branches:
            branch.private = None
        self._branches.clear()

    def open(self, node: FileNode) -> FileFd:
        """Open the file that holds the node's data now (O_PATH). Raises: ESTALE if it was removed externally, EINVAL
        for a node without data; errors of open(2)."""
        if not node.has_data or not node.leaf:
            code = errno.ESTALE if node.has_data else errno.EINVAL
            raise OSError(code, os.strerror(code), os.fsdecode(node.name))
        links = node.links
        place, leaf = links.data if links is not None and links.data is not None else (node.home, node.leaf)
        if not leaf:
            raise partial.missing_error()
        return self._open(place, leaf)

    def _open(self, place: BranchDir, leaf: bytes) -> FileFd:
        root = place.branch.private
        if root is None:
            return FileFd(os.open(leaf, _OPEN, dir_fd=place.fd()))
        return FileFd(open_beneath(root.fd, b"/".join((*place.path_components(), leaf)), _OPEN))


def _private(branch: Branch, attributes: int) -> FileFd:
    """Copy the mount of a branch, with these attributes and without access times."""
    try:
        copy = mounts.clone_mount(branch.root.fd())
        root = FileFd(copy.fd)
        copy.set_attributes(attributes | mounts.MOUNT_ATTR_NOATIME)
        if attributes & ~os.fstatvfs(root.fd).f_flag:  # before Linux 5.12, and ST_RDONLY is the same bit
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    except OSError as exc:
        code = exc.errno or errno.EPERM
        if code == errno.EPERM:
            raise OptionError(code, "passthrough needs root of the machine, who may copy mounts") from None
        why = f"its mount cannot be copied, which passthrough needs: {os.strerror(code)}"
        raise OptionError(code, f"cannot use {branch.path}: {why}") from None
    return root
