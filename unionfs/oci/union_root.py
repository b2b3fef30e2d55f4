"""A bundle whose root filesystem is a union: find its branches, and mount the union.

The branches are named by annotations of config.json,

    io.unionfs.lowerdir   directories separated by colons, the top one first
    io.unionfs.upperdir   optional; without it the root is read-only
    io.unionfs.workdir    optional: beside the upper by default

or by a file `union.json` in the bundle: {"lowers": [...], "upper": "...", "work": "..."}. Relative paths are taken from
the bundle. The union is mounted at `root.path`, in the container's user and mount namespaces; its daemon stays outside
of the container's pid namespace and control group, and ends when the mount namespace does.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from unionfs.core.options import OptionError, Options, make_work
from unionfs.daemon.options import DaemonOptions, StartError
from unionfs.daemon.start import start
from unionfs.fuse.mounting import MountOptions
from unionfs.launcher import idmap
from unionfs.oci.config import Config, load
from unionfs.oci.errors import OciError
from unionfs.oci.fields import Field

FILE: Final = "union.json"
_LOWERS, _UPPER, _WORK = "io.unionfs.lowerdir", "io.unionfs.upperdir", "io.unionfs.workdir"


class UnionRoot(NamedTuple):
    """The branches, absolute, lowers top first. `upper` empty: read-only; `work` empty: the default."""

    lowers: tuple[str, ...]
    upper: str
    work: str


def find(config: Config, bundle: str) -> UnionRoot | None:
    """The union that the bundle describes; None for an ordinary directory. Raises: OciError."""
    path = os.path.join(bundle, FILE)
    annotated = config.annotations.get(_LOWERS, "")
    if annotated:
        lowers = tuple(filter(None, annotated.split(":")))
        upper, work = (config.annotations.get(name, "") for name in (_UPPER, _WORK))
    elif os.path.lexists(path):
        field = Field(load(path), FILE)
        lowers, upper, work = field["lowers"].texts(), field["upper"].text(""), field["work"].text("")
    else:
        return None
    if not lowers:
        raise OciError(f"{_LOWERS if annotated else FILE}: a union needs at least one lower directory")
    return UnionRoot(
        tuple(os.path.join(bundle, lower) for lower in lowers), _joined(bundle, upper), _joined(bundle, work)
    )


def mount(union: UnionRoot, mountpoint: str, log: str) -> int:
    """Mount the union at `mountpoint`, and return the daemon's pid. Raises: OciError.

    Preconditions: root of the container's user namespace, in its mount namespace and the host's pid namespace. `log`
    gets the daemon's messages.
    """
    try:
        work = union.work
        if union.upper:
            os.makedirs(union.upper, 0o755, exist_ok=True)
            if work:
                os.makedirs(work, 0o700, exist_ok=True)
            else:
                work, _ = make_work(union.upper)
        options = Options(
            lowers=union.lowers,
            upper=union.upper or None,
            work=work or None,
            unmapped_as_root=idmap.maps_one_user(),
        )
        source = MountOptions(source="unionfs", allow_other=True, read_only=not union.upper)
        started = start(DaemonOptions(union=options, mountpoint=mountpoint, mount=source, log=log))
    except (OptionError, StartError) as error:
        raise OciError(f"mounting the union {mountpoint}: {error}") from error
    except OSError as error:
        raise OciError.of("preparing the union", error) from error
    for fd in {started.pidfd, started.ended}:
        os.close(fd)
    return started.pid


def _joined(bundle: str, path: str) -> str:
    return os.path.join(bundle, path) if path else ""
