"""Compute the mounts by which containerd mounts a snapshot. Pure.

A snapshot without parents and a view of a single parent need no union: they are bind mounts. All others are mounted by
the mount program through mount.fuse3(8), which containerd runs for types that begin with `fuse3.`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from unionfs.snapshotter.values import Kind, Mount

UNUSABLE_IN_PATHS: Final = ',:\\"'
"""Characters that the path of the root may not contain: they are separators or quotes in mount options."""

_MAPPINGS: Final = {
    "containerd.io/snapshot/uidmapping": "uidmapping",
    "containerd.io/snapshot/gidmapping": "gidmapping",
}
"""Label of a container in a user namespace -> option of the mount program."""


def mounts_of(
    kind: Kind, own: str, parents: Sequence[str], labels: Mapping[str, str], mount_program: str
) -> list[Mount]:
    """Return the mounts for a snapshot with the directory `own`; `parents` are directories, nearest first."""
    mapped = [f"{option}={labels[label].replace(',', ':')}" for label, option in _MAPPINGS.items() if labels.get(label)]
    if not parents:
        return [_bind(own, "ro" if kind is Kind.VIEW else "rw")]
    if kind is Kind.VIEW and len(parents) == 1 and not mapped:
        return [_bind(parents[0], "ro")]
    options = [] if kind is Kind.VIEW else [f"workdir={work_of(own)}", f"upperdir={files_of(own)}"]
    options.append("lowerdir=" + ":".join(map(files_of, parents)))
    return [Mount(f"fuse3.{mount_program}", "overlay", (*options, *mapped))]


def files_of(snapshot: str) -> str:
    """Return the directory of a snapshot's files: an upper, and a lower once it is committed."""
    return f"{snapshot}/fs"


def work_of(snapshot: str) -> str:
    """Return the work directory beside the upper."""
    return f"{snapshot}/work"


def _bind(snapshot: str, access: str) -> Mount:
    return Mount("bind", files_of(snapshot), (access, "rbind"))
