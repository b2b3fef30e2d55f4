"""The options of a build, as one value, and the events that it sends. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from layers.compression import GZIP
from layers.manifest import Platform
from layers.pack import Epoch
from unionfs.containers.config import Network, Volume
from unionfs.launcher.resources import Limit

STEP: Final = "step"
CACHED: Final = "cached"
DONE: Final = "done"
FAILED: Final = "failed"
NOTE: Final = "note"


class Event(NamedTuple):
    """Something that happened in a stage."""

    kind: str  # STEP: it begins; CACHED, DONE, FAILED: it has ended; NOTE: a line for people
    text: str
    stage: int = 0  # counted from 1 among those that are built; 0: no stage
    stages: int = 1  # how many are built
    step: int = 0  # counted from 1
    steps: int = 0


class EventReceiver(NamedTuple):
    """The receiver of a build's events. Called in other processes of the build, too."""

    event: Callable[[Event], None]
    output: Callable[[int, str, bytes], None]  # stage, stdout or stderr, bytes that a command has printed
    ready: Callable[[], None]  # called when a command has been executed, in the process that has started it
    is_direct: bool = False  # commands of an only stage print to our standard output and error


class BuildOptions(NamedTuple):
    """How images are built."""

    arguments: Mapping[str, str] = {}  # --build-arg
    secrets: Mapping[str, bytes] = {}  # --secret, by id
    target: str = ""
    platform: Platform | None = None
    no_cache: bool = False
    network: Network = Network()
    limits: tuple[Limit, ...] = ()
    volumes: tuple[Volume, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    compression: str = GZIP
    epoch: Epoch | None = None
    squash: bool = False
    keep_failed: str = ""  # the name of the container of a failed RUN that is kept; empty: none is kept
    cache_from: tuple[str, ...] = ()  # names of caches in registries
    cache_to: tuple[str, ...] = ()
    jobs: int = 0  # stages at once; 0: as many as there are processors
