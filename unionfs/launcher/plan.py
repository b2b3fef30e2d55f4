"""Compute the Plan for a Spec: namespaces, mounts and steps, in order. Pure: `make` changes nothing on disk.

Order: the root is entered before mounts are made in it; /dev/null is there before it covers files; the user's mounts
come after ours, in the order of depth, so that they can lie in ours and in each other; mounts are made read-only last,
when every mountpoint in them is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from unionfs.id_ranges import IdRange
from unionfs.launcher import command, device_steps, steps
from unionfs.launcher.idmap import NamespaceMap
from unionfs.launcher.spec import Bind, DeviceNode, Spec, Tmpfs
from unionfs.syscalls.namespaces import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
)

DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
LINKS: Final = (
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
)
HIDDEN: Final = (
    *("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list"),
    *("/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"),
)
"""Paths that reveal details of the machine; docker hides the same."""
FROZEN: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""Paths that configure the machine when written to; docker makes the same read-only."""
SCRATCH_OF_READ_ONLY: Final = ("/run", "/tmp", "/var/tmp")
"""Directories that get a tmpfs when the root is read-only, since most programs write there (podman's choice)."""

_KINDS: Final = {
    "mount": CLONE_NEWNS,
    "cgroup": CLONE_NEWCGROUP,
    "pid": CLONE_NEWPID,
    "uts": CLONE_NEWUTS,
    "ipc": CLONE_NEWIPC,
    "network": CLONE_NEWNET,
}
_TTY_GROUP: Final = 5  # the group tty on every Linux distribution; devpts gives new terminals to it
_SHM: Final = "mode=1777,size=64m,noexec"
_TMPFS_MODES: Final = {"/run": "mode=755"}  # everything else is mode=1777, as /tmp


class Plan(NamedTuple):
    """All actions that start a container, in order."""

    id_map: NamespaceMap | None  # None: no user namespace
    outer: tuple[str, ...]  # namespaces made before the root filesystem is prepared; its daemon runs in them
    inner: tuple[str, ...]  # namespaces of the container alone
    network: tuple[str, ...]  # how the network is connected, as text
    steps: tuple[steps.Step | steps.HostStep, ...]
    command: tuple[str, ...]  # how the command is started, as text
    hooks: tuple[str, ...] = ()  # which hooks are run, as text

    def describe(self, preparation: Iterable[str] = ()) -> list[str]:
        """Return one line for each action; `preparation` has those that prepare the root filesystem."""
        return [
            f"make namespaces: {', '.join((*(('user',) if self.id_map else ()), *self.outer))}",
            *_describe_ids(self.id_map),
            *preparation,
            f"make namespaces: {', '.join(self.inner)}",
            *self.network,
            *(step.describe() for step in self.steps),
            *self.hooks,
            *self.command,
        ]


def make(spec: Spec) -> Plan:
    """Return the plan for `spec`."""
    network_too = ("network",) if spec.own_network else ()
    ipc_too = () if spec.caller else ("ipc",)  # processes of one job share memory across containers
    inner = ("pid", *network_too) if spec.runtime else ("pid", "uts", *ipc_too, *network_too)
    network = (spec.network_helper.describe(),) if spec.network_helper else ()
    if spec.runtime:
        words = (f"write an OCI bundle into {spec.bundle}", f"have {spec.runtime} run it")
        return Plan(spec.id_map, ("mount", "cgroup"), inner, network, (), words)
    hooks = tuple(f"run the {name} hook {hook.path}" for name, hook in spec.hooks)
    return Plan(spec.id_map, ("mount", "cgroup"), inner, network, _steps(spec), command.describe(spec), hooks)


def requested_mounts(spec: Spec) -> list[Tmpfs | Bind]:
    """Return all that the spec mounts, in the order of depth: a mount within another one comes after it."""
    return sorted((*_tmpfs_mounts(spec), *spec.binds), key=lambda one: one.target.count("/"))


def _tmpfs_mounts(spec: Spec) -> list[Tmpfs]:
    """Return the tmpfs mounts with their options, including those of a read-only root; none where a bind goes."""
    bound = {spec.only, *(bind.target for bind in spec.binds)}
    wanted_scratch = [target for target in SCRATCH_OF_READ_ONLY if not spec.only.startswith(target + "/")]
    scratch = [Tmpfs(target) for target in wanted_scratch] if spec.read_only else []
    wanted = {tmpfs.target: tmpfs for tmpfs in reversed((*spec.tmpfs, *scratch))}
    targets = dict.fromkeys(tmpfs.target for tmpfs in (*spec.tmpfs, *scratch))
    return [Tmpfs(target, _with_mode(target, wanted[target].options)) for target in targets if target not in bound]


def _with_mode(target: str, options: str) -> str:
    """The options of a filesystem in memory, its mode among them."""
    if any(word.startswith("mode=") for word in options.split(",")):
        return options
    return ",".join(filter(None, (options, _TMPFS_MODES.get(target, "mode=1777"))))


def flags(kinds: tuple[str, ...]) -> int:
    """Return the CLONE_NEW* bits of these namespaces."""
    return sum(_KINDS[kind] for kind in kinds)


def _steps(spec: Spec) -> tuple[steps.Step | steps.HostStep, ...]:
    mounts = requested_mounts(spec)
    return (
        steps.EnterRoot(spec.rootfs),
        steps.Proc(),
        steps.Sysfs(own=spec.own_network),
        steps.Cgroup(),
        *_dev(spec),
        *(steps.Mask(path) for path in HIDDEN),
        *(steps.Freeze(path) for path in FROZEN),
        *((steps.FreezeMachineFiles(),) if spec.id_map is None else ()),
        *(steps.Tmpfs(*one) if isinstance(one, Tmpfs) else steps.BindTree(*one) for one in mounts),
        *(steps.ProvideFile(bind.source, bind.target) for bind in spec.provided),
        steps.Hostname(spec.hostname),
        *((steps.Loopback(),) if spec.own_network else ()),
        *((steps.Directory(spec.process.workdir),) if spec.process.workdir != "/" else ()),
        *(steps.MakeReadOnly(one.target) for one in mounts if isinstance(one, Tmpfs) and one.is_read_only()),
        *((steps.KeepWritable(spec.only),) if spec.only else ()),
        *((steps.MakeReadOnly("/"),) if spec.read_only else ()),
    )


def _dev(spec: Spec) -> tuple[steps.Step | steps.HostStep, ...]:
    tty_group = spec.id_map is None or spec.id_map.has_gid(_TTY_GROUP)
    nodes = (*(DeviceNode(f"/dev/{name}", f"/dev/{name}") for name in DEVICES), *spec.devices)
    return (
        steps.Dev(),
        *((device_steps.OwnDevices(nodes),) if spec.id_map is None else map(device_steps.Device, nodes)),
        steps.Terminals(tty_group),
        *(
            (steps.BindTree("/dev/shm", "/dev/shm", read_only=False), steps.HostMessageQueues())
            if spec.caller
            else (steps.Tmpfs("/dev/shm", _SHM), steps.MessageQueues())
        ),
        *(steps.Link(path, target) for path, target in LINKS),
    )


def _describe_ids(id_map: NamespaceMap | None) -> list[str]:
    if id_map is None:
        return []
    return [
        f"map user ids: {', '.join(map(_describe_extent, id_map.uids))}",
        f"map group ids: {', '.join(map(_describe_extent, id_map.gids))}",
    ]


def _describe_extent(extent: IdRange) -> str:
    if extent.length == 1:
        return f"{extent.inside} is {extent.outside}"
    last = extent.length - 1
    return f"{extent.inside}-{extent.inside + last} are {extent.outside}-{extent.outside + last}"
