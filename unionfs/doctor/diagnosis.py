"""Derive from the facts about the machine what it lacks, why that matters, and the command that installs or enables it.
Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from unionfs.doctor.machine import FUSE, TUN, Machine
from unionfs.fuse.options import DEFAULT_TRANSPORT
from unionfs.launcher import namespace_settings

OK: Final = "ok"
LACKING: Final = "lacking"
LIMITED: Final = "limited"
"""`run` works, but a part of it, or another verb, does not."""

KERNEL_NEEDED: Final = (5, 4)
"""For the FUSE protocol 7.31 of the kernel transport. FUSE in user namespaces needs 4.18, mounts by descriptor 5.2,
pidfd_open 5.3. openat2 (5.6) and mount_setattr (5.12) are used if they exist."""
KERNEL_WANTED: Final = (6, 9)
"""For FUSE passthrough, and for resending requests after a daemon's death."""

_SUBIDS: Final = 65536  # the ids of a 16-bit system, with nobody (65534)
_ONLY_FOR: Final = {"pyfuse3": "pyfuse3"}  # module -> the only transport that needs it
_PACKAGES: Final = {
    "uidmap": {"apt": "uidmap", "dnf": "shadow-utils", "pacman": "shadow", "zypper": "shadow", "apk": "shadow-uidmap"},
    "fuse3": dict.fromkeys(("apt", "dnf", "pacman", "zypper", "apk"), "fuse3"),
}
_INSTALL: Final = {
    "apt": "apt-get install",
    "dnf": "dnf install",
    "pacman": "pacman -S",
    "zypper": "zypper install",
    "apk": "apk add",
}


class Finding(NamedTuple):
    """One line of the doctor's report."""

    name: str
    state: str  # OK, LACKING or LIMITED
    found: str
    why: str = ""  # why it matters; empty for OK
    mend: str = ""  # the command

    @property
    def stops_run(self) -> bool:
        return self.state == LACKING


def diagnose(machine: Machine) -> list[Finding]:
    """All findings; those that `run` needs come first."""
    return list(_findings(machine))


def _findings(machine: Machine) -> Iterator[Finding]:
    yield _kernel(machine)
    yield _namespaces(machine)
    yield from _proc(machine)
    yield _fuse_device(machine)
    yield _fuse_mount(machine)
    yield from (_module(machine, name) for name in machine.modules)
    yield _state(machine)
    if not machine.is_root:
        yield _id_helpers(machine)
        yield _subordinate_ids(machine)
        yield _fusermount(machine)
    yield _cgroups(machine)
    yield _tun_device(machine)
    yield _thin_pools(machine)
    yield Finding("code", OK, machine.code)


def _kernel(machine: Machine) -> Finding:
    name, found = "kernel", "Linux {}.{}".format(*machine.kernel)
    if machine.kernel < KERNEL_NEEDED:
        why = "unionfs uses system calls that this kernel does not have"
        return Finding(name, LACKING, found, why, _upgrade("install a kernel of version {}.{} or later", KERNEL_NEEDED))
    if machine.kernel < KERNEL_WANTED:
        why = "FUSE passthrough and the replacement of a dead daemon need a later kernel; all else works"
        return Finding(name, LIMITED, found, why, _upgrade("install a kernel of version {}.{} or later", KERNEL_WANTED))
    return Finding(name, OK, found)


def _namespaces(machine: Machine) -> Finding:
    name = "namespaces" if machine.is_root else "user namespaces"
    if not machine.namespaces:
        return Finding(name, OK, "can be made, and mounting in them works")
    why = "a container consists of them"
    return Finding(name, LACKING, machine.namespaces, why, _open_namespaces(machine))


def _open_namespaces(machine: Machine) -> str:
    if machine.is_root:
        return "give this container CAP_SYS_ADMIN (docker: --privileged)"
    if change := namespace_settings.change_that_allows(machine.settings):
        return f"sudo sysctl -w {change}"
    if machine.has_seccomp:
        return "allow unshare and mount in the surrounding container (docker: --security-opt seccomp=unconfined)"
    return ""


def _proc(machine: Machine) -> Iterator[Finding]:
    if machine.namespaces:
        return  # it could not be tested
    if machine.proc_mount:
        why = (
            "a container needs its own /proc; the kernel refuses to mount it if parts of the machine's /proc are hidden"
        )
        mend = "show all of /proc in the surrounding container (docker: --security-opt systempaths=unconfined)"
        yield Finding("a new /proc", LACKING, machine.proc_mount, why, mend)
    else:
        yield Finding("a new /proc", OK, "can be mounted")


def _fuse_device(machine: Machine) -> Finding:
    if not machine.fuse_device:
        return Finding(FUSE, OK, "can be opened")
    why = "a union is a FUSE filesystem"
    missing = machine.fuse_device.startswith("No such")
    return Finding(
        FUSE, LACKING, machine.fuse_device, why, "sudo modprobe fuse" if missing else f"sudo chmod 666 {FUSE}"
    )


def _tun_device(machine: Machine) -> Finding:
    name = "private networks"
    if not machine.tun_device:
        return Finding(name, OK, f"{TUN} can be opened")
    missing = machine.tun_device.startswith("No such")
    why = "`run --network private` needs it; all else works"
    mend = "sudo modprobe tun" if missing else f"sudo chmod 666 {TUN}"
    return Finding(name, LIMITED, f"{TUN}: {machine.tun_device}", why, mend)


def _thin_pools(machine: Machine) -> Finding:
    name = "device mapper"
    if not machine.thin_pools:
        return Finding(name, OK, "the kernel has thin pools, for `run --driver devicemapper` by root")
    why = "only `run --driver devicemapper` needs it; all else works"
    return Finding(name, LIMITED, machine.thin_pools, why, "install a kernel with CONFIG_DM_THIN_PROVISIONING")


def _fuse_mount(machine: Machine) -> Finding:
    name = "FUSE in namespaces"
    if not machine.fuse_mount:
        return Finding(name, OK, "can be mounted")
    why = "a container's root filesystem is mounted in namespaces"
    if machine.namespaces or machine.fuse_device:
        return Finding(name, LACKING, "could not be tested", why, "first solve the problems above")
    return Finding(name, LACKING, machine.fuse_mount, why, "sudo modprobe fuse")


def _module(machine: Machine, name: str) -> Finding:
    missing = machine.modules[name]
    if not missing:
        return Finding(f"Python module {name}", OK, "can be imported")
    transport = _ONLY_FOR.get(name, DEFAULT_TRANSPORT)
    optional = transport != DEFAULT_TRANSPORT
    why = f"only --transport {transport} needs it" if optional else "the union's daemon needs it"
    mend = f"pip install 'unionfs[{transport}]'" if optional else f"pip install {name}"
    if name == "pyfuse3" and machine.packages == "apt":
        mend = f"sudo apt-get install gcc libfuse3-dev pkg-config python3-dev && {mend}"
    return Finding(f"Python module {name}", LIMITED if optional else LACKING, missing, why, mend)


def _state(machine: Machine) -> Finding:
    name = "state directory"
    if not machine.state_xattrs:
        return Finding(name, OK, f"{machine.state} supports extended attributes")
    why = "the changes of containers are stored there, and a union needs user.* attributes"
    return Finding(name, LACKING, machine.state_xattrs, why, "export UNIONFS_ROOT=/a/directory/on/another/filesystem")


def _id_helpers(machine: Machine) -> Finding:
    name = "newuidmap, newgidmap"
    if not machine.id_helpers:
        return Finding(name, OK, "installed, with the rights they need")
    path = machine.id_helpers.partition(" ")[0]
    if "not installed" in machine.id_helpers:
        mend = _install(machine, "uidmap")
    elif path.startswith("/") and "no_new_privs" not in machine.id_helpers:
        mend = f"sudo chmod u+s {path}"
    else:
        mend = ""
    return Finding(name, LIMITED, machine.id_helpers, _WHY_IDS, mend)


_WHY_IDS: Final = (
    "without them a container has one user id: other users and owners are emulated, but protect nothing, and checks "
    "by SO_PEERCRED or /proc (PostgreSQL's peer, D-Bus) see root"
)


def _subordinate_ids(machine: Machine) -> Finding:
    name = "subordinate ids"
    uids, gids = machine.subordinate_ids
    found = f"{uids} user ids and {gids} group ids for {machine.user}"
    if machine.id_map:
        return Finding(name, LACKING, f"{found}, but: {machine.id_map}", "a container with these ids cannot be made")
    if min(uids, gids) >= _SUBIDS:
        return Finding(name, OK, found)
    first, last = machine.free_ids, machine.free_ids + _SUBIDS - 1
    mend = f"sudo usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {machine.user}"
    return Finding(name, LIMITED, found, _WHY_IDS if not min(uids, gids) else "some ids of a system do not exist", mend)


def _fusermount(machine: Machine) -> Finding:
    if not machine.fusermount:
        return Finding("fusermount3", OK, "installed, set-user-id root")
    why = "`unionfs mount` needs it; `unionfs run` does not"
    path = machine.fusermount.partition(" ")[0]
    mend = f"sudo chmod u+s {path}" if path.startswith("/") else _install(machine, "fuse3")
    return Finding("fusermount3", LIMITED, machine.fusermount, why, mend)


def _cgroups(machine: Machine) -> Finding:
    if machine.cgroups == "v2":
        return Finding("control groups", OK, "version 2 only")
    why = "containers see version 2 only, and will need it for limits; all else works"
    mend = "boot with systemd.unified_cgroup_hierarchy=1"
    return Finding("control groups", LIMITED, f"{machine.cgroups}", why, mend)


def _install(machine: Machine, what: str) -> str:
    if machine.packages not in _INSTALL:
        return f"install {what} with the package manager of this system"
    return f"sudo {_INSTALL[machine.packages]} {_PACKAGES[what][machine.packages]}"


def _upgrade(sentence: str, version: tuple[int, int]) -> str:
    return sentence.format(*version)
