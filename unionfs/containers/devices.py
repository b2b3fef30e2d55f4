"""The devices of a container, by the values of --device: names of descriptions (`containers.cdi`), and paths."""

from __future__ import annotations

import os
import posixpath
import stat
from typing import NamedTuple

from unionfs.containers.errors import ContainerError
from unionfs.launcher.spec import Bind, DeviceNode, Hook


class Devices(NamedTuple):
    """The devices of a container as the launcher gets them."""

    nodes: tuple[DeviceNode, ...] = ()
    binds: tuple[Bind, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    hooks: tuple[tuple[str, Hook], ...] = ()
    groups: tuple[int, ...] = ()


def find(wanted: tuple[str, ...], directories: tuple[str, ...]) -> Devices:
    """Resolve values of --device: VENDOR/CLASS=NAME, or PATH[:PATH_IN_CONTAINER[:rwm]]. `directories`: of
    descriptions; empty: the usual ones. Raises: ContainerError."""
    from unionfs.containers import cdi

    edits = cdi.resolve((one for one in wanted if not one.startswith("/")), directories or cdi.DIRECTORIES)
    paths = [node for one in wanted if one.startswith("/") for node in _at_path(one)]
    nodes = [
        DeviceNode(node.hostPath or node.path, posixpath.normpath(node.path), node.fileMode, node.uid, node.gid)
        for node in edits.deviceNodes
    ]
    return Devices(
        nodes=tuple({node.target: node for node in (*paths, *nodes)}.values()),
        binds=tuple(
            {
                one.containerPath: Bind(one.hostPath, posixpath.normpath(one.containerPath), "ro" in one.options)
                for one in edits.mounts
            }.values()
        ),
        environment=tuple((entry.partition("=")[0], entry.partition("=")[2]) for entry in edits.env),
        hooks=tuple(
            (one.hookName, Hook(one.path, one.args or (one.path,), one.env, one.timeout)) for one in edits.hooks
        ),
        groups=edits.additionalGIDs,
    )


def _at_path(text: str) -> list[DeviceNode]:
    """A device node, or all device nodes in a directory, as with docker."""
    source, _, rest = text.partition(":")
    target, _, permissions = rest.partition(":")
    if not permissions and target and not target.startswith("/"):
        target, permissions = "", target
    target = posixpath.normpath(target or source)
    if not {"r", "w"} <= set(permissions or "rwm") <= set("rwm"):
        raise ContainerError("", "", f"--device {text}: only rw and rwm are possible, not {permissions!r}")
    if not target.startswith("/") or target.strip("/") == "":
        raise ContainerError("", "", f"--device {text}: the path in the container must be absolute, and not /")
    try:
        mode = os.stat(source).st_mode
    except OSError as error:
        raise ContainerError("", "", f"--device {text}: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
            raise ContainerError("", "", f"--device {text}: it is no device node")
        return [DeviceNode(source, target)]
    found = []
    for directory, _, names in os.walk(source):
        for path in (os.path.join(directory, name) for name in sorted(names)):
            kind = os.lstat(path).st_mode
            if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
                found.append(DeviceNode(path, posixpath.join(target, os.path.relpath(path, source))))
    return found
