"""Freeze a container, running or not: its upper becomes a read-only branch, with an empty upper on top of it.

The branch is the directory upper.NAME beside the upper. It is a lower of the container from then on, and of the
containers that are forked from it. If the record cannot be written any more, ContainerStore.load finds the new branch
in the work directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from unionfs.containers import diff
from unionfs.containers.branches import ask_daemon
from unionfs.containers.complete import complete_upper
from unionfs.containers.errors import ContainerError
from unionfs.containers.ids import id_map_of
from unionfs.containers.record import Container
from unionfs.containers.rootfs import make_mountpoint_lower, union_options
from unionfs.containers.store import ContainerStore
from unionfs.control import branch_client
from unionfs.control.branch_client import BranchError, Served
from unionfs.core import frozen_names
from unionfs.core.options import OptionError
from unionfs.drivers.names import FUSE
from unionfs.fuse.options import DEFAULT_TRANSPORT
from unionfs.launcher import userns

_WHAT: Final = "freeze"
_PREFIX: Final = "upper."

Warn = Callable[[str], None]
"""Prints a line that begins with `note: `."""


def can_freeze(container: Container) -> bool:
    """Whether a container that runs can be frozen."""
    rootfs = container.config.rootfs
    is_served = rootfs.driver == FUSE and rootfs.transport == DEFAULT_TRANSPORT and not rootfs.passthrough
    return is_served and rootfs.file is None


def check(container: Container, what: str) -> None:
    """Raises: ContainerError if the container cannot be frozen. `what`: the verb."""
    if container.status == "starting":
        raise ContainerError(what, container.name, "it is being started or changed", hint="try again")
    if container.config.rootfs.file is not None:
        hint = f"unionfs commit {container.name} IMAGE makes an image of it"
        raise ContainerError(what, container.name, "its image is a file, mounted for this container only", hint=hint)
    if not can_freeze(container):
        raise ContainerError(what, container.name, "its root filesystem is made by another driver or transport")
    diff.refuse_applied(container, what)


def freeze(container: Container, name: str = "", warn: Warn = lambda _: None) -> Container:
    """Freeze the container. `name`: the new branch is upper.NAME; "": upper with a number. Returns the record, whose
    first lower is the new branch. Raises: ContainerError, LaunchError, OSError."""
    if name and ("/" in name or "\0" in name):
        raise ContainerError(_WHAT, container.name, f"{name!r} is no name for a directory")
    with ContainerStore(container.root).changing(container) as current:
        return freeze_held(current, name, warn)


def freeze_held(container: Container, name: str = "", warn: Warn = lambda _: None) -> Container:
    """As `freeze`. Preconditions: within ContainerStore.changing."""
    check(container, _WHAT)
    leaf = _PREFIX + name if name else ""
    if container.status == "running":
        complete_upper(container, _WHAT)
        try:
            had_keeper = ask_daemon(container, lambda union, root: _freeze_mounted(union, root, leaf), _WHAT)
        except BranchError as error:
            raise ContainerError(_WHAT, container.name, str(error)) from error
        if had_keeper:
            warn(f"note: {container.name} has no keeper until it is started again: if its daemon is killed, it ends")
    else:
        with ContainerStore(container.root).claimed(container):
            _freeze_unmounted(container, leaf)
    return _record(container)


def freeze_claimed(container: Container) -> Container:
    """As `freeze`. Preconditions: within ContainerStore.claimed."""
    _freeze_unmounted(container, "")
    return _record(container)


def _record(container: Container) -> Container:
    """Record the lowers after a freeze. Returns the record."""
    diff.forget_list(container)
    store = ContainerStore(container.root)
    return store.set_lowers(container, store.load(container.id).config.rootfs.lowers)


def _freeze_mounted(union: Served, root: str, leaf: str) -> bool:
    """Freeze a mounted union. Returns whether it has lost its keeper: some keepers cannot learn other branches."""
    had_keeper = branch_client.has_keeper(union)
    frozen_names.record(branch_client.freeze(union, root, leaf))
    return had_keeper and not branch_client.has_keeper(union)


def _freeze_unmounted(container: Container, leaf: str) -> None:
    """Freeze a container that this process has claimed."""
    complete_upper(container, _WHAT)

    def body() -> bytes:
        from unionfs.core import freeze as core_freeze  # late: it imports most of the core

        make_mountpoint_lower(container)
        options = union_options(container, container.branches, container.directory, FUSE)
        try:
            frozen_names.record(core_freeze.freeze_unmounted(options, os.fsencode(leaf)))
        except OptionError as error:
            return str(error).encode(errors="surrogateescape")
        return b""

    try:
        why = userns.call(id_map_of(container), body).decode(errors="surrogateescape")
    except OSError as error:
        raise ContainerError.of(_WHAT, error, subject=container.name) from error
    if why:
        raise ContainerError(_WHAT, container.name, why)


def has_changes(container: Container) -> bool:
    """Whether the container's upper has anything in it."""
    try:
        return bool(os.listdir(container.upper))
    except OSError:
        return True
