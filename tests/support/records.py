"""Records of containers that never ran, in the form of `unionfs create`."""

from __future__ import annotations

from pathlib import Path

from unionfs.containers import record
from unionfs.containers.config import ContainerConfig, Image, RootFilesystem
from unionfs.launcher.spec import Process


def write_record(root: Path, lower: str, digest: str = "") -> Path:
    """Make a container on `lower`, of the image with this digest. Returns the file of its record."""
    image = Image("some:1", digest, "") if digest else None
    config = ContainerConfig(Process(("true",)), RootFilesystem((lower,)), image=image)
    container = record.new(str(root), config, "c")
    path = Path(container.directory, "container.json")
    path.parent.mkdir(parents=True)
    path.write_text(record.to_json(container))
    return path
