"""`linux.sysctl` of config.json: settings of the kernel that belong to namespaces of the container's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from unionfs.oci.config import Config
from unionfs.oci.errors import OciError

_OF_IPC: Final = frozenset(
    f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)
_OF_UTS: Final = frozenset(("kernel.domainname", "kernel.hostname"))


def check(config: Config) -> None:
    """Refuse settings that would change the machine. Raises: OciError."""
    for name in config.sysctls:
        plain = name.replace("/", ".")
        kind = _namespace_of(plain)
        if kind is None or ".." in name.split("/"):
            raise OciError(f"linux.sysctl: sysctl {name!r} is not in a separate kernel namespace")
        if kind not in config.namespaces:
            raise OciError(f"linux.sysctl: sysctl {name!r} is not allowed in the host's {kind} namespace")
        if plain == "kernel.hostname" and config.hostname:
            raise OciError(f"linux.sysctl: {name!r} and hostname are given both")


def apply(settings: Mapping[str, str]) -> None:
    """Write the settings. Preconditions: in the container's namespaces, while /proc is still the host's. Raises:
    OciError."""
    for name, value in settings.items():
        path = os.path.join("/proc/sys", name if "/" in name else name.replace(".", "/"))
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise OciError.of(f"setting sysctl {name}", error) from error


def _namespace_of(name: str) -> str | None:
    if name.startswith("net."):
        return "network"
    if name in _OF_IPC or name.startswith("fs.mqueue."):
        return "ipc"
    return "uts" if name in _OF_UTS else None
