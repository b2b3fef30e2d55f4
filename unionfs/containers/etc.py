"""The container's /etc/hosts, /etc/hostname and /etc/resolv.conf.

CONTAINER/etc/{hosts,hostname,resolv.conf}   written before each start, bound to /etc/NAME
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from unionfs import store_files
from unionfs.containers import accounts
from unionfs.containers.record import Container
from unionfs.launcher.spec import Bind

_DIRECTORY: Final = accounts.DIRECTORY


def binds(container: Container) -> tuple[Bind, ...]:
    """The bind mounts of these files. A view of the host's own `/` on the host's network needs none."""
    return (*accounts.binds(container), *_network_binds(container))


def _network_binds(container: Container) -> tuple[Bind, ...]:
    network = container.config.network
    if network.private and not network.uplink:
        return ()
    names: tuple[str, ...] = ("hosts", "hostname", "resolv.conf")
    if container.config.rootfs.shows_host:
        names = ("resolv.conf",) if network.uplink else ()
    directory = os.path.join(container.directory, _DIRECTORY)
    return tuple(Bind(os.path.join(directory, name), f"/etc/{name}") for name in names)


def write(container: Container, uplink_nameserver: str = "") -> None:
    """Write the files that `binds` names. The nameservers are those of the configuration, else that of the uplink,
    else the host's. Raises: OSError."""
    wanted = _network_binds(container)
    if not wanted:
        return
    network = container.config.network
    added = [f"{address} {name}" for name, address in network.hosts]
    # A user of a cluster keeps the machine's name, at the address that the other machines know.
    own = () if container.config.me else (f"127.0.1.1 {container.hostname}",)
    hosts = [_text_of("/etc/hosts") or "127.0.0.1 localhost", *own, *added, ""]
    content = {
        "hosts": "\n".join(hosts),
        "hostname": f"{container.hostname}\n",
        "resolv.conf": _resolver(network.nameservers or ((uplink_nameserver,) if uplink_nameserver else ())),
    }
    os.makedirs(os.path.join(container.directory, _DIRECTORY), 0o755, exist_ok=True)
    for bind in wanted:  # at each start: this machine's names may have changed
        with contextlib.suppress(FileNotFoundError):  # the container may have changed its owner or mode
            os.unlink(bind.source)
        text = content[os.path.basename(bind.source)]
        store_files.write_file(bind.source, text.encode(errors="surrogateescape"), 0o644)


def _resolver(nameservers: tuple[str, ...]) -> str:
    text = _text_of("/etc/resolv.conf")
    if not nameservers:
        return text
    others = [line for line in text.splitlines() if line.split()[:1] not in (["nameserver"], [])]
    return "\n".join([*others, *(f"nameserver {nameserver}" for nameserver in nameservers), ""])


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""
