"""Make the launcher's Spec of a container's configuration, its ids and this machine."""

from __future__ import annotations

import os
from typing import Final

from unionfs.containers import etc, volume_mounts
from unionfs.containers.config import ContainerConfig, DeviceNames, HostUser
from unionfs.containers.devices import Devices
from unionfs.containers.record import Container
from unionfs.containers.rootfs import mountpoints_file
from unionfs.drivers.names import FUSE
from unionfs.launcher import idmap
from unionfs.launcher.spec import SEARCH_PATH, Bind, Caller, NetworkHelper, Process, Spec, Tmpfs
from unionfs.syscalls import seccomp

_RUNTIME_DIRECTORIES: Final = ("/run", "/tmp", "/var/tmp")


def bundle_of(container: Container) -> str:
    """The directory of an OCI runtime's bundle and state."""
    return os.path.join(container.directory, "bundle")


def make_spec(container: Container, process: Process, id_map: idmap.NamespaceMap | None) -> Spec:
    """The Spec for running `process` in the container.

    Raises: LaunchError if no uplink program is installed, ContainerError for a device that cannot be resolved.
    """
    config, me = container.config, container.config.me
    if process.user != config.process.user:
        me = None  # `exec --user` names another one
    if me and process.workdir == config.process.workdir:
        process = process._replace(workdir=me.workdir)
    if me and id_map:
        id_map = id_map._replace(keeps_groups=True)
    given = _devices(config.devices)
    network, rootfs = config.network, config.rootfs
    borrows_resolver = rootfs.shows_host and not network.private and os.path.exists("/etc/resolv.conf")
    in_memory = (path for path in _RUNTIME_DIRECTORIES if rootfs.shows_host and os.path.ismount(path))
    return Spec(
        rootfs=container.merged,
        process=process._replace(environment=(*_environment(container, process), *given.environment)),
        hostname=container.hostname,
        binds=(*etc.binds(container), *given.binds, *volume_mounts.binds(container)),
        devices=given.nodes,
        hooks=given.hooks,
        groups=given.groups,
        # It may lead into /run, which is another filesystem and not part of a view of the host.
        provided=(Bind("/etc/resolv.conf", "/etc/resolv.conf"),) if borrows_resolver else (),
        tmpfs=(*config.mounts.tmpfs, *map(Tmpfs, in_memory)),
        own_network=network.private,
        network_helper=NetworkHelper(uplink_program(config), container.directory, network.published)
        if network.uplink
        else None,
        read_only=rootfs.read_only or bool(rootfs.only),
        only=rootfs.only,
        supervised=is_supervised(config, id_map),
        id_map=id_map,
        mountpoints=mountpoints_file(container),
        runtime=config.runtime,
        bundle=bundle_of(container),
        caller=_caller(me) if me else None,
        namespace_socket=container.namespace_socket if config.kind == "run" or config.session else "",
    )


def _environment(container: Container, process: Process) -> tuple[tuple[str, str], ...]:
    usual = {"PATH": SEARCH_PATH, "HOSTNAME": container.hostname, "container": "unionfs"}
    if process.terminal:
        usual["TERM"] = "xterm"
    mine = container.config.me.environment if container.config.me else ()
    return tuple({**usual, **dict(mine), **dict(process.environment)}.items())


def _devices(wanted: DeviceNames) -> Devices:
    if not wanted.names:
        return Devices()
    from unionfs.containers import devices

    return devices.find(*wanted)


def _caller(me: HostUser) -> Caller:
    """The user, with the umask and the descriptors of this process."""
    umask = os.umask(0o077)
    os.umask(umask)
    numbers = (int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2)
    return Caller(me.uid, me.groups[0].gid, umask, tuple(fd for fd in numbers if _is_inheritable(fd)))


def _is_inheritable(fd: int) -> bool:
    """Whether our caller left the descriptor to us: all that we open are closed by exec (PEP 446)."""
    try:
        return os.get_inheritable(fd)
    except OSError:  # that of the listing itself
        return False


def uplink_program(config: ContainerConfig) -> str:
    """The program that connects a private network, pasta or slirp4netns. Raises: LaunchError if none is installed."""
    from unionfs.launcher import private_network

    return private_network.find(config.network.uplink)


def uplink_nameserver(config: ContainerConfig) -> str:
    """The address at which the uplink answers DNS; empty without one."""
    if not config.network.uplink:
        return ""
    from unionfs.launcher.private_network import NAMESERVERS

    return NAMESERVERS[uplink_program(config)]


def is_supervised(config: ContainerConfig, id_map: idmap.NamespaceMap | None) -> bool:
    """Whether ids that a container with one id lacks are emulated: only by our own union and launcher."""
    if id_map is None or not id_map.limited or config.me:
        return False
    return config.rootfs.driver == FUSE and not config.runtime and seccomp.is_available()
