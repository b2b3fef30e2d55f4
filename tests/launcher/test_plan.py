"""Plans compared as what they say they will do; nothing is done here."""

from __future__ import annotations

from unionfs.id_ranges import IdRange
from unionfs.launcher import plan
from unionfs.launcher.idmap import NamespaceMap
from unionfs.launcher.spec import Bind, Process, Spec, Tmpfs

RANGES = NamespaceMap(
    (IdRange(0, 1000, 1), IdRange(1, 100000, 65536)), (IdRange(0, 1000, 1), IdRange(1, 100000, 65536))
)
SINGLE = NamespaceMap((IdRange(0, 1000, 1),), (IdRange(0, 100, 1),), "there is no more")

DEV = [
    "mount tmpfs on /dev",
    "bind /dev/null on /dev/null",
    "bind /dev/zero on /dev/zero",
    "bind /dev/full on /dev/full",
    "bind /dev/random on /dev/random",
    "bind /dev/urandom on /dev/urandom",
    "bind /dev/tty on /dev/tty",
    "mount devpts on /dev/pts, for group 5",
    "mount tmpfs on /dev/shm (mode=1777,size=64m,noexec)",
    "mount mqueue on /dev/mqueue",
    "link /dev/ptmx to pts/ptmx",
    "link /dev/fd to /proc/self/fd",
    "link /dev/stdin to /proc/self/fd/0",
    "link /dev/stdout to /proc/self/fd/1",
    "link /dev/stderr to /proc/self/fd/2",
    "link /dev/core to /proc/kcore",
]
PROTECTION = [
    "hide /proc/acpi",
    "hide /proc/asound",
    "hide /proc/kcore",
    "hide /proc/keys",
    "hide /proc/latency_stats",
    "hide /proc/timer_list",
    "hide /proc/timer_stats",
    "hide /proc/sched_debug",
    "hide /proc/scsi",
    "hide /sys/firmware",
    "hide /sys/devices/virtual/powercap",
    "make /proc/bus read-only",
    "make /proc/fs read-only",
    "make /proc/irq read-only",
    "make /proc/sys read-only",
    "make /proc/sysrq-trigger read-only",
]
OWN_DEVICES = "make the device nodes /dev/null, /dev/zero, /dev/full, /dev/random, /dev/urandom, /dev/tty"
USUAL = (
    "keep capabilities: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, "
    "sys_chroot, mknod, audit_write, setfcap"
)


def test_root_needs_no_user_namespace() -> None:
    assert plan.make(Spec("/r", Process(("true",)), hostname="h")).describe() == [
        "make namespaces: mount, cgroup",
        "make namespaces: pid, uts, ipc",
        "make /r the root directory",
        "mount proc on /proc",
        "bind /sys on /sys, read-only",
        "mount cgroup2 on /sys/fs/cgroup, read-only, if possible",
        DEV[0],
        OWN_DEVICES,
        *DEV[7:],
        *PROTECTION,
        "make the machine's files in /proc read-only",
        "set the hostname to h",
        "keep standard output and error",
        "read standard input from /dev/null",
        "become root",
        USUAL,
        "gain no privileges by exec",
        "change to /",
        "execute true",
    ]


def test_everything_at_once() -> None:
    spec = Spec(
        "/r",
        Process(
            ("sh", "-c", "id"),
            user="www-data:tty",
            workdir="/srv/app",
            interactive=True,
            terminal=True,
            capabilities=("KILL",),
            no_new_privileges=False,
        ),
        hostname="h",
        binds=(Bind("/a", "/x/y/z"), Bind("/b", "/x", read_only=True), Bind("/c", "/tmp")),
        provided=(Bind("/etc/resolv.conf", "/etc/resolv.conf"),),
        tmpfs=(Tmpfs("/scratch"), Tmpfs("/run")),
        own_network=True,
        read_only=True,
        id_map=RANGES,
    )
    assert plan.make(spec).describe(preparation=["mount something"]) == [
        "make namespaces: user, mount, cgroup",
        "map user ids: 0 is 1000, 1-65536 are 100000-165535",
        "map group ids: 0 is 1000, 1-65536 are 100000-165535",
        "mount something",
        "make namespaces: pid, uts, ipc, network",
        "make /r the root directory",
        "mount proc on /proc",
        "mount sysfs on /sys, read-only",
        "mount cgroup2 on /sys/fs/cgroup, read-only, if possible",
        *DEV,
        *PROTECTION,
        "mount tmpfs on /scratch (mode=1777)",
        "mount tmpfs on /run (mode=755)",
        "bind /b on /x, read-only",
        "bind /c on /tmp",
        "mount tmpfs on /var/tmp (mode=1777)",
        "bind /a on /x/y/z",
        "copy /etc/resolv.conf to /etc/resolv.conf if there is none",
        "set the hostname to h",
        "bring up the loopback interface",
        "make the directory /srv/app if it is missing",
        "make / read-only",
        "take a new terminal",
        "become user www-data:tty, as the container's /etc/passwd and /etc/group have it",
        "keep capabilities: kill",
        "change to /srv/app",
        "execute sh -c id",
    ]


def test_terminals_belong_to_no_group_that_is_not_mapped() -> None:
    described = plan.make(Spec("/r", Process(("true",)), id_map=SINGLE)).describe()
    assert "mount devpts on /dev/pts" in described
    assert described[1:3] == ["map user ids: 0 is 1000", "map group ids: 0 is 100"]


def test_no_capability_at_all_is_said() -> None:
    assert "keep capabilities: none" in plan.make(Spec("/r", Process(("true",), capabilities=()))).describe()


def test_one_directory_stays_writable() -> None:
    lines = plan.make(Spec("/r", Process(("true",)), read_only=True, only="/var/tmp/in")).describe()
    at = lines.index("keep /var/tmp/in writable")
    assert lines[at + 1] == "make / read-only"
    assert [line for line in lines if line.startswith("mount tmpfs")][-2:] == [
        "mount tmpfs on /run (mode=755)",
        "mount tmpfs on /tmp (mode=1777)",
    ]
