"""Translate a Spec into the config.json of an OCI bundle, the input of an OCI runtime. Pure.

Source: OCI runtime specification 1.0.2, config.md and config-linux.md. Masked paths, read-only paths and mounts are
those of our own plan (`launcher.plan`). config.json names no network namespace: we make it before the runtime starts.
"""

from __future__ import annotations

from typing import Any, Final

from unionfs.launcher import plan
from unionfs.launcher.resources import Limit
from unionfs.launcher.spec import SEARCH_PATH, Bind, Spec, Tmpfs
from unionfs.launcher.users import Account

_VERSION: Final = "1.0.2"
_RESTRICTED: Final = ("nosuid", "noexec", "nodev")
_SETS: Final = ("bounding", "effective", "permitted")
_TTY_GROUP: Final = 5


def config(spec: Spec, identity: Account) -> dict[str, Any]:
    """Return the content of config.json; `identity` holds the ids that `spec.process.user` names."""
    environment = {"PATH": SEARCH_PATH, "HOME": identity.home, **dict(spec.process.environment)}
    return {
        "ociVersion": _VERSION,
        "root": {"path": spec.rootfs, "readonly": spec.read_only},
        "hostname": spec.hostname,
        "process": {
            "terminal": spec.process.terminal,
            "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": _groups(spec, identity)},
            "args": list(spec.process.command),
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": spec.process.workdir,
            "capabilities": _capabilities(spec, identity),
            "noNewPrivileges": spec.process.no_new_privileges,
            "rlimits": [_rlimit(limit) for limit in spec.process.limits],
        },
        "mounts": [*_default_mounts(spec), *_requested_mounts(spec)],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
            "maskedPaths": list(plan.HIDDEN),
            "readonlyPaths": list(plan.FROZEN),
        },
    }


def _rlimit(limit: Limit) -> dict[str, Any]:
    soft, hard = (value % (1 << 64) for value in (limit.soft, limit.hard))
    return {"type": f"RLIMIT_{limit.name.upper()}", "soft": soft, "hard": hard}


def _groups(spec: Spec, identity: Account) -> list[int]:
    if spec.id_map is None:
        return list(identity.groups)
    return [gid for gid in identity.groups if spec.id_map.has_gid(gid)]


def _capabilities(spec: Spec, identity: Account) -> dict[str, list[str]]:
    """The capability sets, as our own launcher sets them: a user other than root starts with none, and can gain those
    of the bounding set."""
    names = [f"CAP_{name}" for name in spec.process.capabilities]
    return {name: names if name == "bounding" or identity.uid == 0 else [] for name in _SETS}


def _default_mounts(spec: Spec) -> list[dict[str, Any]]:
    tty_group = spec.id_map is None or spec.id_map.has_gid(_TTY_GROUP)
    terminals = ("newinstance", "ptmxmode=0666", "mode=0620", *(("gid=5",) if tty_group else ()))
    sysfs = (
        _mount("/sys", "sysfs", "sysfs", *_RESTRICTED, "ro")
        if spec.own_network
        else _mount("/sys", "bind", "/sys", "rbind", *_RESTRICTED, "ro")
    )
    return [
        _mount("/proc", "proc", "proc", *_RESTRICTED),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", *terminals),
        _mount("/dev/shm", "tmpfs", "shm", *_RESTRICTED, "mode=1777", "size=65536k"),
        _mount("/dev/mqueue", "mqueue", "mqueue", *_RESTRICTED),
        sysfs,
    ]


def _requested_mounts(spec: Spec) -> list[dict[str, Any]]:
    taken = {bind.target for bind in spec.binds}
    # A runtime cannot copy files, so `provided` ones are bound, also over files of the container: they are this
    # machine's own and would have the same content.
    provided = [bind._replace(read_only=True) for bind in spec.provided if bind.target not in taken]
    requested = plan.requested_mounts(spec._replace(binds=(*spec.binds, *provided)))
    return [_tmpfs(one) if isinstance(one, Tmpfs) else _bind(one) for one in requested]


def _tmpfs(tmpfs: Tmpfs) -> dict[str, Any]:
    return _mount(tmpfs.target, "tmpfs", "tmpfs", "nosuid", "nodev", *tmpfs.options.split(","))


def _bind(bind: Bind) -> dict[str, Any]:
    read_only = ("ro",) if bind.read_only else ()
    return _mount(bind.target, "bind", bind.source, "rbind", "rprivate", "nosuid", "nodev", *read_only)


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}
