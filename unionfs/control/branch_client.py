"""Ask the daemon of a mounted union to change its branches (control.branch_server): the caller's side.

Opens the directory and passes it as a descriptor, so that it is found in the caller's mount namespace and with the
caller's rights. Knows the mount table. Does not know the core.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple

from unionfs.fuse import mounting
from unionfs.fuse.mounting import FSTYPE
from unionfs.syscalls import files, mountinfo

BOTTOM = -1
"""The position below all branches."""

_PATIENCE_S: Final = 60.0
"""Seconds during which a request is repeated, if the daemon dies before it answers and another one continues."""


class _EndedError(Exception):
    """The daemon has ended without an answer."""


class BranchError(Exception):
    """The branches were not changed. `str()` says why; `pointers` lists the objects of the upper that depend on the
    branch that was to be removed, as (kind, path)."""

    def __init__(self, why: str, found: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(why)
        self.pointers = found  # immutable


class Served(NamedTuple):
    """A union and its daemon."""

    connection: int  # the number of the FUSE connection
    owner: int | None  # the user who mounted it


class BranchLine(NamedTuple):
    """One branch, as its daemon describes it."""

    position: int  # 0 is the topmost
    role: str  # upper or lower
    path: str  # the path with which it was added


def at(path: str) -> Served:
    """Return the union that is mounted at a path. Raises: BranchError."""
    there = mounting.union_at(mounting.resolve_mountpoint(path))
    if there is None:
        raise BranchError("no union is mounted there")
    return Served(there.minor, there.user_id)


def listed(union: Served) -> list[BranchLine]:
    """List the branches, the topmost first. Raises: BranchError."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        with suppress(_EndedError):  # another daemon may continue
            return _answer(union, "branches", {}, ())
    raise BranchError("its daemon ended without an answer")


def add(union: Served, path: str, position: int | None = None, *, force: bool = False) -> list[BranchLine]:
    """Make a directory a lower, at a position or on top of all lowers. `force`: also one that lies in another lower.
    Returns the branches afterwards. Raises: BranchError."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BranchError(f"{path}: {error.strerror}") from error
    try:
        hidden = list(_mounts_below(union, path))
        details = {"verb": "add", "path": os.path.realpath(path), "at": position, "force": force, "hidden": hidden}
        return _change(union, details, (fd,))
    finally:
        os.close(fd)


def remove(union: Served, path: str, *, force: bool = False) -> list[BranchLine]:
    """Remove a lower. `force`: even if objects of the upper depend on it. Returns the branches afterwards. Raises:
    BranchError."""
    return _of_known(union, {"verb": "rm", "path": path, "at": None, "force": force})


def move(union: Served, path: str, position: int) -> list[BranchLine]:
    """Move a lower to another position. Returns the branches afterwards. Raises: BranchError."""
    return _of_known(union, {"verb": "mv", "path": path, "at": position})


def freeze(union: Served, mountpoint: str, name: str) -> str:
    """Make the upper a lower, with an empty upper on top of it, in one moment. `name`: of the directory beside the
    upper that it becomes; "": the upper's own with a number. Returns its path. Raises: BranchError."""
    with suppress(OSError):  # dirty pages belong to the frozen state, too
        fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            files.syncfs(fd)
        finally:
            os.close(fd)
    found = _change(union, {"verb": "freeze", "path": name, "at": None}, ())
    return next(line.path for line in found if line.role == "lower")


def has_keeper(union: Served) -> bool:
    """Whether another daemon would replace this one if it died. Raises: BranchError."""
    from unionfs.control.client import NoAnswerError, ask

    try:
        found = next(ask(union.connection, "stats", union.owner), {})
    except NoAnswerError as why:
        raise BranchError(str(why)) from why
    keeper = found.get("keeper") or {}
    return bool(keeper.get("alive")) and not keeper.get("outdated")


def _of_known(union: Served, details: dict[str, Any]) -> list[BranchLine]:
    """Ask for a change of a branch, which is named by its directory, or by its path if that does not exist any more."""
    path = details["path"]
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return _change(union, details, ())
    try:
        return _change(union, details | {"path": os.path.realpath(path)}, (fd,))
    finally:
        os.close(fd)


def _mounts_below(union: Served, path: str) -> Iterator[list[str]]:
    """List what is mounted below a directory, as components of the path from there. Raises BranchError if the union
    is."""
    real = os.path.realpath(path)
    beneath = real.rstrip("/") + "/"
    for there in mountinfo.mounts():
        if there.mountpoint.startswith(beneath):
            if there.fstype == FSTYPE and there.minor == union.connection:
                raise BranchError(f"the union is mounted inside of {path}")
            yield there.mountpoint[len(beneath) :].split("/")


def _change(union: Served, details: dict[str, Any], fds: tuple[int, ...]) -> list[BranchLine]:
    """Ask for a change. If the daemon dies meanwhile, ask the next one, which may have made the change already. Raises:
    BranchError."""
    before = listed(union)
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        with suppress(_EndedError):
            return _answer(union, "change", details, fds)
        found = listed(union)  # when it has finished the change
        if found != before:
            return found
    raise BranchError("its daemon ended without an answer")


def _answer(union: Served, question: str, details: dict[str, Any], fds: tuple[int, ...]) -> list[BranchLine]:
    """Raises: BranchError, _EndedError."""
    from unionfs.control.client import NoAnswerError, ask

    try:
        found = next(ask(union.connection, question, union.owner, details, fds), None)
    except NoAnswerError as why:
        raise BranchError(str(why)) from why
    if found is None:
        raise _EndedError
    if "refused" in found:
        raise BranchError(found["refused"], tuple((each["kind"], each["path"]) for each in found["pointers"]))
    return [BranchLine(each["position"], each["role"], each["path"]) for each in found["branches"]]
