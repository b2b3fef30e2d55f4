"""config.json and process.json of the OCI runtime specification as checked, immutable values. Pure.

Raises `OciError` with the path of the field: for values of a wrong type, for values that the specification does not
allow, and for features that this runtime does not have. Names that the specification does not have are ignored, as it
demands. Source: OCI runtime specification 1.2, config.md and config-linux.md.
"""

from __future__ import annotations

import json
import posixpath
import resource
from typing import Any, Final, NamedTuple

from unionfs.id_ranges import IdRange, IdRanges
from unionfs.launcher import resources as limits
from unionfs.launcher.resources import Limit
from unionfs.launcher.spec import HOOKS, Hook
from unionfs.oci import mount_options
from unionfs.oci.errors import OciError
from unionfs.oci.fields import Field

VERSION: Final = "1.2.0"
"""The newest version of the specification whose fields are known here."""
NAMESPACES: Final = ("cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts")
CAPABILITY_SETS: Final = ("bounding", "effective", "inheritable", "permitted", "ambient")

LIMITS: Final = {**limits.NUMBERS, "as": resource.RLIMIT_AS}
"""Names of resource limits without RLIMIT_, in small letters, and their numbers."""

_ID_MAX: Final = (1 << 32) - 2
_PROPAGATIONS: Final = ("shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate", "runbindable")
_DEVICE_KINDS: Final = ("c", "b", "u", "p")
_UNSUPPORTED: Final = ("solaris", "windows", "vm", "zos", "freebsd")


class User(NamedTuple):
    """The ids of a process, in the container's user namespace."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    umask: int


class Process(NamedTuple):
    """A command, and the attributes of its process."""

    args: tuple[str, ...]  # not empty
    env: tuple[str, ...]  # NAME=VALUE
    cwd: str  # absolute
    user: User
    terminal: bool
    console_size: tuple[int, int] | None  # rows, columns
    capabilities: dict[str, tuple[str, ...]] | None  # by CAPABILITY_SETS, names with CAP_; None: none at all
    no_new_privileges: bool
    oom_score_adj: int | None
    limits: tuple[Limit, ...]
    apparmor_profile: str
    selinux_label: str
    io_priority: int | None  # as ioprio_set(2) encodes it


class Mount(NamedTuple):
    """One of `mounts`."""

    destination: str  # absolute and normal, in the container
    kind: str  # a filesystem's type, or "bind"
    source: str  # of a bind mount: absolute, or relative to the bundle
    options: mount_options.MountOptions


class Namespace(NamedTuple):
    """One of `linux.namespaces`: a new one, or the one at `path`."""

    kind: str  # of NAMESPACES
    path: str


class Device(NamedTuple):
    """One of `linux.devices`."""

    path: str
    kind: str  # c, b or p
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


class Config(NamedTuple):
    """A container's whole configuration."""

    version: str
    root: str  # absolute, or relative to the bundle
    read_only: bool
    process: Process | None  # None: the container can be created but not started
    hostname: str
    domainname: str
    mounts: tuple[Mount, ...]
    hooks: dict[str, tuple[Hook, ...]]  # by HOOKS
    annotations: dict[str, str]
    namespaces: dict[str, Namespace]  # by kind
    uids: IdRanges
    gids: IdRanges
    devices: tuple[Device, ...]
    cgroups_path: str
    resources: Field  # checked by `oci.resources`
    root_propagation: str
    masked: tuple[str, ...]
    frozen: tuple[str, ...]  # readonlyPaths
    sysctls: dict[str, str]
    seccomp: Field  # checked by `oci.seccomp`
    time_offsets: dict[str, tuple[int, int]]  # clock -> seconds, nanoseconds
    personality: str  # LINUX32, LINUX or empty


def load(path: str) -> Any:
    """The JSON document at `path`. Raises: OciError."""
    try:
        with open(path, "rb") as file:
            return json.load(file)
    except FileNotFoundError:
        raise OciError(f"JSON specification file {path} not found: no such file or directory") from None
    except OSError as error:
        raise OciError.of("reading the configuration", error) from error
    except (ValueError, RecursionError) as error:
        raise OciError(f"{path}: no JSON: {error}") from None


def parse(document: Any) -> Config:
    """Check config.json. Raises: OciError."""
    field = Field(document)
    _check_platform(field)
    linux = field["linux"]
    process = field["process"]
    namespaces = _namespaces(linux["namespaces"])
    found = Config(
        version=_version(field["ociVersion"]),
        root=field["root"]["path"].text(),
        read_only=field["root"]["readonly"].flag(),
        process=parse_process(process) if process else None,
        hostname=field["hostname"].text(""),
        domainname=field["domainname"].text(""),
        mounts=tuple(map(_mount, field["mounts"].items())),
        hooks={name: tuple(map(_hook, field["hooks"][name].items())) for name in HOOKS},
        annotations={name: value.text() for name, value in field["annotations"].members().items()},
        namespaces=namespaces,
        uids=_id_map(linux["uidMappings"]),
        gids=_id_map(linux["gidMappings"]),
        devices=tuple(map(_device, linux["devices"].items())),
        cgroups_path=linux["cgroupsPath"].text(""),
        resources=linux["resources"],
        root_propagation=linux["rootfsPropagation"].word(_PROPAGATIONS, ""),
        masked=tuple(map(_absolute, linux["maskedPaths"].items())),
        frozen=tuple(map(_absolute, linux["readonlyPaths"].items())),
        sysctls={name: value.text() for name, value in linux["sysctl"].members().items()},
        seccomp=linux["seccomp"],
        time_offsets=_time_offsets(linux["timeOffsets"]),
        personality=linux["personality"]["domain"].word(("LINUX", "LINUX32"), ""),
    )
    if linux["personality"]["flags"].items():
        raise linux["personality"]["flags"].wrong("flags of a personality are not supported")
    _check_namespaces(found)
    return found


def parse_process(field: Field) -> Process:
    """Check process.json, or `process` of config.json. Raises: OciError."""
    args = field["args"].texts()
    if not args:
        raise field["args"].wrong("a command is required")
    for name in ("scheduler", "execCPUAffinity", "commandLine"):
        if field[name]:
            raise field[name].wrong("is not supported")
    size = field["consoleSize"]
    capabilities = field["capabilities"]
    return Process(
        args=args,
        env=field["env"].texts(),
        cwd=_absolute(field["cwd"]),
        user=_user(field["user"]),
        terminal=field["terminal"].flag(),
        console_size=(size["height"].number(0, least=0, most=65535), size["width"].number(0, least=0, most=65535))
        if size
        else None,
        capabilities={name: capabilities[name].texts() for name in CAPABILITY_SETS} if capabilities else None,
        no_new_privileges=field["noNewPrivileges"].flag(),
        oom_score_adj=field["oomScoreAdj"].number(least=-1000, most=1000) if field["oomScoreAdj"] else None,
        limits=_limits(field["rlimits"]),
        apparmor_profile=field["apparmorProfile"].text(""),
        selinux_label=field["selinuxLabel"].text(""),
        io_priority=_io_priority(field["ioPriority"]),
    )


def _check_platform(field: Field) -> None:
    for name in _UNSUPPORTED:
        if field[name]:
            raise field[name].wrong("is not for this platform")
    linux = field["linux"]
    if linux["intelRdt"]:
        raise linux["intelRdt"].wrong("is not supported")
    if linux["mountLabel"].text(""):
        raise linux["mountLabel"].wrong("SELinux labels are not supported")
    if field["process"]["selinuxLabel"].text(""):
        raise field["process"]["selinuxLabel"].wrong("SELinux labels are not supported")
    if linux["netDevices"].members():
        raise linux["netDevices"].wrong("is not supported")


def _version(field: Field) -> str:
    version = field.text()
    numbers = version.partition("-")[0].partition("+")[0].split(".")
    if len(numbers) != 3 or not all(number.isascii() and number.isdecimal() for number in numbers):
        raise field.wrong(f"{version!r} is no version like {VERSION}")
    if numbers[0] != VERSION.partition(".")[0]:
        raise field.wrong(f"version {version} is not supported, 1.x is")
    return version


def _check_namespaces(config: Config) -> None:
    namespaces = config.namespaces
    if "mount" not in namespaces:
        raise OciError("linux.namespaces: a container needs a mount namespace, which is not among them")
    needs = (("hostname", config.hostname, "uts"), ("domainname", config.domainname, "uts"))
    for name, value, kind in needs:
        if value and kind not in namespaces:
            raise OciError(f"{name}: unable to set it without a {kind} namespace")
    user = namespaces.get("user")
    if user is None and (config.uids or config.gids):
        raise OciError(
            "linux.uidMappings: user namespace mappings specified, but user namespace isn't enabled in the config"
        )
    if user is not None and not user.path and not (config.uids and config.gids):
        raise OciError("linux.uidMappings: a new user namespace needs uidMappings and gidMappings")
    if config.time_offsets and ("time" not in namespaces or namespaces["time"].path):
        raise OciError("linux.timeOffsets: only for a new time namespace")


def _namespaces(field: Field) -> dict[str, Namespace]:
    found: dict[str, Namespace] = {}
    for item in field.items():
        kind, path = item["type"].word(NAMESPACES), item["path"].text("")
        if kind in found:
            raise item.wrong(f"a second {kind} namespace")
        if path and not path.startswith("/"):
            raise item["path"].wrong("is not absolute")
        found[kind] = Namespace(kind, path)
    return found


def _user(field: Field) -> User:
    groups = tuple(item.number(least=0, most=_ID_MAX) for item in field["additionalGids"].items())
    uid, gid = (field[name].number(0, least=0, most=_ID_MAX) for name in ("uid", "gid"))
    return User(uid, gid, groups, field["umask"].number(0o022, least=0, most=0o777))


def _limits(field: Field) -> tuple[Limit, ...]:
    found: dict[str, Limit] = {}
    for item in field.items():
        name = item["type"].text()
        plain = name.removeprefix("RLIMIT_").lower()
        if plain not in LIMITS or not name.startswith("RLIMIT_"):
            raise item["type"].wrong(f"invalid rlimit type: {name}")
        if plain in found:
            raise item["type"].wrong(f"{name} is given twice")
        soft, hard = (item[part].number(least=0) for part in ("soft", "hard"))
        if soft > hard:
            raise item.wrong("the soft limit is above the hard one")
        found[plain] = Limit(plain, *(-1 if value >= 1 << 63 else value for value in (soft, hard)))
    return tuple(found.values())


def _io_priority(field: Field) -> int | None:
    classes = ("IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE")
    if not field:
        return None
    return (classes.index(field["class"].word(classes)) + 1) << 13 | field["priority"].number(0, least=0, most=7)


def _mount(field: Field) -> Mount:
    destination = field["destination"].text()
    if not destination:
        raise field["destination"].wrong("is empty")
    for name in ("uidMappings", "gidMappings"):
        if field[name].items():
            raise field[name].wrong("mounts with translated ids are not supported")
    try:
        options = mount_options.parse(field["options"].texts())
    except ValueError as error:
        raise field["options"].wrong(str(error)) from None
    kind = "bind" if options.is_bind else field["type"].text("")
    if kind == "bind" or options.is_bind:
        options = options._replace(is_bind=True)
    source = field["source"].text("")
    if options.is_bind and not source:
        raise field["source"].wrong("a bind mount needs one")
    return Mount(posixpath.normpath(f"/{destination}").replace("//", "/"), kind, source, options)


def _hook(field: Field) -> Hook:
    path = field["path"].text()
    if not path.startswith("/"):
        raise field["path"].wrong("is not absolute")
    timeout = field["timeout"].number(least=1) if field["timeout"] else None
    return Hook(path, field["args"].texts() or (path,), field["env"].texts(), timeout)


def _id_map(field: Field) -> IdRanges:
    return tuple(
        IdRange(
            item["containerID"].number(0, least=0, most=_ID_MAX),
            item["hostID"].number(0, least=0, most=_ID_MAX),
            item["size"].number(0, least=0, most=_ID_MAX + 1),
        )
        for item in field.items()
    )


def _device(field: Field) -> Device:
    kind = field["type"].word(_DEVICE_KINDS)
    path = _absolute(field["path"])
    uid, gid = (field[name].number(0, least=0, most=_ID_MAX) for name in ("uid", "gid"))
    numbers = (0, 0) if kind == "p" else (field["major"].number(least=0), field["minor"].number(least=0))
    mode = field["fileMode"].number(0o666, least=0) & 0o7777
    return Device(path, "c" if kind == "u" else kind, *numbers, mode, uid, gid)


def _time_offsets(field: Field) -> dict[str, tuple[int, int]]:
    found = {}
    for name, offset in field.members().items():
        if name not in ("monotonic", "boottime"):
            raise offset.wrong("is no clock that can have an offset")
        found[name] = (offset["secs"].number(0), offset["nanosecs"].number(0, least=0, most=999_999_999))
    return found


def _absolute(field: Field) -> str:
    path = field.text()
    if not path.startswith("/"):
        raise field.wrong(f"{path!r} is not an absolute path")
    return path
