"""The store of volumes: directories that outlive the containers that use them.

    ROOT/volumes/NAME/data          what containers see; belongs to root of the containers
    ROOT/volumes/NAME/volume.json   when it was made, its labels, and whether it is anonymous

A volume of an image's VOLUME or of `-v /path` is anonymous: its name is a long number, made of the container's id.
Knows directories and containers' records.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from unionfs import store_files
from unionfs.containers import names
from unionfs.containers.errors import ContainerError
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore

_RECORD: Final = "volume.json"
_DATA: Final = "data"
_NEW: Final = ".new-"
_GONE: Final = ".removing-"


class NamedVolume(NamedTuple):
    """One volume."""

    name: str
    directory: str  # its data
    created: float
    anonymous: bool = False
    labels: tuple[tuple[str, str], ...] = ()


class VolumeStore:
    """All volumes of one root directory."""

    def __init__(self, root: str) -> None:
        self._root: Final = os.path.join(root, "volumes")

    def path(self, name: str) -> str:
        """The path of a volume's data; the volume need not exist."""
        return os.path.join(self._root, name, _DATA)

    def create(self, name: str, *, anonymous: bool = False, labels: tuple[tuple[str, str], ...] = ()) -> NamedVolume:
        """Make the volume if it does not exist. Raises: ContainerError for a bad name, OSError."""
        if not names.PATTERN.fullmatch(name):
            hint = "use at most 255 letters, digits, '_', '.' and '-', and begin with a letter or digit"
            raise ContainerError("", "", f"bad name of a volume: {name}", hint=hint)
        place = os.path.join(self._root, name)
        if not os.path.isdir(place):
            aside = os.path.join(self._root, f"{_NEW}{os.urandom(8).hex()}")
            os.makedirs(os.path.join(aside, _DATA), 0o755)
            record = {"created": time.time(), "anonymous": anonymous, "labels": dict(labels)}
            store_files.write_file(os.path.join(aside, _RECORD), json.dumps(record).encode("ascii"))
            try:
                os.rename(aside, place)
            except OSError:
                if not os.path.isdir(place):  # else another process was faster
                    raise
        return self.find(name)

    def find(self, name: str) -> NamedVolume:
        """The volume of this name. Raises: ContainerError if there is none."""
        record: dict[str, Any] = {}
        try:
            if not names.PATTERN.fullmatch(name):
                raise FileNotFoundError
            data = store_files.read_file(os.path.join(self._root, name, _RECORD))
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(data)
                record = value if isinstance(value, dict) else {}
        except (FileNotFoundError, NotADirectoryError):
            raise ContainerError("", "", f"no such volume: {name}", hint="unionfs volume ls lists them") from None
        labels = record.get("labels")
        labels = tuple(labels.items()) if isinstance(labels, dict) else ()
        created = record.get("created")
        if not isinstance(created, int | float):
            created = 0.0
        return NamedVolume(name, self.path(name), created, bool(record.get("anonymous")), labels)

    def list(self) -> list[NamedVolume]:
        """All volumes, sorted by name."""
        try:
            entries = sorted(store_files.list_directory(self._root))
        except FileNotFoundError:
            return []
        found = []
        for name in entries:
            with contextlib.suppress(ContainerError, OSError):
                found.append(self.find(name))
        return found

    def remove(self, name: str, remove_path: Callable[[str], None]) -> None:
        """Rename the volume out of the way, then delete it. `remove_path` deletes files of all owners. Raises:
        OSError."""
        gone = os.path.join(self._root, f"{_GONE}{os.urandom(8).hex()}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(os.path.join(self._root, name), gone)
        for left in store_files.list_directory(self._root) if os.path.lexists(self._root) else ():
            if left.startswith((_GONE, _NEW)):
                remove_path(os.path.join(self._root, left))


def anonymous_names(container: Container) -> list[str]:
    """The names of the container's anonymous volumes."""
    count = len(container.config.mounts.anonymous)
    if not count:
        return []
    import hashlib  # late: its import takes longer than the rest of this module

    return [hashlib.sha256(f"{container.id}:{number}".encode()).hexdigest() for number in range(count)]


def used_by(store: ContainerStore) -> dict[str, list[str]]:
    """Volume -> names of the containers that use it."""
    found: dict[str, list[str]] = {}
    for container in store.list():
        named = [volume.name for volume in container.config.mounts.volumes]
        for name in [*filter(None, named), *anonymous_names(container)]:
            found.setdefault(name, []).append(container.name)
    return found
