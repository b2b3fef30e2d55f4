"""The record of one container: its value, its text as JSON, and whether the processes it names live.

Knows JSON and process numbers. Does not know where the record is stored (`containers.store`).

Invariant: a record that says `running` counts only while its process lives: `status` is computed, not
just read.
"""

from __future__ import annotations

import json
import os
import time
from typing import Final, NamedTuple

from unionfs.containers import json_values, names
from unionfs.containers.config import ContainerConfig
from unionfs.drivers.names import NAMES
from unionfs.id_ranges import IdRanges

VERSION: Final = 1
"""The version of records. Records of other versions are refused."""

KINDS: Final = ("run", "try")

_LIVELY: Final = ("starting", "running")
_STATUSES: Final = ("created", *_LIVELY, "exited")


class Facts(NamedTuple):
    """Values that are set when a container is made and never change."""

    uid_map: IdRanges = ()  # empty: no user namespace, ids are the same inside and outside
    gid_map: IdRanges = ()
    unmapped_as_root: bool = False  # ids that the container does not have are shown as root's
    skip_unreadable: bool = False  # directories that its user may not read are shown empty
    hidden: tuple[str, ...] = ()  # host paths in a lower that are hidden
    mountpoint_lower: bool = False  # there is another, lowest lower, with the mountpoints


class State(NamedTuple):
    """The state of a container."""

    status: str = "created"  # created | starting | running | exited, as last written; see Container.status
    exit_code: int | None = None  # None: not ended yet, or killed before the monitor could record it
    pid: int | None = None  # its process 1; while it is `starting`, the process that prepares it
    pid_started: str | None = None  # boot id and start time of `pid`, to detect a reused number
    monitor: int | None = (
        None  # the process that cleans up after `pid` has ended; the container has ended when both have
    )
    monitor_started: str | None = None
    started: float | None = None  # when its command was last executed, seconds since the epoch; None: never
    ended: float | None = None
    began_ns: int | None = (
        None  # file clock just before the union was first mounted; files with a later ctime were changed since
    )


class Container(NamedTuple):
    """The record of one container. Immutable: change it through ContainerStore.update()."""

    root: str  # of its store
    id: str
    name: str
    created: float  # seconds since the epoch
    config: ContainerConfig
    facts: Facts = Facts()
    state: State = State()
    parent: str = ""  # id of the container that it was forked from
    inherited: int = 0  # its lowers at that moment, the last of those it has now

    @staticmethod
    def later_fields() -> tuple[str, ...]:
        """The fields that records of earlier versions do not have."""
        return ("parent", "inherited")

    @property
    def directory(self) -> str:
        return os.path.join(self.root, "containers", self.id)

    @property
    def upper(self) -> str:
        return os.path.join(self.directory, "upper")

    @property
    def work(self) -> str:
        return os.path.join(self.directory, "work")

    @property
    def merged(self) -> str:
        return os.path.join(self.directory, "merged")

    @property
    def mountpoint_lower(self) -> str:
        """The lowest branch, if `facts` say that there is one: empty directories and files to mount on."""
        return os.path.join(self.directory, "mountpoint-lower")

    @property
    def image_mountpoint(self) -> str:
        """Where its image file is mounted, in namespaces of its own (containers.image_mount)."""
        return os.path.join(self.directory, "image")

    @property
    def namespace_socket(self) -> str:
        """The path of its namespace socket (launcher.namespace_socket)."""
        return os.path.join(self.directory, "namespaces")

    @property
    def log(self) -> str:
        """The output of its command (`containers.logs`)."""
        return os.path.join(self.directory, "log")

    @property
    def daemon_log(self) -> str:
        """The messages of the union's daemon, and of a detached launcher."""
        return os.path.join(self.directory, "daemon.log")

    @property
    def journal(self) -> str:
        """The journal of applying its changes (changes.journal)."""
        return os.path.join(self.directory, "apply.journal")

    @property
    def branches(self) -> tuple[str, ...]:
        """The lower branches of the container's union."""
        lowers = self.config.rootfs.lowers
        return (*lowers, self.mountpoint_lower) if self.facts.mountpoint_lower else lowers

    @property
    def frozen(self) -> tuple[str, ...]:
        """The first of the lowers that were the upper of a container once (core.freeze): they hold changes, too."""
        within = os.path.join(self.root, "containers") + os.sep
        lowers, image = self.config.rootfs.lowers, self.image_mountpoint
        is_frozen = [lower.startswith(within) and not f"{lower}/".startswith(f"{image}/") for lower in lowers]
        return lowers[: next((at for at, frozen in enumerate(is_frozen) if not frozen), len(lowers))]

    @property
    def base(self) -> tuple[str, ...]:
        """The lowers that hold no changes."""
        return self.config.rootfs.lowers[len(self.frozen) :]

    def with_lowers(self, lowers: tuple[str, ...]) -> Container:
        return self._replace(config=self.config._replace(rootfs=self.config.rootfs._replace(lowers=lowers)))

    @property
    def hostname(self) -> str:
        return self.config.hostname or self.id[:12]

    @property
    def status(self) -> str:
        """created, starting, running or exited, checked against the process table."""
        recorded = self.state.status
        if recorded in _LIVELY and not self.is_running():
            return "created" if self.state.started is None and recorded == "starting" else "exited"
        return recorded

    def is_running(self) -> bool:
        """Whether it is prepared, running or being cleaned up."""
        state = self.state
        if state.status not in _LIVELY:
            return False
        return _lives(state.pid, state.pid_started) or _lives(state.monitor, state.monitor_started)

    def is_abandoned(self) -> bool:
        """Whether the container should have been removed at its end, and all processes that could do so were killed
        since this machine has booted. False for a container of another machine in a shared store, of which nothing is
        known."""
        started = self.state.monitor_started or self.state.pid_started
        here = started is not None and started.partition(":")[0] == _boot()
        return self.config.remove and here and self.state.status in _LIVELY and not self.is_running()

    def is_process_one(self) -> bool:
        """Whether `pid` is still the recorded process."""
        return self.state.status == "running" and _lives(self.state.pid, self.state.pid_started)


def new(root: str, config: ContainerConfig, name: str = "", facts: Facts | None = None) -> Container:
    """The value of a new container of the store at `root`; ContainerStore.add() stores it."""
    return Container(os.path.abspath(root), os.urandom(16).hex(), name, time.time(), config, facts or Facts())


def _lives(pid: int | None, started: str | None) -> bool:
    return pid is not None and started is not None and process_started(pid) == started


def process_started(pid: int) -> str | None:
    """The start time of `pid`, as text that no other process of this machine ever has; None if it has ended.

    It is made of the boot id and field 22 of proc_pid_stat(5). A zombie has ended.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        boot = _boot()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return f"{boot}:{fields[19].decode()}"


def _boot() -> str:
    """The boot id of this machine (proc_sys_kernel(5))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def to_json(container: Container) -> str:
    """The text of its record. Bytes that are not UTF-8 are stored as lone surrogates, escaped by JSON. Lowers in the
    store are relative to it, so that they are found if it is moved."""
    record = json_values.encode(container)
    del record["root"]
    rootfs, within = record["config"]["rootfs"], container.root + os.sep
    rootfs["lowers"] = [lower.removeprefix(within) if lower.startswith(within) else lower for lower in rootfs["lowers"]]
    return json.dumps({"version": VERSION, **record}) + "\n"


def from_json(root: str, container_id: str, text: str) -> Container:
    """Parse the record of the container `id` in the store at `root`. Raises: ValueError with the reason."""
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    version = record.pop("version", None) if isinstance(record, dict) else None
    if version != VERSION:
        raise ValueError(f"it has version {version}, and this unionfs reads version {VERSION}")
    container = json_values.decode(Container, {**record, "root": root})
    container = container.with_lowers(tuple(os.path.join(root, lower) for lower in container.config.rootfs.lowers))
    config = container.config
    if container.id != container_id:
        raise ValueError("it is the record of another container")
    if not names.PATTERN.fullmatch(container.name):
        raise ValueError("'name' is not allowed as a name")
    for field, value, allowed in (
        ("config.kind", config.kind, KINDS),
        ("config.rootfs.driver", config.rootfs.driver, NAMES),
        ("state.status", container.state.status, _STATUSES),
    ):
        if value not in allowed:
            raise ValueError(f"{field!r} is not one of {', '.join(allowed)}")
    if not config.rootfs.lowers or not config.process.command:
        raise ValueError("it has no lower directory or no command")
    return container
