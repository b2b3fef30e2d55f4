"""Hide the directories of a branch that must not be accessed: other mounts (the union's own among them) and
directories that the options name.

A daemon that accessed its own mountpoint would wait for itself for ever; a dead network mount may block nearly as long.
So mountpoints are read from /proc/self/mountinfo (proc(5)) and never accessed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from unionfs.core.branch import Branch
from unionfs.syscalls import mountinfo


def _below(root: bytes, path: bytes) -> tuple[bytes, ...]:
    """Return the path components from `root` down to `path`; () if it is not below."""
    prefix = root.rstrip(b"/") + b"/"
    if not path.startswith(prefix):
        return ()
    return tuple(part for part in path[len(prefix) :].split(b"/") if part)


def _root_path(branch: Branch) -> bytes:
    return os.readlink(b"/proc/self/fd/%d" % branch.root.fd())


def hide_paths(branch: Branch, paths: Iterable[str]) -> None:
    """Hide those directories of the branch that lie at the host paths `paths`."""
    root = _root_path(branch)
    for path in paths:
        branch.hide(_below(root, os.path.realpath(os.fsencode(path))))


def hide_mounts(branches: Iterable[Branch]) -> None:
    """Hide every directory of the branches that is a mountpoint now. Files that are mountpoints are not hidden."""
    try:
        mounts = mountinfo.mounts()
    except OSError:
        return
    for branch in branches:
        root = _root_path(branch)
        own = mountinfo.fd_mount_id(branch.root.fd())
        for mount in mounts:
            if mount.parent_id != own:
                continue
            path = os.fsencode(mount.mountpoint)
            components = _below(root, path)
            if components and _is_directory_there(path):
                branch.hide(components)


def _is_directory_there(path: bytes) -> bool:
    """Whether the mountpoint is a directory, by its parent's listing, which does not access the mount."""
    parent, name = os.path.split(path)
    try:
        with os.scandir(parent) as entries:
            return next((entry.is_dir(follow_symlinks=False) for entry in entries if entry.name == name), True)
    except OSError:
        return True


def overflow_ids() -> tuple[int, int]:
    """Return the uid and gid that the kernel shows for owners without a mapping (user_namespaces(7))."""
    ids = []
    for which in ("uid", "gid"):
        with open(f"/proc/sys/kernel/overflow{which}", "rb") as file:
            ids.append(int(file.read()))
    return ids[0], ids[1]
