"""Which user and group ids a container has: the ranges this user was given, and the maps made of them.

Knows /etc/subuid and /etc/subgid (subuid(5)), newuidmap(1) and user_namespaces(7). Does not know who uses the map.
What is read and what is decided are apart: `extents` and `parse_ranges` are pure.

A map always gives id 0 to the user itself. The ranges follow from id 1 on, in the order of the file.
"""

from __future__ import annotations

import os
import pwd
import signal
import stat
from collections.abc import Iterable
from typing import Final, NamedTuple

from unionfs.id_ranges import IdRange, IdRanges, to_outside
from unionfs.launcher.errors import SEE_DOCTOR, LaunchError
from unionfs.syscalls.namespaces import capget, has_no_new_privileges

SUBUID: Final = "/etc/subuid"
SUBGID: Final = "/etc/subgid"

HELPERS: Final = ("newuidmap", "newgidmap")

_CAP_SETUID: Final = 7  # <linux/capability.h>
_CAP_SYS_ADMIN: Final = 21
_MAX_EXTENTS: Final = 340  # user_namespaces(7): lines of a uid_map
_ID_END: Final = 2**32 - 1  # (uid_t) -1 is no id


class SubordinateRange(NamedTuple):
    """Subordinate ids of one user: one line of /etc/subuid or /etc/subgid."""

    first: int
    length: int


class NamespaceMap(NamedTuple):
    """The uid_map and gid_map of a user namespace. `limited` says why there is only one id; empty: there are more."""

    uids: IdRanges
    gids: IdRanges
    limited: str = ""

    def has_uid(self, uid: int) -> bool:
        return to_outside(self.uids, uid) is not None

    def has_gid(self, gid: int) -> bool:
        return to_outside(self.gids, gid) is not None


def is_privileged() -> bool:
    """Whether this process can make namespaces and change ids without a user namespace of its own: it is root."""
    effective = capget().effective
    return os.geteuid() == 0 and bool(effective >> _CAP_SYS_ADMIN & 1) and bool(effective >> _CAP_SETUID & 1)


def find(uid: int, gid: int) -> NamespaceMap:
    """The best map this user can have: its subordinate ids, or one id when it has none."""
    names = {str(uid)}
    try:
        names.add(pwd.getpwuid(uid).pw_name)
    except KeyError:
        pass  # a user without a name has its ranges under its number
    uid_ranges, gid_ranges = (parse_ranges(_read(path), names) for path in (SUBUID, SUBGID))
    if not uid_ranges:
        return single(uid, gid, f"{SUBUID} gives this user no ids")
    if not gid_ranges:
        return single(uid, gid, f"{SUBGID} gives this user no ids")
    for helper in HELPERS:
        if why := why_helper_is_useless(helper):
            return single(uid, gid, why)
    return NamespaceMap(extents(uid, uid_ranges), extents(gid, gid_ranges))


def why_helper_is_useless(name: str) -> str:
    """Why newuidmap or newgidmap cannot help this process, or an empty text when it can."""
    path = next(
        (path for path in (os.path.join(d, name) for d in os.get_exec_path()) if os.access(path, os.X_OK)), None
    )
    if path is None:
        return f"{name} is not installed"
    if not os.stat(path).st_mode & stat.S_ISUID and not _has_file_capability(path):
        return f"{path} is neither set-user-id root nor given capabilities"
    if has_no_new_privileges():
        return f"{path} has no effect on a process with no_new_privs"
    return ""


def single(uid: int, gid: int, why: str) -> NamespaceMap:
    """The map anybody can have: root inside is this user outside, and nobody else exists."""
    return NamespaceMap((IdRange(0, uid, 1),), (IdRange(0, gid, 1),), why)


def parse_ranges(text: str, names: Iterable[str]) -> tuple[SubordinateRange, ...]:
    """The ranges that a subuid(5) file gives to the user known by any of `names`; a bad line gives none."""
    wanted = set(names)
    found = []
    for line in text.splitlines():
        name, _, numbers = line.strip().partition(":")
        first, _, count = numbers.partition(":")
        if name in wanted and first.isdecimal() and count.isdecimal() and int(count) > 0:
            found.append(SubordinateRange(int(first), int(count)))
    return tuple(found)


def extents(own: int, ranges: Iterable[SubordinateRange]) -> IdRanges:
    """The map of 0 to `own` and of 1, 2, ... to the ranges.

    The kernel takes no id twice: what a range repeats of `own` or of an earlier range is left out.
    """
    found = [IdRange(0, own, 1)]
    inside = 1
    for given in ranges:
        for first, end in _without(given.first, min(given.first + given.length, _ID_END), found):
            if len(found) < _MAX_EXTENTS:
                count = min(end - first, _ID_END - inside)
                found.append(IdRange(inside, first, count))
                inside += count
    return tuple(found)


def is_alone() -> bool:
    """Whether our user namespace maps one user only: then nobody else can own a file."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return sum(int(line.split()[2]) for line in file) == 1


def write(pid: int, id_map: NamespaceMap) -> None:
    """Give the new user namespace of process `pid` its maps.

    Uses newuidmap and newgidmap unless only the own ids are mapped, which the kernel lets everybody do.
    Raises: LaunchError when they refuse, or the kernel does.
    """
    if id_map.limited:
        _write_single(pid, id_map)
        return
    helpers = [_start_helper(name, pid, ids) for name, ids in zip(HELPERS, (id_map.uids, id_map.gids), strict=True)]
    failures = [failure for failure in map(_end_helper, helpers) if failure]
    if failures:
        raise LaunchError("mapping user ids", "", "; ".join(failures), hint=SEE_DOCTOR)


def _write_single(pid: int, id_map: NamespaceMap) -> None:
    try:
        _write_file(f"/proc/{pid}/setgroups", "deny")  # user_namespaces(7): else the gid_map is refused
        _write_file(f"/proc/{pid}/uid_map", " ".join(map(str, id_map.uids[0])))
        _write_file(f"/proc/{pid}/gid_map", " ".join(map(str, id_map.gids[0])))
    except OSError as error:
        raise LaunchError.of("mapping user ids", error, hint=SEE_DOCTOR) from error


class _Helper(NamedTuple):
    name: str
    pid: int  # 0: not started
    output_fd: int


def _start_helper(name: str, pid: int, mapped: IdRanges) -> _Helper:
    numbers = [str(number) for extent in mapped for number in extent]
    read_fd, write_fd = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, write_fd, 2)]
    try:
        helper = os.posix_spawnp(
            name,
            [name, str(pid), *numbers],
            os.environ,
            file_actions=actions,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE],
        )
    except OSError:
        helper = 0
    finally:
        os.close(write_fd)
    return _Helper(name, helper, read_fd)


def _end_helper(helper: _Helper) -> str:
    """Wait for a helper; why it failed, or an empty text."""
    with open(helper.output_fd, "rb") as pipe:
        said = pipe.read().decode(errors="replace").strip()
    if not helper.pid:
        return f"{helper.name} is not installed"
    _, status = os.waitpid(helper.pid, 0)
    return (said or f"{helper.name} failed") if status else ""


def _without(first: int, end: int, taken: Iterable[IdRange]) -> list[tuple[int, int]]:
    """What remains of the ids from `first` up to `end` when those taken outside are cut out, as (first, end)."""
    left = [(first, end)]
    for extent in taken:
        low, high = extent.outside, extent.outside + extent.length
        pieces = []
        for start, stop in left:
            pieces += [(start, min(stop, low)), (max(start, high), stop)]
        left = [(start, stop) for start, stop in pieces if start < stop]
    return left


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""  # no file, no ranges


def _has_file_capability(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def _write_file(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
