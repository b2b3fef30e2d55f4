"""Id maps of user namespaces: read a user's subordinate ids, compute the maps, write them.

Knows /etc/subuid and /etc/subgid (subuid(5)), newuidmap(1) and user_namespaces(7). Does not know containers.
`parse_ranges` and `extents` are pure.

A map always gives id 0 to the user itself. The subordinate ranges follow from id 1 on, in the order of the file.
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
    """The uid_map and gid_map of a user namespace. `limited`: why they map one id only; empty: they map more.

    `keeps_groups`: its processes keep the supplementary groups of the process that makes it, though none is mapped.
    """

    uids: IdRanges
    gids: IdRanges
    limited: str = ""
    keeps_groups: bool = False

    def has_uid(self, uid: int) -> bool:
        return to_outside(self.uids, uid) is not None

    def has_gid(self, gid: int) -> bool:
        return to_outside(self.gids, gid) is not None


def is_privileged() -> bool:
    """Whether this process is root with the capabilities to make namespaces and change ids without a user namespace."""
    effective = capget().effective
    return os.geteuid() == 0 and bool(effective >> _CAP_SYS_ADMIN & 1) and bool(effective >> _CAP_SETUID & 1)


def find(uid: int, gid: int) -> NamespaceMap:
    """Return the largest map that this user can have: with its subordinate ids, or with one id if it has none."""
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
        if why := helper_problem(helper):
            return single(uid, gid, why)
    return NamespaceMap(extents(uid, uid_ranges), extents(gid, gid_ranges))


def helper_problem(name: str) -> str:
    """Return why the program `name`, newuidmap or newgidmap, cannot map ids for this process; empty if it can."""
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
    """Return the map of one id, which needs no privileges: root inside is this user outside. `why` fills `limited`."""
    return NamespaceMap((IdRange(0, uid, 1),), (IdRange(0, gid, 1),), why)


def parse_ranges(text: str, names: Iterable[str]) -> tuple[SubordinateRange, ...]:
    """Return the ranges that a subuid(5) file gives to any of `names`; malformed lines are skipped."""
    wanted = set(names)
    found = []
    for line in text.splitlines():
        name, _, numbers = line.strip().partition(":")
        first, _, count = numbers.partition(":")
        if name in wanted and first.isdecimal() and count.isdecimal() and int(count) > 0:
            found.append(SubordinateRange(int(first), int(count)))
    return tuple(found)


def extents(own: int, ranges: Iterable[SubordinateRange]) -> IdRanges:
    """Map 0 to `own`, and 1, 2, ... to the ids of the ranges.

    Ids of a range that are `own` or in an earlier range are left out: the kernel refuses a map with duplicates.
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


def maps_one_user() -> bool:
    """Whether our user namespace maps one user id only: then all files have this owner."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return sum(int(line.split()[2]) for line in file) == 1


def write(pid: int, id_map: NamespaceMap) -> None:
    """Write the id maps of the new user namespace of process `pid`.

    Uses newuidmap and newgidmap unless only the user's own ids are mapped, which needs no privileges.
    Raises: LaunchError when these programs or the kernel refuse.
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
    """Wait for a helper. Return why it failed, or an empty text."""
    with open(helper.output_fd, "rb") as pipe:
        output = pipe.read().decode(errors="replace").strip()
    if not helper.pid:
        return f"{helper.name} is not installed"
    _, status = os.waitpid(helper.pid, 0)
    return (output or f"{helper.name} failed") if status else ""


def _without(first: int, end: int, taken: Iterable[IdRange]) -> list[tuple[int, int]]:
    """Return the ids from `first` up to `end` that no extent of `taken` has outside, as (first, end) pairs."""
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
