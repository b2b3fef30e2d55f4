"""Store owners that a union cannot show, because its user namespace maps one id only (`run` with one id).

All files are shown as owned by that id. The container's supervisor (launcher.supervisor) reads and changes the stored
owners by two extended attributes that only the namespace's administrator may set. It encodes the emulated uid and gid
of a process in a resource limit that the kernel does not use; files that the process makes get these owners.
"""

from __future__ import annotations

import errno
import os
import re
import resource
from typing import Final

from unionfs import markers
from unionfs.core import attrs, copyup, create, inode_flags, metadata, placement
from unionfs.core.attrs import Caller
from unionfs.core.node import DirNode, FileNode, Node
from unionfs.core.union_state import UnionState, refuse

ATTRIBUTES: Final = (markers.OWNER_XATTR, markers.DEVICE_XATTR)

_OWNER: Final = re.compile(rb"(-1|[0-9]{1,10}):(-1|[0-9]{1,10})")


def get(tree: UnionState, node: Node) -> bytes:
    """The stored `UID:GID` of a node."""
    is_up = node.is_up if isinstance(node, FileNode) else node.upper is not None
    return b"%d:%d" % tree.owner(tree.stat(node), lower=not is_up)


def change(tree: UnionState, node: Node, name: bytes, value: bytes) -> None:
    """chown(2) or mknod(2) by markers.OWNER_XATTR or DEVICE_XATTR. Raises: EINVAL for a malformed value;
    EEXIST, EROFS, ENOSPC."""
    placement.require_upper(tree)
    if name == markers.DEVICE_XATTR:
        _make_device(tree, node, value)
        return
    match = _OWNER.fullmatch(value)
    if match is None:
        refuse(errno.EINVAL, name)
    if isinstance(node, DirNode):
        inode_flags.refuse_change(node)
        placement.ensure_dir(tree, node)
    else:
        copyup.ensure(tree, node, need=attrs.ATTRIBUTES)
    metadata.give_away(tree, node, int(match[1]), int(match[2]))


def _make_device(tree: UnionState, node: Node, value: bytes) -> None:
    what, _, name = value.partition(b"/")
    override = markers.read_override(what)
    if override is None or not isinstance(node, DirNode) or not override.kind or not name:
        refuse(errno.EINVAL, name)
    caller = Caller(override.uid, override.gid)
    rdev = os.makedev(*override.device)
    made = create.make_file(tree, node, name, override.kind | override.mode, rdev, caller)
    tree.drop_unused(made.node)


def maker(caller: Caller) -> Caller:
    """The caller with the owner that new files get, read from its resource limit (markers.IDENTITY_LIMIT)."""
    try:
        uid, gid = markers.unpack_identity(resource.prlimit(caller.pid, markers.IDENTITY_LIMIT)[0])
    except (OSError, ValueError):
        uid, gid = 0, 0  # the process has ended, or is not of the container
    return caller._replace(uid=uid, gid=gid)
