"""Ask the daemon of a mount for an upgrade, and learn the result. The other end is control.server, in the daemon."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any, Final, NamedTuple

from unionfs.control.client import NoAnswerError, ask
from unionfs.fuse.mounting import FSTYPE, process_name
from unionfs.fuse.view_name import is_view
from unionfs.syscalls import mountinfo
from unionfs.syscalls.mountinfo import Mount

_PATIENCE_S: Final = 180.0
"""Seconds to wait for the answer of another daemon: more than the keeper and the new daemon wait for each other."""
_STEPS: Final = 2  # a parent of mounts first has another process keep the mount
_AGAIN_S: Final = 0.02
_UNKNOWN: Final = "unknown question"  # the error of daemons of versions without upgrades
_TOO_OLD: Final = "its daemon is of a version that cannot be upgraded: unmount it, and mount it again"


class Target(NamedTuple):
    """A mounted union. Immutable."""

    connection: int  # number of its FUSE connection
    owner: int | None  # who has mounted it
    mountpoint: str = ""  # "": in a mount namespace that is not ours


class Outcome(NamedTuple):
    """The result for one mount. Immutable."""

    mountpoint: str  # the path in the daemon's mount namespace, if that is another one
    version_before: str  # "" if it is not known
    version: str  # that serves now; "" if it is not known
    why: str  # why the previous version continues; "" after an upgrade
    is_kept: bool = True  # whether its keeper lives


def target_of(mount: Mount) -> Target:
    """Return the union of a mount."""
    return Target(mount.minor, mount.user_id, mount.mountpoint)


def own_targets() -> list[Target]:
    """Return the unions that this user has mounted: those in this mount namespace, then those of containers and other
    namespaces, whose daemons are processes of this user that we see."""
    own = os.geteuid()
    found: dict[int, Target] = {}
    for mount in mountinfo.mounts():
        if mount.fstype == FSTYPE and mount.user_id == own and not is_view(mount):
            found.setdefault(mount.minor, target_of(mount))
    elsewhere: dict[int, Target] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError, ValueError):  # it has ended; or a name that only looks like ours
            with open(f"/proc/{pid}/comm") as comm:
                name, _, number = comm.read().strip().rpartition(":")
            if process_name(int(number)) == f"{name}:{number}" and os.stat(f"/proc/{pid}").st_uid == own:
                elsewhere[int(number)] = Target(int(number), own)
    return [*found.values(), *(elsewhere[number] for number in sorted(elsewhere) if number not in found)]


def request(target: Target) -> Outcome:
    """Have a union continue in the version that is installed now. Never raises."""
    before: dict[str, Any] = {}
    try:
        before = after = _stats(target) or {}
        for _ in range(_STEPS):
            answer = next(ask(target.connection, "upgrade", target.owner), {})
            if "refused" in answer:
                return _outcome(target, before, before, str(answer["refused"]))
            after = _wait_for_another(target, after)
            if not answer.get("again"):
                break
    except NoAnswerError as error:
        return _outcome(target, before, {}, _TOO_OLD if _UNKNOWN in str(error) else str(error))
    keeper = after.get("keeper") or {}
    if keeper.get("upgrades", 0) > (before.get("keeper") or {}).get("upgrades", 0):
        return _outcome(target, before, after, "")._replace(is_kept=bool(keeper["alive"]))
    return _outcome(target, before, after, keeper.get("not_upgraded") or "its daemon died meanwhile; try again")


def _outcome(target: Target, before: dict[str, Any], after: dict[str, Any], why: str) -> Outcome:
    mountpoint = target.mountpoint or before.get("mountpoint") or f"FUSE connection {target.connection}"
    return Outcome(mountpoint, before.get("version") or "", after.get("version") or "", why)


def _stats(target: Target) -> dict[str, Any] | None:
    """Return None if the daemon has ended without an answer. Raises: NoAnswerError."""
    return next(ask(target.connection, "stats", target.owner), None)


def _wait_for_another(target: Target, before: dict[str, Any]) -> dict[str, Any]:
    """Wait until another daemon serves the union. Returns its statistics. Raises: NoAnswerError, also if none does."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        after = _stats(target)
        if after is not None and after.get("pid") != before.get("pid"):  # else the one that is leaving was asked
            return after
        time.sleep(_AGAIN_S)
    raise NoAnswerError(f"no other daemon answered within {_PATIENCE_S:.0f} s")
