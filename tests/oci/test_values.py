"""config.json as values: what is refused and named, options of mounts, limits as files, rules for devices."""

from __future__ import annotations

import copy
import struct
from typing import Any

import pytest

from tests.oci.bundles import CONFIG
from unionfs.oci import device_filter, mount_options, resources
from unionfs.oci.config import parse
from unionfs.oci.end import signal_number
from unionfs.oci.errors import OciError
from unionfs.oci.fields import Field
from unionfs.oci.resources import DeviceRule, Setting
from unionfs.oci.sysctls import check
from unionfs.syscalls import mounts as m


def _with(path: str, value: Any) -> dict[str, Any]:
    """CONFIG with the member at `path` replaced."""
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split(".")
    at = config
    for name in parents:
        at = at.setdefault(name, {})
    at[last] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("ociVersion", "2.0.0", "ociVersion: version 2.0.0 is not supported"),
        ("ociVersion", "x", "ociVersion: 'x' is no version"),
        ("root", None, "root.path: is missing"),
        ("process.args", [], "process.args: a command is required"),
        ("process.args", ["a\0b"], "process.args[0]: contains a NUL"),
        ("process.cwd", "tmp", "process.cwd: 'tmp' is not an absolute path"),
        ("process.user", {"uid": -1}, "process.user.uid: -1 is not between 0 and 4294967294"),
        ("process.user", {"uid": True}, "process.user.uid: is not an integer"),
        ("process.rlimits", [{"type": "RLIMIT_X", "soft": 1, "hard": 1}], "invalid rlimit type: RLIMIT_X"),
        ("process.rlimits", [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}], "the soft limit is above the hard one"),
        ("process.selinuxLabel", "a:b:c", "process.selinuxLabel: SELinux labels are not supported"),
        ("process.scheduler", {"policy": "SCHED_FIFO"}, "process.scheduler: is not supported"),
        ("linux.intelRdt", {"closID": "x"}, "linux.intelRdt: is not supported"),
        ("linux.namespaces", [{"type": "pid"}], "linux.namespaces: a container needs a mount namespace"),
        ("linux.namespaces", [{"type": "disk"}], "linux.namespaces[0].type: 'disk' is none of"),
        ("linux.namespaces", [{"type": "mount"}, {"type": "mount"}], "linux.namespaces[1]: a second mount namespace"),
        ("linux.namespaces", [{"type": "mount"}], "hostname: unable to set it without a uts namespace"),
        ("linux.uidMappings", [{"containerID": 0, "hostID": 0, "size": 1}], "user namespace isn't enabled"),
        ("linux.rootfsPropagation", "sideways", "linux.rootfsPropagation: 'sideways' is none of"),
        ("mounts", [{"destination": "/x", "options": ["bind"]}], "mounts[0].source: a bind mount needs one"),
        ("mounts", [{"destination": "/x", "options": ["idmap"]}], "mounts with translated ids are not supported"),
        ("hooks", {"prestart": [{"path": "x"}]}, "hooks.prestart[0].path: is not absolute"),
        ("windows", {"layerFolders": []}, "windows: is not for this platform"),
    ],
)  # fmt: skip
def test_refused_fields_are_named(path: str, value: Any, told: str) -> None:
    with pytest.raises(OciError) as caught:
        parse(_with(path, value))
    assert told in str(caught.value)


def test_unknown_names_and_null_are_ignored() -> None:
    config = _with("process.noSuchThing", {"a": 1})
    config |= {"hooks": None, "annotations": None, "noSuchThing": 1}
    assert parse(config).hooks["prestart"] == ()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("kernel.core_pattern", "is not in a separate kernel namespace"),
        ("net.ipv4.ip_forward", "is not allowed in the host's network namespace"),
        ("kernel.hostname", "and hostname are given both"),
        ("net/../kernel/core_pattern", "is not in a separate kernel namespace"),
    ],
)
def test_settings_of_the_machine_are_refused(name: str, told: str) -> None:
    config = _with("linux.sysctl", {name: "1"})
    if name == "net.ipv4.ip_forward":
        config["linux"]["namespaces"] = [{"type": "mount"}, {"type": "uts"}]
    with pytest.raises(OciError, match=told):
        check(parse(config))


def test_options_of_mounts() -> None:
    found = mount_options.parse(
        ["rbind", "ro", "nosuid", "rw", "exec", "rslave", "private", "rro", "size=1m", "tmpcopyup"]
    )
    assert (found.is_bind, found.is_recursive, found.copies_up, found.data) == (True, True, True, ("size=1m",))
    assert (found.flags, found.cleared) == (m.MS_NOSUID, m.MS_RDONLY | m.MS_NOEXEC)
    assert found.propagation == (m.MS_SLAVE | m.MS_REC, m.MS_PRIVATE)
    assert found.recursive_set == m.MS_RDONLY
    assert mount_options.attributes(m.MS_NOATIME | m.MS_NODEV) == m.MOUNT_ATTR_NOATIME | m.MOUNT_ATTR_NODEV


_WANTED = {
    "memory": {"limit": 1 << 20, "swap": 3 << 20, "reservation": 5},
    "cpu": {"shares": 1024, "quota": -1, "period": 100000, "cpus": "0-1"},
    "pids": {"limit": -1},
    "blockIO": {"weight": 10, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 7}]},
    "hugepageLimits": [{"pageSize": "2MB", "limit": 9}],
}


def test_limits_as_files_of_version_1() -> None:
    found = [(one.controller, one.file, one.value) for one in resources.settings(Field(_WANTED), unified=False)]
    assert found == [
        ("memory", "memory.limit_in_bytes", "1048576"),
        ("memory", "memory.soft_limit_in_bytes", "5"),
        ("memory", "memory.memsw.limit_in_bytes", "3145728"),
        ("cpu", "cpu.shares", "1024"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("cpu", "cpu.cfs_quota_us", "-1"),
        ("cpuset", "cpuset.cpus", "0-1"),
        ("pids", "pids.max", "max"),
        ("blkio", "blkio.weight", "10"),
        ("blkio", "blkio.throttle.read_bps_device", "8:0 7"),
        ("hugetlb", "hugetlb.2MB.limit_in_bytes", "9"),
    ]
    with pytest.raises(OciError, match="is for cgroup v2 only"):
        resources.settings(Field({"unified": {"memory.max": "1"}}), unified=False)


def test_limits_as_files_of_version_2() -> None:
    wanted = {**_WANTED, "unified": {"memory.high": "1000"}}
    found = [(one.controller, one.file, one.value) for one in resources.settings(Field(wanted), unified=True)]
    assert found == [
        ("memory", "memory.max", "1048576"),
        ("memory", "memory.low", "5"),
        ("memory", "memory.swap.max", "2097152"),
        ("cpu", "cpu.weight", "39"),
        ("cpu", "cpu.max", "max 100000"),
        ("cpuset", "cpuset.cpus", "0-1"),
        ("pids", "pids.max", "max"),
        ("io", "io.weight", "default 1"),
        ("io", "io.max", "8:0 rbps=7"),
        ("hugetlb", "hugetlb.2MB.max", "9"),
        ("memory", "memory.high", "1000"),
    ]
    assert resources.settings(Field({"cpu": {"shares": 2}}), unified=True)[0] == Setting(
        "cpu", "cpu.weight", "1", "cpu.shares"
    )
    with pytest.raises(OciError, match="is no file of a control group"):
        resources.settings(Field({"unified": {"../x.y": "1"}}), unified=True)


def _allowed(program: bytes, kind: str, major: int, minor: int, access: str) -> bool:
    """What the program returns for a device: the few instructions that it is made of, executed."""
    words = [sum({"m": 1, "r": 2, "w": 4}[one] for one in access) << 16 | {"b": 1, "c": 2}[kind], major, minor]
    registers = [0] * 11
    at = 0
    while True:
        code, pair, offset, number = struct.unpack_from("=BBhi", program, at * 8)
        target, source = pair & 15, pair >> 4
        at += 1
        if code == 0x61:
            registers[target] = words[offset // 4]
        elif code == 0xB4:
            registers[target] = number
        elif code == 0xBC:
            registers[target] = registers[source]
        elif code == 0x54:
            registers[target] &= number
        elif code == 0x74:
            registers[target] >>= number
        elif code == 0x95:
            return bool(registers[0])
        else:
            other = registers[source] if code == 0x5D else number
            is_equal = registers[target] == other
            at += offset if is_equal == (code == 0x15) else 0


def test_rules_for_devices_as_a_program() -> None:
    """The last rule that fits decides; an allowance must have all that is asked for."""
    some = {"allow": True, "type": "c", "major": 10, "access": "rw"}
    but = {"allow": False, "type": "c", "major": 10, "minor": 3, "access": "w"}
    program = device_filter.assemble(resources.device_rules(Field({"devices": [some, but]})))
    asked = ((1, "r"), (1, "rw"), (3, "r"), (3, "w"))
    assert [_allowed(program, "c", 10, minor, access) for minor, access in asked] == [True, True, True, False]
    assert not _allowed(program, "b", 8, 0, "r")
    assert _allowed(program, "b", 8, 0, "m")
    assert _allowed(program, "c", 1, 3, "rwm")
    assert not _allowed(program, "c", 1, 1, "r")
    everything = device_filter.assemble([DeviceRule(True, "a", None, None, "rwm")])
    assert _allowed(everything, "b", 8, 0, "rw")


def test_names_of_signals() -> None:
    assert [signal_number(text) for text in ("9", "KILL", "SIGTERM", "rtmin+3")] == [9, 9, 15, 37]
    for text in ("0x9", "NOPE", "999", "RTMIN+x"):
        with pytest.raises(OciError, match="unknown signal"):
            signal_number(text)
