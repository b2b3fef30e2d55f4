"""What is known of one container: the value of its record, as JSON, and whether its processes live.

Knows JSON and process numbers. Does not know where the record is kept (`containers.store`).

Invariant: a record that says `running` is believed only while a process it names lives: `status` is computed, never
just read.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Any, Final

from unionfs.drivers.driver import DEFAULT
from unionfs.id_ranges import IdRange, IdRanges

_LIVELY: Final = ("starting", "running")


@dataclass(frozen=True, slots=True)
class Container:
    """One container as its record tells it. A value: change it through ContainerStore.update()."""

    directory: str
    id: str
    name: str
    lowers: tuple[str, ...]
    command: tuple[str, ...]
    created: float  # seconds since the epoch
    recorded_status: str = "created"  # created | starting | running | exited; what was last written, see `status`
    exit_code: int | None = None  # None: not ended yet, or killed before anybody could write it down
    pid: int | None = None  # its process 1; while it is `starting`, who prepares it
    pid_started: str | None = None  # boot and start time of `pid`, so that a reused number is not mistaken for it
    monitor: int | None = None  # the process that clears up when `pid` has ended: it is over when both have
    monitor_started: str | None = None
    started: float | None = None  # when its command was last executed, seconds since the epoch; None: never
    ended: float | None = None
    image: str = ""  # as it was asked for; empty: it is made of directories
    image_digest: str = ""  # of the manifest
    image_type: str = ""  # the manifest's media type
    job: dict[str, Any] = dataclasses.field(default_factory=dict)  # what is to be run, see `containers.job`
    kind: str = "run"  # run | try
    began_ns: int | None = None  # file clock just before the union was first mounted; what has a later ctime is newer
    uid_map: IdRanges = ()  # empty: ids are the same inside and outside
    gid_map: IdRanges = ()
    unmapped_as_root: bool = False
    skip_unreadable: bool = False
    hidden: tuple[str, ...] = ()
    whiteout: str = "aufs"
    has_ground: bool = False  # there is one more lower, below all others: a place for everything that is mounted

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
    def ground(self) -> str:
        return os.path.join(self.directory, "ground")

    @property
    def branches(self) -> tuple[str, ...]:
        """The lower branches of the container's union."""
        return (*self.lowers, self.ground) if self.has_ground else self.lowers

    @property
    def driver(self) -> str:
        """How its root filesystem comes about, see `unionfs.drivers`."""
        return str(self.job.get("driver", DEFAULT))

    @property
    def status(self) -> str:
        """created, starting, running or exited, checked against the process table."""
        if self.recorded_status in _LIVELY and not self.is_running():
            return "created" if self.started is None and self.recorded_status == "starting" else "exited"
        return self.recorded_status

    def is_running(self) -> bool:
        """Whether it runs, or is being prepared, or what it leaves is being cleared up."""
        if self.recorded_status not in _LIVELY:
            return False
        return _lives(self.pid, self.pid_started) or _lives(self.monitor, self.monitor_started)

    def is_process_one(self) -> bool:
        """Whether `pid` still is the process that was recorded."""
        return self.recorded_status == "running" and _lives(self.pid, self.pid_started)


def _lives(pid: int | None, started: str | None) -> bool:
    return pid is not None and started is not None and process_started(pid) == started


def process_started(pid: int) -> str | None:
    """When `pid` started, as text that no other process of this machine ever gets; None if it does not live.

    Boot id and field 22 of proc_pid_stat(5). A zombie has ended.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return f"{boot}:{fields[19].decode()}"


def to_json(container: Container) -> str:
    """The text of its record. Names that are not UTF-8 are kept as lone surrogates, escaped by JSON."""
    record = dataclasses.asdict(container)
    del record["directory"]
    record["status"] = record.pop("recorded_status")
    return json.dumps(record, indent=1) + "\n"


def from_json(directory: str, text: str) -> Container:
    """The container at `directory`, of the text of its record. Raises: ValueError, TypeError, KeyError."""
    return _from_dict(directory, json.loads(text))


def _from_dict(directory: str, record: dict[str, Any]) -> Container:
    """The value of a record; fields this version does not know are dropped, absent ones have their default."""
    record = dict(record, recorded_status=record.get("status", "created"))
    known = {field.name for field in dataclasses.fields(Container)} - {"directory"}
    values = {key: value for key, value in record.items() if key in known}
    for key in ("lowers", "command", "hidden"):
        values[key] = tuple(values.get(key, ()))
    for key in ("uid_map", "gid_map"):
        values[key] = tuple(IdRange(int(a), int(b), int(c)) for a, b, c in values.get(key, ()))
    return Container(directory=directory, **values)
