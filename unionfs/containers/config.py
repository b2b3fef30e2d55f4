"""The configuration of a container: one frozen value, made of a command line once and stored in the record. Pure.

`Process`, `Tmpfs`, `Port` and `Limit` are the launcher's classes; their values are passed to it unchanged.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from unionfs.drivers.names import FUSE
from unionfs.fuse.options import DEFAULT_TRANSPORT
from unionfs.launcher.spec import Port, Process, Tmpfs


class Image(NamedTuple):
    """The image that a container is made of."""

    name: str  # as on the command line
    digest: str  # of the manifest
    media_type: str  # of the manifest
    exposed_ports: tuple[str, ...] = ()  # EXPOSE of the image; without effect
    store: str = ""  # root of the store that has its layers, if it is another one than the container's

    @staticmethod
    def later_fields() -> tuple[str, ...]:
        """The fields that records of earlier versions do not have."""
        return ("store",)


class ImageFile(NamedTuple):
    """An image that is one file: a squashfs, in bytes of the file."""

    path: str  # absolute
    offset: int
    size: int
    identity: str  # layers.image_file.Found.identity
    directories: tuple[str, ...] = ("",)  # in the squashfs, which are lowers, the topmost first


class RootFilesystem(NamedTuple):
    """The branches of a root filesystem, and how their union is made."""

    lowers: tuple[str, ...]  # host paths, absolute, the topmost first
    driver: str = FUSE  # one of drivers.names.NAMES
    read_only: bool = False
    transport: str = DEFAULT_TRANSPORT
    whiteout: str = "aufs"
    durability: str = "normal"
    passthrough: bool = False  # core.options.Options.passthrough
    keeper: bool = True  # DaemonOptions.keeper
    restacked: bool = False  # `unionfs branch` has changed the lowers: they are not those of the image
    partial_from: int = 0  # core.options.Options.partial_from; 0: files are copied up whole
    only: str = ""  # a directory: the rest is read-only
    file: ImageFile | None = None  # its directories, mounted at Container.image_mountpoint, are the last lowers

    @staticmethod
    def later_fields() -> tuple[str, ...]:
        """The fields that records of earlier versions do not have."""
        return ("passthrough", "keeper", "restacked", "partial_from", "only", "file")

    @property
    def shows_host(self) -> bool:
        """Whether the host's own `/` is in the union."""
        return any(os.path.realpath(lower) == "/" for lower in self.lowers)


class Volume(NamedTuple):
    """A file or directory of the host that the container sees at `target`."""

    source: str  # absolute
    target: str  # absolute and normal
    read_only: bool = False
    overlay: bool = False  # shown through a separate union, whose upper is removed at the end (podman's :O)
    name: str = ""  # of a volume of the store; then `source` is its data directory
    populate: bool = True  # if such a volume is empty, the image's files at `target` are copied into it


class Mounts(NamedTuple):
    """The mounts of a container, besides those that every container has."""

    volumes: tuple[Volume, ...] = ()
    anonymous: tuple[str, ...] = ()  # targets of anonymous volumes (`containers.volumes`)
    tmpfs: tuple[Tmpfs, ...] = ()


class DeviceNames(NamedTuple):
    """The devices of a container, resolved at each start (`containers.devices`)."""

    names: tuple[str, ...] = ()  # VENDOR/CLASS=NAME, or paths
    directories: tuple[str, ...] = ()  # of descriptions; empty: cdi.DIRECTORIES


class Network(NamedTuple):
    """The network of a container: the host's unless `private`."""

    private: bool = False  # a network namespace with a loopback only, unless there is an uplink
    uplink: str = ""  # the program that connects it, or "private" for any that is installed; empty: none
    published: tuple[Port, ...] = ()  # published ports of the host
    hosts: tuple[tuple[str, str], ...] = ()  # names and addresses for the container's /etc/hosts
    nameservers: tuple[str, ...] = ()  # instead of the host's


class Group(NamedTuple):
    """A group of the host, as a user is in it."""

    name: str
    gid: int


class HostUser(NamedTuple):
    """The user of the host as whom a container's command runs (`--as-me`), with account, environment and
    directories."""

    name: str
    uid: int
    groups: tuple[Group, ...]  # the primary group first; not empty
    full_name: str
    home: str
    shell: str
    workdir: str
    environment: tuple[tuple[str, str], ...]  # of the caller; an image's own variables have priority


class ContainerConfig(NamedTuple):
    """The configuration of a container."""

    process: Process  # `environment` without PATH, HOSTNAME, TERM and container, which `launch_spec` adds
    rootfs: RootFilesystem
    mounts: Mounts = Mounts()
    network: Network = Network()
    image: Image | None = None  # None: `rootfs.lowers` are directories that the user named
    kind: str = "run"  # run | try
    hostname: str = ""  # empty: the beginning of the container's id
    entrypoint: tuple[str, ...] = ()  # the first part of `process.command`, the ENTRYPOINT of an image of the container
    stop_signal: str = "SIGTERM"
    labels: tuple[tuple[str, str], ...] = ()
    runtime: str = ""  # the OCI runtime that runs the container; empty: our own launcher
    logged: bool = False  # the command's output is stored
    remove: bool = False  # the container is removed when the command has ended
    session: bool = False  # of `unionfs try --name`: further commands join while one runs
    me: HostUser | None = None  # None: the command runs as `process.user`
    devices: DeviceNames = DeviceNames()

    @staticmethod
    def later_fields() -> tuple[str, ...]:
        """The fields that records of earlier versions do not have."""
        return ("session", "me", "devices")

    @property
    def mounts_on_rootfs(self) -> bool:
        """Whether there are mounts whose mountpoints the root filesystem may lack. The host's `/` has most of them."""
        return not self.rootfs.shows_host or self.mounts != Mounts()
