"""The interface of drivers, which check a root filesystem before a container is made and then mount it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from unionfs.core.options import Options
    from unionfs.mount_parent.client import Parent


class DriverError(Exception):
    """The driver cannot make this root filesystem. `str()` is a message for users, `hint` says what to do."""

    def __init__(self, sentence: str, hint: str = "") -> None:
        super().__init__(sentence)
        self.hint = hint

    @classmethod
    def of(cls, what: str, error: OSError, hint: str = "") -> DriverError:
        """Make the error of `what` from `error`."""
        named = "" if error.filename is None else f": {os.fsdecode(error.filename)}"
        return cls(f"{what} failed{named}: {error.strerror or error}", hint)


class MountRequest(NamedTuple):
    """A root filesystem, or an overlay volume, to be mounted."""

    union: Options  # its branches and policies; `upper` and `work` exist
    directory: str  # contains upper, work and merged; a driver may store further files in it, below its own name
    root: str  # of the store; a driver may store files for several trees in it, below its own name
    name: str  # for the mount table
    log: str  # log file of a daemon
    transport: str
    debug: bool = False
    warn: Callable[[str], None] = lambda _: None  # called with warnings for the user
    keeper: bool = True  # another daemon continues when the union's dies
    parent: Parent | None = None  # may fork a daemon; connected before this process entered its namespaces
    meanwhile: Callable[[], None] = lambda: None  # `mount` calls it once, while a daemon starts or before

    @property
    def merged(self) -> str:
        """The mountpoint."""
        return os.path.join(self.directory, "merged")


class RootfsMounts(Protocol):
    """The interface of launcher.monitor.RootfsMounts, which unmounts added mounts at the end."""

    @property
    def lifeline_fd(self) -> int: ...

    def add(self, mountpoint: str, daemon: tuple[int, int, int] | None = None) -> None: ...


class Driver(Protocol):
    """A driver: a module of this package.

    `is_whole`: after the first mount the upper contains the whole tree, without marks; else it contains only the
    changes, and the union is read from it and the lowers.
    """

    @property
    def is_whole(self) -> bool: ...

    def check(self, root: str, lowers: Sequence[str]) -> None:
        """Check early whether the driver can work with a store at `root`. Raises: DriverError."""

    def mount(self, request: MountRequest, rootfs_mounts: RootfsMounts) -> None:
        """Mount the tree and add it to `rootfs_mounts`. Raises: DriverError; then nothing is mounted.

        Preconditions: a mount namespace of our own, as root of the user namespace that the container will have.
        """

    def remove(self, directory: str) -> None:
        """Remove objects that remove_path(MountRequest.directory) cannot remove, or only slowly. Raises: OSError."""


def by_name(name: str) -> Driver:
    """The driver. Preconditions: one of names.NAMES."""
    module: Driver = import_module(f"unionfs.drivers.{name}")
    return module


def is_whole(name: str) -> bool:
    """Driver.is_whole, without importing the driver."""
    return name in ("vfs", "btrfs", "devicemapper")


def of_store(root: str, lowers: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divide the lowers: the layers of the store, which never change, and the lowest lower if it is no layer (it may be
    the container's, with mountpoints). If further lowers are no layers, all count as such: whiteouts of layers may hide
    their entries."""
    layers = os.path.join(root, "layers")
    found = tuple(lower for lower in lowers if os.path.dirname(os.path.dirname(lower)) == layers)
    others = tuple(lowers[len(found) :])
    if tuple(lowers) == (*found, *others) and len(others) <= 1:
        return found, others
    return (), tuple(lowers)
