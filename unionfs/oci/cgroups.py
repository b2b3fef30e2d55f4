"""The control groups of a container: made, given limits, joined, frozen, listed and removed.

On a machine with cgroup v1, or v1 and v2 together, the controllers of v1 are used, as runc does; else the one hierarchy
of v2. Knows cgroups(7) and the mount table. A group is a directory in each hierarchy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from unionfs.oci import device_filter, resources
from unionfs.oci.errors import OciError
from unionfs.oci.fields import Field
from unionfs.oci.report import Report
from unionfs.syscalls import mountinfo

UNIFIED: Final = ""
"""The name of the hierarchy of cgroup v2."""
BESIDE: Final = "unified"
"""The name of the hierarchy of cgroup v2 on a machine whose controllers belong to v1. It groups processes only."""

_MOUNTED: Final = "/sys/fs/cgroup"
_REFUSALS: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
_REMOVING_S: Final = 10
_FREEZING_S: Final = 10


class Hierarchy(NamedTuple):
    """A mounted hierarchy of control groups."""

    name: str  # its controllers separated by commas; name=X without controllers; UNIFIED
    mountpoint: str
    root: str  # the group that is mounted there
    own: str  # this process's group, from the root of the hierarchy

    @property
    def controllers(self) -> tuple[str, ...]:
        return tuple(self.name.split(","))

    def directory(self, path: str, *, default: str) -> str:
        """The directory of the group `path`: absolute from the mountpoint, else within our own group."""
        own = os.path.relpath(self.own, self.root) if self.own.startswith(self.root) else "."
        below = path if path.startswith("/") else os.path.join(own, path or default)
        return os.path.join(self.mountpoint, os.path.normpath(f"/{below}").lstrip("/"))


def hierarchies() -> list[Hierarchy]:
    """The hierarchies of this machine: those of v1, or the one of v2 alone."""
    own = {}
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, name, path = line.rstrip("\n").split(":", 2)
            own[name] = path
    found = []
    mounted = [one for one in mountinfo.mounts() if one.fstype in ("cgroup", "cgroup2")]
    unified = any(one.fstype == "cgroup2" and one.mountpoint == _MOUNTED for one in mounted)
    for one in mounted:
        if one.fstype == "cgroup2" and not unified and UNIFIED in own:
            found.append(Hierarchy(BESIDE, one.mountpoint, one.root, own[UNIFIED]))
        if unified != (one.fstype == "cgroup2") or (unified and one.mountpoint != _MOUNTED):
            continue
        words = set(one.super_options.split(","))
        names = [name for name in own if (not name if unified else name and set(name.split(",")) <= words)]
        found += [Hierarchy(name, one.mountpoint, one.root, own[name]) for name in names]
    return found


class Cgroup:
    """The control group of one container, in the hierarchies in which it exists."""

    def __init__(self, directories: dict[str, str]) -> None:
        self.directories: Final = directories  # by Hierarchy.name

    @classmethod
    def create(cls, path: str, identity: str, *, tolerant: bool, report: Report) -> Cgroup:
        """Make the group `path` of config.json, for the container `identity`.

        With `tolerant`, hierarchies in which this process may not make a group are left out. Raises: OciError.
        """
        made = {}
        for hierarchy in hierarchies():
            directory = hierarchy.directory(path, default=identity)
            try:
                _make(directory, hierarchy)
            except OSError as error:
                if not tolerant or error.errno not in _REFUSALS:
                    raise OciError.of("creating the cgroup", error) from error
                report.debug(f"no cgroup in {hierarchy.mountpoint}: {error.strerror}")
            else:
                made[hierarchy.name] = directory
        return cls(made)

    @property
    def unified(self) -> bool:
        return UNIFIED in self.directories

    def of(self, controller: str) -> str | None:
        """The directory of a controller."""
        for name, directory in self.directories.items():
            if name == UNIFIED or controller in name.split(","):
                return directory
        return None

    def add(self, pid: int, *, tolerant: bool) -> None:
        """Move a process into the group. Raises: OciError; with `tolerant` only for unusual errors."""
        for name, directory in list(self.directories.items()):
            try:
                _write(os.path.join(directory, "cgroup.procs"), str(pid))
            except OSError as error:
                if not tolerant or error.errno not in _REFUSALS:
                    raise OciError.of("joining the cgroup", error) from error
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
                del self.directories[name]

    def apply(self, wanted: Field, *, tolerant: bool, report: Report, with_devices: bool = True) -> None:
        """Set the limits of `linux.resources` in the hierarchies in which the group exists.

        Raises: OciError when the kernel refuses; with `tolerant` limits that cannot be set are warnings.
        """
        for setting in resources.settings(wanted, unified=self._is_v2()):
            directory = self.of(setting.controller)
            try:
                if directory is None:
                    raise FileNotFoundError(errno.ENOENT, f"there is no cgroup of the controller {setting.controller}")
                _write(os.path.join(directory, setting.file), setting.value)
            except OSError as error:
                why = OciError.of(f"setting {setting.field} to {setting.value}", error)
                if not tolerant or error.errno not in _REFUSALS:
                    raise why from error
                report.warning(f"{why}: the container runs without this limit")
        if with_devices:
            self._restrict_devices(wanted, tolerant=tolerant, report=report)

    def _is_v2(self) -> bool:
        return self.unified if self.directories else all(one.name == UNIFIED for one in hierarchies())

    def _restrict_devices(self, wanted: Field, *, tolerant: bool, report: Report) -> None:
        directory = self.of("devices")
        rules = resources.device_rules(wanted)
        try:
            if directory is None:
                raise FileNotFoundError(errno.ENOENT, "there is no cgroup of the controller devices")
            if self.unified:
                device_filter.attach(directory, rules)
            else:
                for rule in rules:
                    _write(os.path.join(directory, f"devices.{'allow' if rule.allow else 'deny'}"), str(rule))
        except OSError as error:
            if not tolerant:
                raise OciError.of("restricting devices", error) from error
            report.debug(f"devices are not restricted: {error}")

    def pids(self) -> list[int]:
        """The processes in the group and those below it."""
        directory = self._any_directory()
        found: set[int] = set()
        for where, _, _ in os.walk(directory) if directory else ():
            with contextlib.suppress(OSError), open(os.path.join(where, "cgroup.procs"), encoding="ascii") as file:
                found.update(map(int, file))
        return sorted(found)

    def _any_directory(self) -> str | None:
        for name in ("pids", "devices", "memory", UNIFIED, *self.directories):
            if directory := self.of(name):
                return directory
        return None

    def freeze(self, frozen: bool) -> None:
        """Stop or continue all processes of the group. Raises: OciError."""
        directory = self.of("freezer")
        if directory is None:
            raise OciError("pausing needs a cgroup, which this container does not have")
        file, words = _freezer(directory, unified=self.unified)
        try:
            _write(file, words[frozen])
            deadline = time.monotonic() + _FREEZING_S
            while self.is_frozen() != frozen:
                if time.monotonic() > deadline:
                    raise OciError("freezing the cgroup: the kernel has not done it in time")
                time.sleep(0.005)
        except OSError as error:
            raise OciError.of("freezing the cgroup", error) from error

    def is_frozen(self) -> bool:
        directory = self.of("freezer")
        with contextlib.suppress(OSError, StopIteration):
            if directory and self.unified:
                with open(os.path.join(directory, "cgroup.events"), encoding="ascii") as file:
                    return next(line for line in file if line.startswith("frozen ")).split()[1] == "1"
            if directory:
                with open(os.path.join(directory, "freezer.state"), encoding="ascii") as file:
                    return file.read().strip() == "FROZEN"
        return False

    def remove(self) -> None:
        """Remove the group, and groups that were made below it. Preconditions: no process is in it for long.

        Raises: OciError if it still has processes.
        """
        for directory in set(self.directories.values()):
            deadline = time.monotonic() + _REMOVING_S
            while not _remove(directory):
                if time.monotonic() > deadline:
                    raise OciError(f"removing the cgroup {directory}: it still has processes")
                time.sleep(0.01)


def _make(directory: str, hierarchy: Hierarchy) -> None:
    missing = []
    at = directory
    while not os.path.isdir(at) and at != hierarchy.mountpoint:
        missing.append(at)
        at = os.path.dirname(at)
    if hierarchy.name == UNIFIED:
        _delegate(hierarchy.mountpoint, directory, missing)
    for path in reversed(missing):
        os.mkdir(path, 0o755)
        if "cpuset" in hierarchy.controllers:
            _inherit_cpuset(path)
        elif hierarchy.name == UNIFIED and path != directory:
            _enable_controllers(path)
    if not os.access(os.path.join(directory, "cgroup.procs"), os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), directory)


def _delegate(mountpoint: str, directory: str, missing: Iterable[str]) -> None:
    """Enable the controllers in the groups from the root down to the parent of `directory`, as far as permitted."""
    new, below = set(missing), os.path.relpath(os.path.dirname(directory), mountpoint)
    names = [] if below == "." else below.split("/")
    for depth in range(len(names) + 1):
        at = os.path.join(mountpoint, *names[:depth])
        if at in new:
            return
        _enable_controllers(at)


def _enable_controllers(directory: str) -> None:
    with contextlib.suppress(OSError), open(os.path.join(directory, "cgroup.controllers"), encoding="ascii") as file:
        for name in file.read().split():
            with contextlib.suppress(OSError):  # some belong to the root group only
                _write(os.path.join(directory, "cgroup.subtree_control"), f"+{name}")


def _inherit_cpuset(directory: str) -> None:
    """Give a new group of v1 the processors and memory nodes of its parent: without them it takes no process."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        with open(os.path.join(os.path.dirname(directory), name), encoding="ascii") as file:
            inherited = file.read().strip()
        with open(os.path.join(directory, name), encoding="ascii") as file:
            if file.read().strip():
                continue
        _write(os.path.join(directory, name), inherited)


def _freezer(directory: str, *, unified: bool) -> tuple[str, tuple[str, str]]:
    if unified:
        return os.path.join(directory, "cgroup.freeze"), ("0", "1")
    return os.path.join(directory, "freezer.state"), ("THAWED", "FROZEN")


def _remove(directory: str) -> bool:
    """Remove the group and those below it. Return False if one is busy."""
    for where, _, _ in os.walk(directory, topdown=False):
        try:
            os.rmdir(where)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            raise OciError.of("removing the cgroup", error) from error
    return True


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)
