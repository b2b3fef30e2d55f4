"""Freeze a container, running or not: its upper becomes a read-only branch, with an empty upper on top of it.

The branch is the directory upper.NAME beside the upper. It is a lower of the container from then on, and of the
containers that are forked from it. If the record cannot be written any more, ContainerStore.load finds the new branch
in the work directory.
"""

from __future__ import annotations

import json
import os
from typing import Final

from unionfs.containers import diff
from unionfs.containers.branches import ask_daemon
from unionfs.containers.complete import complete_upper
from unionfs.containers.errors import ContainerError
from unionfs.containers.ids import id_map_of
from unionfs.containers.record import Container
from unionfs.containers.rootfs import make_mountpoint_lower, union_options
from unionfs.containers.store import ContainerStore
from unionfs.core.options import OptionError
from unionfs.drivers.driver import DEFAULT as FUSE
from unionfs.fuse import branch_client
from unionfs.fuse.branch_client import BranchError
from unionfs.fuse.options import DEFAULT_TRANSPORT
from unionfs.launcher import userns

_WHAT: Final = "freeze"
_PREFIX: Final = "upper."


def can_freeze(container: Container) -> bool:
    """Whether a container that runs can be frozen."""
    rootfs = container.config.rootfs
    return rootfs.driver == FUSE and rootfs.transport == DEFAULT_TRANSPORT and not rootfs.passthrough


def freeze(container: Container, name: str = "") -> Container:
    """Freeze the container. `name`: the new branch is upper.NAME; "": upper with a number. Returns the record, whose
    first lower is the new branch. Raises: ContainerError, LaunchError, OSError."""
    if container.status == "starting":
        raise ContainerError(_WHAT, container.name, "it is being started", hint="try again")
    if not can_freeze(container):
        raise ContainerError(_WHAT, container.name, "its root filesystem is made by another driver or transport")
    if name and ("/" in name or "\0" in name):
        raise ContainerError(_WHAT, container.name, f"{name!r} is no name for a directory")
    complete_upper(container, _WHAT)
    store = ContainerStore(container.root)
    leaf = _PREFIX + name if name else ""
    if container.status == "running":
        try:
            path = ask_daemon(container, lambda union, root: branch_client.freeze(union, root, leaf), _WHAT)
        except BranchError as error:
            raise ContainerError(_WHAT, container.name, str(error)) from error
    else:
        store.claim(container)  # so that it is not started meanwhile
        try:
            path = freeze_stopped(container, leaf)
        finally:
            store.unclaim(container, container.state.exit_code)
    diff.forget_list(container)
    current = store.load(container.id)
    new = os.path.join(container.directory, os.path.basename(path))
    lowers = current.config.rootfs.lowers
    return store.set_lowers(container, lowers if new in lowers else (new, *lowers))


def freeze_stopped(container: Container, leaf: str = "") -> str:
    """Freeze a container that this process has claimed. Returns the path of the branch. Raises: ContainerError,
    LaunchError."""

    def body() -> bytes:
        from unionfs.core import freeze as core_freeze  # late: it imports most of the core

        make_mountpoint_lower(container)
        options = union_options(container, container.branches, container.directory, FUSE)
        try:
            return json.dumps([core_freeze.freeze_unmounted(options, os.fsencode(leaf)), ""]).encode()
        except OptionError as error:
            return json.dumps(["", str(error)]).encode()

    try:
        path, why = json.loads(userns.call(id_map_of(container), body))
    except OSError as error:
        raise ContainerError.of(_WHAT, error, subject=container.name) from error
    if why:
        raise ContainerError(_WHAT, container.name, why)
    return str(path)


def has_changes(container: Container) -> bool:
    """Whether the upper of a container that does not run has anything in it."""
    try:
        return bool(os.listdir(container.upper))
    except OSError:
        return True
