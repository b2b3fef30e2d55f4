"""What is to be run on which union: the wish of a command line, before there is a container. Values only."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from unionfs.daemon import DEFAULT_TRANSPORT
from unionfs.drivers.driver import DEFAULT
from unionfs.launcher.capabilities import USUAL
from unionfs.launcher.resources import Limit
from unionfs.launcher.spec import Port


@dataclass(frozen=True, slots=True)
class Volume:
    """A file or directory of the host that the container sees. With `aside`, what it writes there is thrown away."""

    source: str  # absolute
    target: str  # absolute and normal
    read_only: bool = False
    aside: bool = False
    name: str = ""  # of a volume of the store; `source` are its data then
    filled: bool = True  # when that is empty, it gets what the image has in its place


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be run on which union. Immutable."""

    lowers: tuple[str, ...]  # host paths, absolute, the topmost first
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()  # besides PATH, HOME, HOSTNAME, TERM and container
    kind: str = "run"  # as in Container
    name: str | None = None
    hostname: str | None = None  # None: the beginning of the container's id
    user: str = ""
    workdir: str = "/"
    volumes: tuple[Volume, ...] = ()
    tmpfs: tuple[str, ...] = ()
    tmpfs_options: tuple[tuple[str, str], ...] = ()  # of some of these
    own_network: bool = False
    uplink: str = ""  # a way out of that: a program, or "private" for whichever is installed; empty: none
    hosts: tuple[tuple[str, str], ...] = ()  # names and addresses for the container's /etc/hosts
    nameservers: tuple[str, ...] = ()  # instead of this machine's
    published: tuple[Port, ...] = ()  # ports of this machine that lead in, then
    read_only: bool = False
    interactive: bool = False
    terminal: bool = False
    capabilities: tuple[str, ...] = USUAL
    no_new_privileges: bool = True
    limits: tuple[Limit, ...] = ()
    driver: str = DEFAULT  # how the root filesystem comes about, one of drivers.driver.NAMES
    runtime: str = ""  # the OCI runtime that makes the container; empty: our own launcher
    remove: bool = False  # keep nothing when the command has ended
    transport: str = DEFAULT_TRANSPORT
    whiteout: str = "aufs"
    durability: str = "normal"
    debug: bool = False
    image: str = ""  # as it was asked for; empty: `lowers` are directories that somebody named
    image_digest: str = ""  # of its manifest
    image_type: str = ""  # the manifest's media type
    entrypoint: tuple[str, ...] = ()  # the first part of `command`, as an image of the container is to have it
    anonymous: tuple[str, ...] = ()  # where volumes are that belong to the container alone, see `containers.volumes`
    stop_signal: str = "SIGTERM"
    labels: tuple[tuple[str, str], ...] = ()
    ports: tuple[str, ...] = ()  # that the image says it serves; nothing is done with them
    logged: bool = False  # what the command prints is kept

    @property
    def shows_host(self) -> bool:
        """Whether the host's own `/` is in the union."""
        return any(os.path.realpath(lower) == "/" for lower in self.lowers)


_NOT_RECORDED = ("lowers", "command", "kind", "name", "image", "image_digest", "image_type", "debug")


def to_record(job: Job) -> dict[str, Any]:
    """What of a job the container's record has no fields for, as JSON has it."""
    return {key: value for key, value in dataclasses.asdict(job).items() if key not in _NOT_RECORDED}


def from_record(record: dict[str, Any], **others: Any) -> Job:
    """The job again; `others` are the fields that are not in such a record. What is not known here is left out."""
    known = {field.name for field in dataclasses.fields(Job)}
    values = {key: _frozen(value) for key, value in record.items() if key in known}
    values["limits"] = tuple(Limit(*limit) for limit in record.get("limits", ()))
    values["published"] = tuple(Port(*port) for port in record.get("published", ()))
    values["volumes"] = tuple(Volume(**volume) for volume in record.get("volumes", ()))
    return Job(**values, **others)


def _frozen(value: Any) -> Any:
    """Lists made tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
