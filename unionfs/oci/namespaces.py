"""The namespaces of a container: found, joined and made, and the ids of a new user namespace.

Sources: OCI runtime specification, config-linux.md "Namespaces"; namespaces(7), user_namespaces(7), time_namespaces(7).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Final, NamedTuple

from unionfs.id_ranges import IdRange
from unionfs.launcher import idmap
from unionfs.launcher.errors import LaunchError
from unionfs.oci.config import Config, Namespace
from unionfs.oci.errors import OciError
from unionfs.syscalls.namespaces import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    namespace_type,
    setns,
    unshare,
)

_FLAGS: Final = {
    "user": CLONE_NEWUSER, "network": CLONE_NEWNET, "ipc": CLONE_NEWIPC, "uts": CLONE_NEWUTS, "cgroup": CLONE_NEWCGROUP,
    "time": CLONE_NEWTIME, "pid": CLONE_NEWPID, "mount": CLONE_NEWNS,
}  # fmt: skip
"""Kinds in the order in which they are joined: the mount namespace last, since until then paths are the host's."""
_FILES: Final = {"network": "net", "mount": "mnt"}  # names in /proc/PID/ns that differ from those of the specification


class Joined(NamedTuple):
    """Namespaces to be joined: kind -> descriptor; without those in which this process is."""

    fds: dict[str, int]

    def enter(self) -> None:
        """Join all of them; as root of the user namespace, if one is among them. Raises: OciError.

        A namespace may belong to the user namespace that is joined or to ours: those that are refused at first are
        tried again after the user namespace was joined.
        """
        left = dict(self.fds)
        user = left.pop("user", None)
        if user is not None:
            for kind in list(left):
                if kind != "mount" and _try(left[kind]):
                    os.close(left.pop(kind))
            _set(user, "user")
            os.close(user)
            become_root()
        for kind in _FLAGS:
            if kind in left:
                _set(left[kind], kind)
                os.close(left[kind])

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)


def open_given(namespaces: Mapping[str, Namespace]) -> Joined:
    """Open the namespaces that the configuration names by path. Raises: OciError, also for one of another kind."""
    return _open({one.kind: one.path for one in namespaces.values() if one.path})


def open_of(pid: int, kinds: frozenset[str] = frozenset(_FLAGS)) -> Joined:
    """Open the namespaces of a process, without those in which this process is. Raises: OciError."""
    return _open({kind: f"/proc/{pid}/ns/{_FILES.get(kind, kind)}" for kind in _FLAGS if kind in kinds})


def _open(paths: Mapping[str, str]) -> Joined:
    found: dict[str, int] = {}
    for kind, path in paths.items():
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if kind in ("time", "cgroup") and path.startswith("/proc/"):
                continue  # a kernel that has none
            raise OciError.of(f"opening the {kind} namespace", error) from error
        except OSError as error:
            raise OciError.of(f"opening the {kind} namespace", error) from error
        if _kind_of(fd) != _FLAGS[kind]:
            os.close(fd)
            raise OciError(f"linux.namespaces: {path} is no {kind} namespace")
        if os.fstat(fd).st_ino == os.stat(f"/proc/self/ns/{_FILES.get(kind, kind)}").st_ino:
            os.close(fd)
        else:
            found[kind] = fd
    return Joined(found)


def _kind_of(fd: int) -> int:
    try:
        return namespace_type(fd)
    except OSError:
        return 0


def flags_of_new(config: Config) -> int:
    """The CLONE_NEW* bits of the new namespaces."""
    return sum(_FLAGS[one.kind] for one in config.namespaces.values() if not one.path)


def make(flags: int) -> None:
    """Leave these namespaces for new ones. Raises: OciError."""
    try:
        if flags:
            unshare(flags)
    except OSError as error:
        hint = ""
        if flags & CLONE_NEWUSER and error.errno in (errno.EPERM, errno.EACCES, errno.ENOSPC):
            hint = ": this machine does not let this user make user namespaces; ask the administrator for"
            hint += " user.max_user_namespaces, kernel.unprivileged_userns_clone=1 or a profile of AppArmor"
        raise OciError(f"making namespaces: {(error.strerror or str(error)).lower()}{hint}") from error


def become_root() -> None:
    """Take the ids 0 of the user namespace that was joined or made. Raises: OciError."""
    try:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    except OSError as error:
        raise OciError("the user namespace maps no user 0 or no group 0: the container cannot be set up") from error


def write_ids(pid: int, config: Config) -> None:
    """Write the id maps of the new user namespace of `pid`: as root ourselves, else by newuidmap and newgidmap, which a
    map of one id does not need. Raises: OciError.
    """
    try:
        if os.geteuid() == 0:
            _write_directly(pid, config)
            return
        single = len(config.uids) == len(config.gids) == 1 and config.uids[0].length == config.gids[0].length == 1
        idmap.write(pid, idmap.NamespaceMap(config.uids, config.gids, "one id was requested" if single else ""))
    except OSError as error:
        raise OciError.of("mapping ids", error) from error
    except LaunchError as error:
        raise OciError(str(error)) from error


def _write_directly(pid: int, config: Config) -> None:
    for name, ranges in (("uid_map", config.uids), ("gid_map", config.gids)):
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, "".join(map(_line, ranges)).encode())
        finally:
            os.close(fd)


def _line(extent: IdRange) -> str:
    return f"{extent.inside} {extent.outside} {extent.length}\n"


def write_time_offsets(pid: int, config: Config) -> None:
    """Write the offsets of the clocks of the time namespace that the children of `pid` will have. Raises: OciError."""
    try:
        for clock, (seconds, nanoseconds) in config.time_offsets.items():
            with open(f"/proc/{pid}/timens_offsets", "w", encoding="ascii") as file:
                file.write(f"{clock} {seconds} {nanoseconds}\n")
    except OSError as error:
        raise OciError.of("setting the offsets of clocks", error) from error


def _try(fd: int) -> bool:
    try:
        setns(fd)
    except OSError:
        return False
    return True


def _set(fd: int, kind: str) -> None:
    try:
        setns(fd)
    except OSError as error:
        raise OciError(f"joining the {kind} namespace: {(error.strerror or str(error)).lower()}") from error
