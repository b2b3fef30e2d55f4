"""What a container is made of and runs: one frozen value, made of a command line once and kept in the record. Pure.

`Process`, `Tmpfs`, `Port` and `Limit` are the launcher's own values, which it is given as they are.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from unionfs.drivers.driver import DEFAULT
from unionfs.fuse.options import DEFAULT_TRANSPORT
from unionfs.launcher.spec import Port, Process, Tmpfs


class Image(NamedTuple):
    """The image that a container is made of."""

    name: str  # as it was asked for
    digest: str  # of the manifest
    media_type: str  # of the manifest
    exposed_ports: tuple[str, ...] = ()  # that the image says it serves; nothing is done with them


class RootFilesystem(NamedTuple):
    """The branches that a root filesystem is a union of, and how that is made."""

    lowers: tuple[str, ...]  # host paths, absolute, the topmost first
    driver: str = DEFAULT  # one of drivers.driver.NAMES
    read_only: bool = False
    transport: str = DEFAULT_TRANSPORT
    whiteout: str = "aufs"
    durability: str = "normal"
    passthrough: bool = False  # core.options.Options.passthrough
    keeper: bool = True  # daemon_options.DaemonOptions.keeper

    @staticmethod
    def later_fields() -> tuple[str, ...]:
        """Those that records of earlier versions do not have."""
        return ("passthrough", "keeper")

    @property
    def shows_host(self) -> bool:
        """Whether the host's own `/` is in the union."""
        return any(os.path.realpath(lower) == "/" for lower in self.lowers)


class Volume(NamedTuple):
    """A file or directory of the host that the container sees at `target`."""

    source: str  # absolute
    target: str  # absolute and normal
    read_only: bool = False
    overlay: bool = False  # shown through a union of its own, whose upper is thrown away at the end (podman's :O)
    name: str = ""  # of a volume of the store; `source` is its data then
    populate: bool = True  # when such a volume is empty, it gets what the image has at `target`


class Mounts(NamedTuple):
    """What is mounted in a container besides what every container has."""

    volumes: tuple[Volume, ...] = ()
    anonymous: tuple[str, ...] = ()  # targets of volumes that belong to the container alone (`containers.volumes`)
    tmpfs: tuple[Tmpfs, ...] = ()


class Network(NamedTuple):
    """The network of a container: the host's unless `private`."""

    private: bool = False  # a network namespace with a loopback only, unless there is an uplink
    uplink: str = ""  # the program that leads out of it, or "private" for whichever is installed; empty: none
    published: tuple[Port, ...] = ()  # ports of the host that lead in
    hosts: tuple[tuple[str, str], ...] = ()  # names and addresses for the container's /etc/hosts
    nameservers: tuple[str, ...] = ()  # instead of the host's


class ContainerConfig(NamedTuple):
    """What a container is made of and runs."""

    process: Process  # `environment` without PATH, HOSTNAME, TERM and container, which `starting` adds
    rootfs: RootFilesystem
    mounts: Mounts = Mounts()
    network: Network = Network()
    image: Image | None = None  # None: `rootfs.lowers` are directories that the user named
    kind: str = "run"  # run | try
    hostname: str = ""  # empty: the beginning of the container's id
    entrypoint: tuple[str, ...] = ()  # the first part of `process.command`, as an image of the container is to have it
    stop_signal: str = "SIGTERM"
    labels: tuple[tuple[str, str], ...] = ()
    runtime: str = ""  # the OCI runtime that makes the container; empty: our own launcher
    logged: bool = False  # what the command prints is kept
    remove: bool = False  # the container is removed when the command has ended

    @property
    def mounts_on_rootfs(self) -> bool:
        """Whether anything is mounted where the root filesystem need not have a place. The host's `/` has most."""
        return not self.rootfs.shows_host or self.mounts != Mounts()
