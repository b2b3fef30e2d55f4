"""Pause and resume containers, and change their limits, through their control groups."""

from __future__ import annotations

from unionfs.oci import show, state
from unionfs.oci.cgroups import Cgroup
from unionfs.oci.errors import OciError
from unionfs.oci.fields import Field
from unionfs.oci.report import Report
from unionfs.oci.state import Container


def pause(container: Container) -> None:
    """Stop all processes of a container. Raises: OciError."""
    with container.locked():
        saved = container.load()
        now = show.status(container, saved)
        if now not in ("created", "running"):
            raise OciError(f"container not running: it is {now}" if now != "stopped" else "container not running")
        Cgroup(saved.cgroups).freeze(True)


def resume(container: Container) -> None:
    """Continue all processes of a paused container. Raises: OciError."""
    with container.locked():
        saved = container.load()
        if show.status(container, saved) != "paused":
            raise OciError("container not paused")
        Cgroup(saved.cgroups).freeze(False)


def update(container: Container, resources: Field, report: Report) -> None:
    """Change the limits of a container to those of `resources`; all others stay. Raises: OciError."""
    with container.locked():
        saved = container.load()
        if state.status_of(container, saved) == "stopped":
            raise OciError("container not running")
        Cgroup(saved.cgroups).apply(resources, tolerant=False, report=report, with_devices=False)
