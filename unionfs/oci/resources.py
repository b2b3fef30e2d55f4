"""`linux.resources` of config.json as files of control groups and the texts to write to them. Pure.

Sources: OCI runtime specification, config-linux.md "Control groups"; the kernel's documents cgroup-v1 and cgroup-v2.
The conversions from version 1 to version 2 are those that the OCI runtimes have agreed on (crun(1), "CGROUP V2").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from unionfs.oci.fields import Field

_NO_LIMIT: Final = -1
_LIMIT: Final = {"least": -1, "most": (1 << 63) - 1}
_SHARES_MAX: Final = 262144  # of cpu.shares; cpu.weight has 1 to 10000
_THROTTLES: Final = (
    ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps"),
    ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps"),
    ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops"),
)
_DEFAULT_DEVICES: Final = (
    *(("c", None, None, "m"), ("b", None, None, "m")),  # making nodes is allowed; opening them needs a further rule
    *(("c", 1, minor, "rwm") for minor in (3, 5, 7, 8, 9)),  # null, zero, full, random, urandom
    *(("c", 5, minor, "rwm") for minor in (0, 1, 2)),  # tty, console, ptmx
    ("c", 136, None, "rwm"),  # the terminals of devpts
)
"""Devices that every container may use, whatever its rules: those that every container has."""


class Setting(NamedTuple):
    """A text to be written to a file of the control group of a controller."""

    controller: str
    file: str
    value: str
    field: str  # path in config.json, for messages


class DeviceRule(NamedTuple):
    """Whether processes may read (r), write (w) or make (m) devices. The last matching rule decides."""

    allow: bool
    kind: str  # c, b, or a for both
    major: int | None  # None: all
    minor: int | None
    access: str  # letters of rwm

    def __str__(self) -> str:
        """The rule in the form of the files of the controller `devices`."""
        numbers = (("*" if number is None else str(number)) for number in (self.major, self.minor))
        return "a" if self.kind == "a" else f"{self.kind} {':'.join(numbers)} {self.access}"


def settings(resources: Field, *, unified: bool) -> list[Setting]:
    """The settings of the resources, in an order that the kernel accepts. Raises: OciError."""
    return list(_version_2(resources) if unified else _version_1(resources))


def device_rules(resources: Field) -> list[DeviceRule]:
    """The rules for devices: first one that denies all, then those of the configuration, then those for every
    container. Raises: OciError."""
    rules = [DeviceRule(False, "a", None, None, "rwm")]
    for item in resources["devices"].items():
        kind = item["type"].word(("a", "b", "c"), "a")
        major, minor = (item[name].number(-1) for name in ("major", "minor"))
        numbers = [None if number < 0 else number for number in (major, minor)]
        access = item["access"].text("") or "rwm"
        if set(access) - set("rwm"):
            raise item["access"].wrong(f"{access!r} has other letters than r, w and m")
        rules.append(DeviceRule(item["allow"].flag(), kind, numbers[0], numbers[1], access))
    return rules + [DeviceRule(True, *rule) for rule in _DEFAULT_DEVICES]


def _version_1(resources: Field) -> Iterator[Setting]:
    if resources["unified"].members():
        raise resources["unified"].wrong("is for cgroup v2 only, and this machine has v1")
    memory, cpu, block = resources["memory"], resources["cpu"], resources["blockIO"]
    for name, file in (
        ("limit", "memory.limit_in_bytes"),
        ("reservation", "memory.soft_limit_in_bytes"),
        ("swap", "memory.memsw.limit_in_bytes"),
        ("kernelTCP", "memory.kmem.tcp.limit_in_bytes"),
        ("swappiness", "memory.swappiness"),
    ):
        yield from _number("memory", file, memory[name], skip_zero=name != "swappiness")
    if memory["disableOOMKiller"].flag():
        yield Setting("memory", "memory.oom_control", "1", memory["disableOOMKiller"].path)
    for name in ("shares", "period", "quota", "burst", "realtimePeriod", "realtimeRuntime", "idle"):
        yield from _number("cpu", _CPU_FILES[name], cpu[name], skip_zero=name not in ("burst", "idle"))
    yield from _cpuset(cpu)
    yield from _pids(resources)
    yield from _number("blkio", "blkio.weight", block["weight"])
    yield from _number("blkio", "blkio.leaf_weight", block["leafWeight"])
    for item in block["weightDevice"].items():
        for name, file in (("weight", "blkio.weight_device"), ("leafWeight", "blkio.leaf_weight_device")):
            if item[name]:
                yield Setting("blkio", file, f"{_device(item)} {item[name].number(least=0)}", item.path)
    for name, file, _ in _THROTTLES:
        for item in block[name].items():
            yield Setting("blkio", file, f"{_device(item)} {item['rate'].number(least=0)}", item.path)
    for item in resources["hugepageLimits"].items():
        size = item["pageSize"].text()
        yield Setting("hugetlb", f"hugetlb.{size}.limit_in_bytes", str(item["limit"].number(least=0)), item.path)
    yield from _number("net_cls", "net_cls.classid", resources["network"]["classID"])
    for item in resources["network"]["priorities"].items():
        text = f"{item['name'].text()} {item['priority'].number(least=0)}"
        yield Setting("net_prio", "net_prio.ifpriomap", text, item.path)
    yield from _rdma(resources)


_CPU_FILES: Final = {
    "shares": "cpu.shares", "period": "cpu.cfs_period_us", "quota": "cpu.cfs_quota_us", "burst": "cpu.cfs_burst_us",
    "realtimePeriod": "cpu.rt_period_us", "realtimeRuntime": "cpu.rt_runtime_us", "idle": "cpu.idle",
}  # fmt: skip


def _version_2(resources: Field) -> Iterator[Setting]:
    memory, cpu, block = resources["memory"], resources["cpu"], resources["blockIO"]
    limit, swap = (memory[name].number(0, **_LIMIT) for name in ("limit", "swap"))
    if limit:
        yield Setting("memory", "memory.max", _or_max(limit), memory["limit"].path)
    yield from _number("memory", "memory.low", memory["reservation"])
    if swap:
        if swap > 0 and (limit <= 0 or swap < limit):
            raise memory["swap"].wrong("is memory and swap together, and must not be less than memory.limit")
        yield Setting("memory", "memory.swap.max", "max" if swap < 0 else str(swap - limit), memory["swap"].path)
    if shares := cpu["shares"].number(0, least=0):
        weight = 1 + (min(max(shares, 2), _SHARES_MAX) - 2) * 9999 // (_SHARES_MAX - 2)
        yield Setting("cpu", "cpu.weight", str(weight), cpu["shares"].path)
    quota, period = cpu["quota"].number(0, **_LIMIT), cpu["period"].number(0, least=0)
    if quota or period:
        yield Setting("cpu", "cpu.max", f"{quota if quota > 0 else 'max'} {period or 100_000}", cpu.path)
    yield from _number("cpu", "cpu.max.burst", cpu["burst"], skip_zero=False)
    yield from _number("cpu", "cpu.idle", cpu["idle"], skip_zero=False)
    yield from _cpuset(cpu)
    yield from _pids(resources)
    if weight := block["weight"].number(0, least=0, most=1000):
        converted = 1 + (max(weight, 10) - 10) * 9999 // 990
        yield Setting("io", "io.weight", f"default {converted}", block["weight"].path)
    for name, _, key in _THROTTLES:
        for item in block[name].items():
            yield Setting("io", "io.max", f"{_device(item)} {key}={item['rate'].number(least=0)}", item.path)
    for item in resources["hugepageLimits"].items():
        size = item["pageSize"].text()
        yield Setting("hugetlb", f"hugetlb.{size}.max", str(item["limit"].number(least=0)), item.path)
    yield from _rdma(resources)
    for file, value in resources["unified"].members().items():
        if "/" in file or "." not in file:
            raise value.wrong("is no file of a control group")
        yield Setting(file.partition(".")[0], file, value.text(), value.path)


def _number(controller: str, file: str, field: Field, *, skip_zero: bool = True) -> Iterator[Setting]:
    if field and not (skip_zero and field.number() == 0):
        yield Setting(controller, file, str(field.number(**_LIMIT)), field.path)


def _cpuset(cpu: Field) -> Iterator[Setting]:
    for name, file in (("cpus", "cpuset.cpus"), ("mems", "cpuset.mems")):
        if text := cpu[name].text(""):
            yield Setting("cpuset", file, text, cpu[name].path)


def _pids(resources: Field) -> Iterator[Setting]:
    limit = resources["pids"]["limit"]
    if limit and limit.number():
        yield Setting("pids", "pids.max", _or_max(limit.number(**_LIMIT)), limit.path)


def _rdma(resources: Field) -> Iterator[Setting]:
    for name, item in resources["rdma"].members().items():
        words = {"hcaHandles": "hca_handle", "hcaObjects": "hca_object"}
        limits = (f"{word}={item[key].number(least=0)}" for key, word in words.items() if item[key])
        yield Setting("rdma", "rdma.max", " ".join((name, *limits)), item.path)


def _or_max(value: int) -> str:
    return "max" if value <= _NO_LIMIT else str(value)


def _device(item: Field) -> str:
    return f"{item['major'].number(least=0)}:{item['minor'].number(least=0)}"
