"""What is to be run on which union: the wish of a command line, before there is a container. Values only."""

from __future__ import annotations

import os
from dataclasses import dataclass

from unionfs.daemon import DEFAULT_TRANSPORT
from unionfs.launcher.capabilities import USUAL


@dataclass(frozen=True, slots=True)
class Volume:
    """A file or directory of the host that the container sees. With `aside`, what it writes there is thrown away."""

    source: str  # absolute
    target: str  # absolute and normal
    read_only: bool = False
    aside: bool = False


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
    own_network: bool = False
    read_only: bool = False
    interactive: bool = False
    terminal: bool = False
    capabilities: tuple[str, ...] = USUAL
    no_new_privileges: bool = True
    remove: bool = False  # keep nothing when the command has ended
    transport: str = DEFAULT_TRANSPORT
    whiteout: str = "aufs"
    durability: str = "normal"
    debug: bool = False

    @property
    def shows_host(self) -> bool:
        """Whether the host's own `/` is in the union."""
        return any(os.path.realpath(lower) == "/" for lower in self.lowers)
