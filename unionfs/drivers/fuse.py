"""The driver `fuse`: our own union, served by a daemon outside of the container's pid namespace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from unionfs.core.options import OptionError
from unionfs.daemon.options import DaemonOptions, StartError
from unionfs.daemon.start import start
from unionfs.drivers.driver import DriverError, MountRequest, RootfsMounts
from unionfs.fuse.mounting import MountOptions
from unionfs.fuse.options import ServeOptions

is_whole: Final = False


def check(root: str, lowers: Sequence[str]) -> None:
    """Check nothing: mounting reports the same failures."""


def mount(request: MountRequest, rootfs_mounts: RootfsMounts) -> None:
    options = DaemonOptions(
        union=request.union,
        mountpoint=request.merged,
        transport=request.transport,
        mount=MountOptions(source=f"unionfs:{request.name}", allow_other=True),
        serve=ServeOptions(passthrough=request.union.passthrough),
        keeper=request.keeper,
        log=request.log,
        debug=request.debug,
        lifeline_fd=rootfs_mounts.lifeline_fd,
    )
    try:
        daemon = start(options, warn=request.warn, parent=request.parent, meanwhile=request.meanwhile)
        rootfs_mounts.add(request.merged, daemon)
    except OptionError as error:
        raise DriverError(str(error)) from error
    except StartError as error:
        raise DriverError(str(error), error.hint) from error


def remove(directory: str) -> None:
    """Remove nothing: the driver stores no files of its own."""
