"""The launcher's input: a process to run, and its root filesystem, mounts and namespaces, as immutable values. Pure.

Paths in `rootfs` and `source` fields are the host's; all others are the container's own, resolved inside its root only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from unionfs.launcher.capabilities import USUAL
from unionfs.launcher.resources import Limit

if TYPE_CHECKING:  # every command that lists containers imports this module
    from unionfs.launcher.idmap import NamespaceMap

SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of a container that sets none."""


HOOKS: Final = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
"""Points of a container's life, in their order, as the OCI runtime specification names them."""

PASTA: Final = "pasta"
SLIRP: Final = "slirp4netns"


class Bind(NamedTuple):
    """Show `source`, a file or directory of the host with what is mounted below it, at `target`."""

    source: str
    target: str  # absolute and normal, not "/"; made if it is missing
    read_only: bool = False


class Port(NamedTuple):
    """A port of this machine whose connections are forwarded to a port of the container."""

    address: str  # of this machine; empty: all
    outside: int
    inside: int
    protocol: str  # tcp or udp

    def __str__(self) -> str:
        return f"{self.address or '0.0.0.0'}:{self.outside}->{self.inside}/{self.protocol}"


class NetworkHelper(NamedTuple):
    """A program that connects the container's network namespace to the host's network, and the ports it publishes."""

    program: str  # PASTA or SLIRP
    directory: str  # of the container; gets the file `netns` and the socket `slirp`
    ports: tuple[Port, ...] = ()

    def describe(self) -> str:
        ports = f", {', '.join(map(str, self.ports))}" if self.ports else ""
        return f"connect the network through {self.program}{ports}"


class Tmpfs(NamedTuple):
    """An empty filesystem in memory at `target`."""

    target: str  # absolute and normal; made if it is missing
    options: str = ""  # of tmpfs(5) and mount(8), separated by commas; empty: the usual ones for this path

    def is_read_only(self) -> bool:
        """Whether the last of `ro` and `rw` among the options is `ro`."""
        return next((word for word in reversed(self.options.split(",")) if word in ("ro", "rw")), "rw") == "ro"


class DeviceNode(NamedTuple):
    """Show the device node `source` of the host at `target`. Mode, owner and group are the host's unless they are
    given; without root they always are."""

    source: str
    target: str  # absolute and normal; made if it is missing
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class Hook(NamedTuple):
    """A program that is run at one point of a container's life, with its state as standard input."""

    path: str  # absolute
    args: tuple[str, ...]
    env: tuple[str, ...]  # NAME=VALUE, all of its environment
    timeout_s: int | None


class Process(NamedTuple):
    """A command, its user, working directory, environment, capabilities and limits."""

    command: tuple[str, ...]  # not empty; the first is searched in PATH of `environment` unless it has a slash
    environment: tuple[tuple[str, str], ...] = ()  # HOME defaults to the user's entry in passwd
    user: str = ""  # USER[:GROUP], names or numbers of the container; empty for root
    workdir: str = "/"  # absolute; made if it is missing
    interactive: bool = False  # the command reads our standard input; else /dev/null
    terminal: bool = False  # the command gets a new pseudo terminal
    capabilities: tuple[str, ...] = USUAL  # names in capabilities.NUMBERS
    no_new_privileges: bool = True
    limits: tuple[Limit, ...] = ()  # all others are inherited


class Caller(NamedTuple):
    """The user who starts a container whose command keeps ids, groups, umask, keyring and descriptors (`--as-me`)."""

    uid: int  # of the host, and of the command
    gid: int
    umask: int
    descriptors: tuple[int, ...]  # above 2, open in the launching process, which the command inherits


class Spec(NamedTuple):
    """A container: a process, and the root filesystem, mounts and namespaces around it."""

    rootfs: str  # absolute; a directory once `Hooks.prepare` has returned
    process: Process
    hostname: str = "container"
    binds: tuple[Bind, ...] = ()
    provided: tuple[Bind, ...] = ()  # files copied to `target` only where the container has none there
    tmpfs: tuple[Tmpfs, ...] = ()
    devices: tuple[DeviceNode, ...] = ()  # besides plan.DEVICES
    hooks: tuple[tuple[str, Hook], ...] = ()  # with the point of life at which each is run: one of HOOKS
    groups: tuple[int, ...] = ()  # further groups of the command, as far as the id map has them
    own_network: bool = False  # a network namespace with nothing but a loopback; else the host's network
    network_helper: NetworkHelper | None = None  # connects that namespace; None: no connection
    read_only: bool = False
    only: str = ""  # with read_only: a directory that stays writable; what is above it gets no tmpfs
    namespace_socket: str = ""  # path of the socket of `launcher.namespace_socket`; empty: none
    mountpoints: str = ""  # a file to which created mountpoints are appended, each ended by NUL; empty: none
    runtime: str = ""  # an OCI runtime (crun, runc) that makes the container; empty: we do
    bundle: str = ""  # path of the runtime's OCI bundle, a directory that we make; it must not exist
    supervised: bool = False  # the map has one id; a `launcher.supervisor` answers system calls about other ids
    id_map: NamespaceMap | None = None  # None: we are root and need no user namespace
    caller: Caller | None = None  # the user of the command, in the host's IPC namespace; None: `process.user`
