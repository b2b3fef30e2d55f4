"""Show the state and the processes of containers, and the features of this runtime."""

from __future__ import annotations

import os
from typing import Any, Final

from unionfs.launcher import capabilities
from unionfs.launcher.spec import HOOKS
from unionfs.oci import apparmor, config, mount_options, seccomp, state
from unionfs.oci.cgroups import Cgroup, hierarchies
from unionfs.oci.errors import OciError
from unionfs.oci.state import Container, Saved
from unionfs.syscalls import libseccomp

_OLDEST: Final = "1.0.0"


def status(container: Container, saved: Saved) -> str:
    """As state.status_of; `paused` for a container whose control group is frozen."""
    found = state.status_of(container, saved)
    return "paused" if found in ("created", "running") and Cgroup(saved.cgroups).is_frozen() else found


def state_of(container: Container) -> dict[str, Any]:
    """The object that the command `state` prints. Raises: OciError."""
    saved = container.load()
    now = status(container, saved)
    shown = {"pid": 0, **state.as_json(saved, container.config(), now)}
    shown |= {"rootfs": saved.rootfs, "created": saved.created, "owner": ""}
    order = ("ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner")
    return {name: shown[name] for name in order if name in shown}


def states(root: str) -> list[dict[str, Any]]:
    """The states of all containers; unreadable ones are left out."""
    found = []
    for container in state.list_all(root):
        try:
            found.append(state_of(container))
        except OciError:
            continue
    return found


def pids(container: Container) -> list[int]:
    """The processes of a container. Raises: OciError."""
    saved = container.load()
    if state.status_of(container, saved) == "stopped":
        return []
    found = Cgroup(saved.cgroups).pids()
    return found or _pids_in_namespace(saved.pid)


def _pids_in_namespace(pid: int) -> list[int]:
    """The processes of a container without a control group: those in the pid namespace of the first one, unless this
    process is in it, too."""
    try:
        wanted = os.stat(f"/proc/{pid}/ns/pid").st_ino
        if wanted == os.stat("/proc/self/ns/pid").st_ino:
            return [pid]
    except OSError:
        return [pid]
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}/ns/pid").st_ino == wanted:
                found.append(int(name))
        except OSError:
            continue
    return sorted(found)


def features() -> dict[str, Any]:
    """The object that the command `features` prints. Source: OCI runtime specification, features.md."""
    unified = all(one.name == "" for one in hierarchies())
    return {
        "ociVersionMin": _OLDEST,
        "ociVersionMax": config.VERSION,
        "hooks": list(HOOKS),
        "mountOptions": list(mount_options.WORDS),
        "linux": {
            "namespaces": list(config.NAMESPACES),
            "capabilities": [f"CAP_{name}" for name in capabilities.NUMBERS],
            "cgroup": {
                "v1": not unified,
                "v2": unified,
                "systemd": False,
                "systemdUser": False,
                "rdma": True,
            },
            "seccomp": {
                "enabled": bool(libseccomp.version()),
                "actions": list(seccomp.ACTIONS),
                "operators": list(seccomp.OPERATORS),
                "archs": [f"SCMP_ARCH_{name.upper()}" for name in seccomp.ARCHITECTURES],
                "knownFlags": [*seccomp.FLAGS, *seccomp.IGNORED_FLAGS],
                "supportedFlags": [*seccomp.FLAGS, *seccomp.IGNORED_FLAGS],
            },
            "apparmor": {"enabled": apparmor.is_enabled()},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
            "netDevices": {"enabled": False},
        },
        "annotations": {"io.github.seccomp.libseccomp.version": libseccomp.version()},
        "potentiallyUnsafeConfigAnnotations": [],
    }
