"""What every driver is: checked before a container is made, then asked to mount. And the drivers by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:  # every command that lists containers imports this module
    from unionfs.core.options import Options
    from unionfs.mount_parent.client import Parent

NAMES: Final = ("fuse", "overlay", "vfs", "btrfs")
DEFAULT: Final = "fuse"


class DriverError(Exception):
    """A root filesystem cannot be made in this way. `str()` is a sentence for users, `hint` what to do."""

    def __init__(self, sentence: str, hint: str = "") -> None:
        super().__init__(sentence)
        self.hint = hint

    @classmethod
    def of(cls, what: str, error: OSError, hint: str = "") -> DriverError:
        """`what` failed as `error` says."""
        named = "" if error.filename is None else f": {os.fsdecode(error.filename)}"
        return cls(f"{what} failed{named}: {error.strerror or error}", hint)


class MountRequest(NamedTuple):
    """One root filesystem, or what a volume shows."""

    union: Options  # its branches and policies; `upper` and `work` exist
    directory: str  # of upper, work and `merged`; a driver may keep more there, below its own name
    root: str  # of the whole store, where a driver may keep below its own name what several trees share
    name: str  # for the mount table
    log: str  # file for what a daemon has to say
    transport: str
    debug: bool = False
    warn: Callable[[str], None] = lambda _: None  # called with what the user should know
    keeper: bool = True  # another daemon continues when the union's dies
    parent: Parent | None = None  # that may fork a daemon, reached before this process entered its namespaces

    @property
    def merged(self) -> str:
        """Where it is mounted."""
        return os.path.join(self.directory, "merged")


class RootfsMounts(Protocol):
    """The interface of launcher.monitor.RootfsMounts: mounts that are added are unmounted at the end."""

    @property
    def lifeline_fd(self) -> int: ...

    def add(self, mountpoint: str, daemon: tuple[int, int] | None = None) -> None: ...


class Driver(Protocol):
    """A module of this room.

    `is_whole`: the upper holds everything that is shown, once it was mounted for the first time, and no marks; else
    only what is changed, and the union is read from it and the lowers.
    """

    @property
    def is_whole(self) -> bool: ...

    def check(self, root: str, lowers: Sequence[str]) -> None:
        """Find out early what cannot work, for a store at `root`. Raises: DriverError."""

    def mount(self, request: MountRequest, rootfs_mounts: RootfsMounts) -> None:
        """Mount the tree and add it to `rootfs_mounts`. Raises: DriverError; nothing is left mounted then.

        Preconditions: a mount namespace of our own, as root of the user namespace that the container will have.
        """

    def remove(self, directory: str) -> None:
        """Remove what remove_path() of `MountRequest.directory` would be slow or unable to remove. Raises: OSError."""


def by_name(name: str) -> Driver:
    """The driver. Preconditions: one of NAMES."""
    module: Driver = import_module(f"unionfs.drivers.{name}")
    return module


def is_whole(name: str) -> bool:
    """Driver.is_whole, without importing anything."""
    return name in ("vfs", "btrfs")
