"""What the launcher is to run, and in which surroundings: values, complete and unchanging. Pure.

Paths in `rootfs` and `source` fields are the host's; all others are the container's own, resolved inside its root only.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from unionfs.launcher.capabilities import USUAL
from unionfs.launcher.idmap import NamespaceMap
from unionfs.launcher.resources import Limit

SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of a container that sets none."""


PASTA: Final = "pasta"
SLIRP: Final = "slirp4netns"


class Bind(NamedTuple):
    """Show `source`, a file or directory of the host with what is mounted below it, at `target`."""

    source: str
    target: str  # absolute and normal, not "/"; made if it is missing
    read_only: bool = False


class Port(NamedTuple):
    """A port of this machine that leads to one of the container."""

    address: str  # of this machine; empty: all
    outside: int
    inside: int
    protocol: str  # tcp or udp

    def __str__(self) -> str:
        return f"{self.address or '0.0.0.0'}:{self.outside}->{self.inside}/{self.protocol}"


class Uplink(NamedTuple):
    """A network that is ours alone, with a way out."""

    program: str  # PASTA or SLIRP
    directory: str  # where a file or two may be made
    ports: tuple[Port, ...] = ()

    def describe(self) -> str:
        led = f", {', '.join(map(str, self.ports))}" if self.ports else ""
        return f"connect the network through {self.program}{led}"


class Tmpfs(NamedTuple):
    """An empty filesystem in memory at `target`."""

    target: str  # absolute and normal; made if it is missing
    options: str = ""  # of tmpfs(5), separated by commas; empty: the usual ones for this path


class Process(NamedTuple):
    """A command, the user and the directory it runs as and in, and what it may do."""

    command: tuple[str, ...]  # not empty; the first is looked for in PATH of `environment` unless it has a slash
    environment: tuple[tuple[str, str], ...] = ()  # HOME, if it is missing, comes from the user's entry in passwd
    user: str = ""  # USER[:GROUP], names or numbers of the container; empty for root
    workdir: str = "/"  # absolute; made if it is missing
    interactive: bool = False  # the command reads our standard input; else /dev/null
    terminal: bool = False  # the command has a terminal of its own
    capabilities: tuple[str, ...] = USUAL  # names in capabilities.NUMBERS
    no_new_privileges: bool = True
    limits: tuple[Limit, ...] = ()  # all others are ours


class Spec(NamedTuple):
    """A container: a process, and the root filesystem, mounts and namespaces around it."""

    rootfs: str  # absolute; a directory once `prepare` has been called
    process: Process
    hostname: str = "container"
    binds: tuple[Bind, ...] = ()
    provided: tuple[Bind, ...] = ()  # files copied to `target` only where the container has none there
    tmpfs: tuple[Tmpfs, ...] = ()
    own_network: bool = False  # a network namespace with nothing but a loopback; else the host's network
    uplink: Uplink | None = None  # a way out of that
    read_only: bool = False
    namespace_socket: str = ""  # where the socket of `launcher.namespace_socket` is made; empty: nowhere
    mountpoints: str = ""  # a file to which the paths are added, ended by NUL, that were made to mount on; empty: none
    runtime: str = ""  # an OCI runtime (crun, runc) that is to make the container; empty: we do
    bundle: str = ""  # where it gets a directory; nothing is there
    supervised: bool = False  # the map has one id, and calls about others are answered by a `launcher.supervisor`
    id_map: NamespaceMap | None = None  # None: we are root and need no user namespace
