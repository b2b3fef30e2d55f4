"""Read descriptions of the Container Device Interface, and resolve names of devices with them.

A description is a JSON or YAML file that lists a vendor's devices and the device nodes, mounts, hooks and variables
that a container needs for each. Names of fields and types are those of the specification. Later directories of the list
have priority over earlier ones.

Source: Container Device Interface specification 1.1.0 (cncf-tags/container-device-interface, SPEC.md).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from unionfs.containers import json_values
from unionfs.containers.errors import ContainerError
from unionfs.launcher.spec import HOOKS

DIRECTORIES: Final = ("/etc/cdi", "/var/run/cdi")
"""The directories of the specification: for files of the administrator, and for files that are made at each boot."""

VERSIONS: Final = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
"""Versions of descriptions that are read."""

_VENDOR: Final = r"[A-Za-z](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_CLASS: Final = r"[A-Za-z](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._:-]*[A-Za-z0-9])?"
_QUALIFIED: Final = re.compile(rf"({_VENDOR}/{_CLASS})=({_NAME})")
_KIND: Final = re.compile(rf"{_VENDOR}/{_CLASS}")
_SUFFIXES: Final = (".json", ".yaml")
_LARGEST: Final = 4 << 20  # bytes of a description; NVIDIA's for eight cards has 30 kB
_BIND_TYPES: Final = ("", "bind", "none")
_ANNOTATIONS: Final = "annotations"  # of descriptions and devices; without effect on a container


class DeviceNode(NamedTuple):
    """A device node of the host."""

    path: str  # in the container
    hostPath: str = ""  # empty: the same
    type: str = ""
    major: int = 0
    minor: int = 0
    fileMode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None

    @classmethod
    def later_fields(cls) -> tuple[str, ...]:
        """The fields that may be absent."""
        return cls._fields[1:]


class Mount(NamedTuple):
    """A file or directory of the host."""

    hostPath: str
    containerPath: str
    type: str = ""
    options: tuple[str, ...] = ()

    @classmethod
    def later_fields(cls) -> tuple[str, ...]:
        """The fields that may be absent."""
        return ("type", "options")


class Hook(NamedTuple):
    """A hook of the OCI runtime specification."""

    hookName: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None

    @classmethod
    def later_fields(cls) -> tuple[str, ...]:
        """The fields that may be absent."""
        return cls._fields[2:]


class Edits(NamedTuple):
    """The device nodes, mounts, hooks and variables that a container needs for its devices."""

    env: tuple[str, ...] = ()
    deviceNodes: tuple[DeviceNode, ...] = ()
    mounts: tuple[Mount, ...] = ()
    hooks: tuple[Hook, ...] = ()
    additionalGIDs: tuple[int, ...] = ()

    @classmethod
    def later_fields(cls) -> tuple[str, ...]:
        """The fields that may be absent."""
        return cls._fields

    def with_those_of(self, other: Edits) -> Edits:
        """The edits of both, the other's last."""
        return Edits(
            self.env + other.env,
            self.deviceNodes + other.deviceNodes,
            self.mounts + other.mounts,
            self.hooks + other.hooks,
            self.additionalGIDs + other.additionalGIDs,
        )


class _Device(NamedTuple):
    name: str
    containerEdits: Edits


class _Description(NamedTuple):
    cdiVersion: str
    kind: str
    devices: tuple[_Device, ...]
    containerEdits: Edits = Edits()

    @classmethod
    def later_fields(cls) -> tuple[str, ...]:
        """The fields that may be absent."""
        return ("containerEdits",)


def is_name(text: str) -> bool:
    """Whether `text` is the name of a device, VENDOR/CLASS=NAME."""
    return _QUALIFIED.fullmatch(text) is not None


def resolve(names: Iterable[str], directories: Sequence[str] = DIRECTORIES) -> Edits:
    """The edits for the devices of these names. Raises: ContainerError for a name that no description has, or several
    of one directory have; the message lists the directories that were read and the files that cannot be used."""
    found, used, wanted = Edits(), set(), dict.fromkeys(names)
    if not wanted:
        return found
    read = _Read(directories)
    for name in wanted:
        path, description, device = read.find(name)
        if path not in used:
            used.add(path)
            found = found.with_those_of(description.containerEdits)
        found = found.with_those_of(device.containerEdits)
    return found


def parse(document: Any) -> _Description:
    """The checked value of a description. Pure. Raises: ValueError with the reason."""
    if not isinstance(document, dict):
        raise ValueError("it is not an object")
    version = document.get("cdiVersion")
    if not isinstance(version, str) or version.removeprefix("v") not in VERSIONS:
        raise ValueError(f"cdiVersion is {version!r}, and versions {VERSIONS[0]} to {VERSIONS[-1]} are read")
    found = json_values.decode(_Description, _without_absent(document))
    if not _KIND.fullmatch(found.kind):
        raise ValueError(f"kind {found.kind!r} is not VENDOR/CLASS")
    for device in found.devices:
        if not re.fullmatch(_NAME, device.name):
            raise ValueError(f"{device.name!r} is no name of a device")
    if len({device.name for device in found.devices}) < len(found.devices):
        raise ValueError("two devices have one name")
    for edits in (found.containerEdits, *(device.containerEdits for device in found.devices)):
        _check(edits)
    return found


def _check(edits: Edits) -> None:
    """Raises: ValueError for edits that are not possible in a container."""
    for node in edits.deviceNodes:
        if not {"r", "w"} <= set(node.permissions or "rwm") <= set("rwm"):
            raise ValueError(f"{node.path}: permissions {node.permissions!r}: only rw and rwm are possible")
        _check_paths(node.path, node.hostPath or node.path)
    for mount in edits.mounts:
        if mount.type not in _BIND_TYPES:
            raise ValueError(f"{mount.containerPath}: a mount of type {mount.type!r} is not possible, only bind mounts")
        _check_paths(mount.containerPath, mount.hostPath)
    for hook in edits.hooks:
        if hook.hookName not in HOOKS:
            raise ValueError(f"hookName {hook.hookName!r} is not one of {', '.join(HOOKS)}")
        _check_paths(hook.path)
    for entry in edits.env:
        if "=" not in entry.lstrip("="):
            raise ValueError(f"{entry!r} is not NAME=VALUE")


def _check_paths(*paths: str) -> None:
    for path in paths:
        if not path.startswith("/") or "\0" in path or os.path.normpath(path).strip("/") == "":
            raise ValueError(f"{path!r} is not an absolute path below /")


def _without_absent(value: Any) -> Any:
    """`value` without members that are null, as Go's decoders read it, and without annotations."""
    if isinstance(value, dict):
        return {
            name: _without_absent(member)
            for name, member in value.items()
            if member is not None and name != _ANNOTATIONS
        }
    return [_without_absent(item) for item in value] if isinstance(value, list) else value


class _Read:
    """The descriptions in the directories; read when the first name is looked up."""

    def __init__(self, directories: Sequence[str]) -> None:
        self._directories: Final = directories
        self._found: Final[list[list[tuple[str, _Description]]]] = []  # a list for each directory, the last one first
        self._notes: Final[list[str]] = []  # for errors: the directories, and files that cannot be used
        for directory in reversed(directories):
            self._found.append(self._read(directory))

    def find(self, name: str) -> tuple[str, _Description, _Device]:
        """The file, the description and the device of this name. Raises: ContainerError."""
        match = _QUALIFIED.fullmatch(name)
        if not match:
            raise ContainerError("", "", f"--device {name}: it is not VENDOR/CLASS=NAME, nor a path")
        kind, wanted = match.groups()
        for descriptions in self._found:
            having = [
                (path, description, device)
                for path, description in descriptions
                if description.kind == kind
                for device in description.devices
                if device.name == wanted
            ]
            if len(having) == 1:
                return having[0]
            if having:
                files = " and ".join(path for path, _, _ in having)
                raise ContainerError("", "", f"--device {name}: it is described twice, by {files}")
        known = [
            f"{kind}={device.name}"
            for descriptions in self._found
            for _, description in descriptions
            if description.kind == kind
            for device in description.devices
        ]
        hint = f"devices of {kind}: {', '.join(sorted(set(known)))}" if known else ""
        raise ContainerError("", "", f"--device {name}: no description has it; {'; '.join(self._notes)}", hint=hint)

    def _read(self, directory: str) -> list[tuple[str, _Description]]:
        try:
            names = sorted(name for name in os.listdir(directory) if name.endswith(_SUFFIXES))
        except FileNotFoundError:
            self._notes.append(f"{directory} does not exist")
            return []
        except OSError as error:
            self._notes.append(f"{directory} cannot be read ({error.strerror})")
            return []
        found = []
        wrong = []
        for path in (os.path.join(directory, name) for name in names):
            try:
                found.append((path, parse(_load(path))))
            except OSError as error:
                wrong.append(f"{path} cannot be read ({error.strerror})")
            except ValueError as error:
                wrong.append(f"{path} cannot be used ({' '.join(str(error).split())})")
        count = f"{len(names)} file{'' if len(names) == 1 else 's'}"
        self._notes.extend((f"{directory} has {count}", *wrong))
        return found


def _load(path: str) -> Any:
    """The document of a file. Raises: OSError, ValueError."""
    with open(path, "rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"it is longer than {_LARGEST} bytes")
    try:
        if path.endswith(".json"):
            return json.loads(data)
        import yaml

        return yaml.safe_load(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            raise ValueError(str(error)) from None
        raise
