"""The read-only branches of a container, added, removed and moved: of its union while it runs, and in its record.

If the container runs, its union is changed first and its record afterwards; otherwise only its record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from unionfs.containers.errors import ContainerError
from unionfs.containers.ids import id_map_of
from unionfs.containers.record import Container
from unionfs.containers.root_access import in_running
from unionfs.containers.store import ContainerStore
from unionfs.control import branch_client
from unionfs.control.branch_client import BranchError, BranchLine, Served
from unionfs.core.options import is_inside
from unionfs.core.pointers import pointers_at
from unionfs.drivers.names import FUSE
from unionfs.launcher import userns

_WHAT = "changing the branches"

Change = Callable[[Served], list[BranchLine]]


def listed(container: Container) -> list[BranchLine]:
    """List the branches, the topmost first. Raises: BranchError, ContainerError, LaunchError."""
    _check(container)
    if container.status == "running":
        return _ask(container, branch_client.listed)
    return _lines(container, container.config.rootfs.lowers)


def add(container: Container, path: str, position: int | None, *, force: bool) -> list[BranchLine]:
    """As branch_client.add. Raises as `listed`."""
    with ContainerStore(container.root).changing(container) as current:
        return _add(current, path, position, force=force)


def _add(container: Container, path: str, position: int | None, *, force: bool) -> list[BranchLine]:
    _check(container)
    path = os.path.realpath(path)
    lowers = list(container.config.rootfs.lowers)
    index = _index(position, len(lowers), len(container.frozen))
    if container.status == "running":
        return _change(container, lambda union: branch_client.add(union, path, index + 1, force=force))
    if not os.path.isdir(path):
        raise BranchError(f"{path}: there is no such directory")
    for lower in lowers:
        real = os.path.realpath(lower)
        if real == path:
            raise BranchError(f"{path} is a branch already")
        if not force and (is_inside(path, real) or is_inside(real, path)):
            raise BranchError(f"{path} and the branch {lower} lie in each other")
    if is_inside(path, container.directory) or is_inside(os.path.realpath(container.directory), path):
        raise BranchError(f"{path} and the container's own directory lie in each other")
    lowers.insert(index, path)
    return _record(container, tuple(lowers))


def remove(container: Container, path: str, *, force: bool) -> list[BranchLine]:
    """As branch_client.remove. Raises as `listed`."""
    with ContainerStore(container.root).changing(container) as current:
        return _remove(current, path, force=force)


def _remove(container: Container, path: str, *, force: bool) -> list[BranchLine]:
    _check(container)
    lowers = list(container.config.rootfs.lowers)
    lower = _known(container, path)
    if len(lowers) == 1:
        raise BranchError(f"{path} is the only lower: a union needs one")
    if container.status == "running":
        return _change(container, lambda union: branch_client.remove(union, lower, force=force))
    if not force:
        _refuse_pointers(container, lower)
    lowers.remove(lower)
    return _record(container, tuple(lowers))


def move(container: Container, path: str, position: int) -> list[BranchLine]:
    """As branch_client.move. Raises as `listed`."""
    with ContainerStore(container.root).changing(container) as current:
        return _move(current, path, position)


def _move(container: Container, path: str, position: int) -> list[BranchLine]:
    _check(container)
    lowers = list(container.config.rootfs.lowers)
    lower = _known(container, path)
    lowers.remove(lower)
    index = _index(position, len(lowers), len(container.frozen))
    if container.status == "running":
        return _change(container, lambda union: branch_client.move(union, lower, index + 1))
    lowers.insert(index, lower)
    return _record(container, tuple(lowers))


def _check(container: Container) -> None:
    if container.config.rootfs.driver != FUSE:
        why = f"its root filesystem is made by the driver {container.config.rootfs.driver}"
        raise ContainerError(_WHAT, container.name, why)
    if container.config.rootfs.file is not None:
        raise ContainerError(_WHAT, container.name, "its image is a file, whose directories are its branches")
    if container.status == "starting":
        raise ContainerError(_WHAT, container.name, "it is being started", hint="try again")


def _index(position: int | None, count: int, frozen: int) -> int:
    """Return the index among `count` lowers of the container. The `frozen` ones, which hold its changes, stay the
    topmost, and the branch of its mountpoints stays the lowest."""
    if position == branch_client.BOTTOM:
        return count
    if position is not None and not frozen < position <= count + 1:
        changes = "0 is the upper" if not frozen else f"0 to {frozen} hold the container's changes"
        why = changes if position <= frozen else f"there are {count + 1} other branches"
        raise BranchError(f"there is no position {position} for it: {why}")
    return frozen if position is None else position - 1


def _known(container: Container, path: str) -> str:
    wanted = os.path.realpath(path)
    found = [lower for lower in container.config.rootfs.lowers if lower == path or os.path.realpath(lower) == wanted]
    if not found:
        raise BranchError(f"{path} is no lower of this container")
    if found[0] in container.frozen:
        raise BranchError(f"{path} holds changes of the container")
    return found[0]


def _change(container: Container, change: Change) -> list[BranchLine]:
    found = _ask(container, change)
    own = container.mountpoint_lower if container.facts.mountpoint_lower else None
    return _record(container, tuple(line.path for line in found if line.role == "lower" and line.path != own))


def _record(container: Container, lowers: tuple[str, ...]) -> list[BranchLine]:
    ContainerStore(container.root).set_lowers(container, lowers, restacked=True)
    return _lines(container, lowers)


def _lines(container: Container, lowers: tuple[str, ...]) -> list[BranchLine]:
    own = (container.mountpoint_lower,) if container.facts.mountpoint_lower else ()
    paths = (container.upper, *lowers, *own)
    return [BranchLine(at, "lower" if at else "upper", path) for at, path in enumerate(paths)]


def _ask(container: Container, change: Change) -> list[BranchLine]:
    return [BranchLine(*line) for line in ask_daemon(container, lambda union, _: change(union), _WHAT)]


def ask_daemon(container: Container, question: Callable[[Served, str], Any], what: str) -> Any:
    """Ask the daemon of a container that runs, in a process that has the container's ids. `question` gets the union and
    the path of its root directory in that process, and returns a value for JSON. `what`: the verb, for errors. Raises:
    BranchError, ContainerError, LaunchError."""
    read_fd, write_fd = os.pipe()

    def ask(root_fd: int) -> None:
        try:
            union = Served(os.minor(os.fstat(root_fd).st_dev), None)
            found: object = [question(union, f"/proc/self/fd/{root_fd}")]
        except BranchError as error:
            found = {"why": str(error), "pointers": error.pointers}
        with open(write_fd, "w", encoding="ascii") as pipe:
            pipe.write(json.dumps(found))

    with open(read_fd, encoding="ascii") as pipe:
        try:
            in_running(container, ask, what)
        finally:
            os.close(write_fd)
        answer = json.loads(pipe.read())
    if isinstance(answer, dict):
        raise BranchError(answer["why"], tuple((kind, path) for kind, path in answer["pointers"]))
    return answer[0]


def _refuse_pointers(container: Container, lower: str) -> None:
    """Raise BranchError if objects in the upper of a container that does not run depend on a lower."""

    def look() -> bytes:
        index = os.path.join(container.work, "index")
        found = pointers_at(container.upper, index if os.path.isdir(index) else container.work, lower)
        return json.dumps([(each.kind, os.fsdecode(each.path)) for each in found]).encode()

    found = tuple((kind, path) for kind, path in json.loads(userns.call(id_map_of(container), look)))
    if found:
        raise BranchError(f"the upper keeps {len(found)} objects that come from {lower}", found)
