"""Find which branch of a union provides a path, and the marks that hide it, with ids that may read all branches."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from layers import why
from layers.data_place import DataPlace
from layers.tree import LayerTrees
from layers.why import Verdict
from unionfs.containers.complete import complete_names
from unionfs.containers.errors import ContainerError
from unionfs.containers.ids import id_map_of
from unionfs.containers.record import Container
from unionfs.containers.rootfs import image_file_shown
from unionfs.drivers.driver import is_whole
from unionfs.launcher import userns


class Question(NamedTuple):
    """A path in a union of directories."""

    path: str  # from the union's root
    directories: tuple[str, ...]  # top first
    roles: tuple[str, ...]
    container: Container | None = None  # the container whose ids are needed


def of_directories(path: str, upper: str | None, lowers: Sequence[str]) -> Question:
    """The question for a path in the union of these directories."""
    above = (upper,) if upper else ()
    roles = (*("upper" for _ in above), *("lower" for _ in lowers))
    return Question(normal(path), (*above, *lowers), roles)


def of_container(path: str, container: Container) -> Question:
    """The question for a path in a container. Raises: ContainerError if its driver has no branches."""
    driver = container.config.rootfs.driver
    if is_whole(driver):
        because = f"the {driver} driver has copied everything, so no layer provides a path"
        hint = f"unionfs diff {container.name} lists the changes"
        raise ContainerError("why", f"{container.name}:{path}", because, hint=hint)
    lowest = ("mountpoints",) if container.facts.mountpoint_lower else ()
    roles = ("upper", *("lower" for _ in container.config.rootfs.lowers), *lowest)
    return Question(normal(path), (container.upper, *container.branches), roles, container)


def normal(path: str) -> str:
    """Normalise a path from the root of a union."""
    return "/" + os.path.normpath("/" + path).lstrip("/")


def answer(question: Question) -> list[dict[str, Any]]:
    """A verdict for each branch, as JSON objects. Raises: OSError, LaunchError."""

    def look() -> bytes:
        with _shown(question.container), LayerTrees() as branches:
            path = tuple(os.fsencode(part) for part in question.path.split("/") if part)
            verdicts = why.explain(branches.view(question.directories), path)
        return json.dumps(
            [_as_json(verdict, role) for verdict, role in zip(verdicts, question.roles, strict=True)]
        ).encode()

    if question.container is not None:
        complete_names(question.container, "why")
    id_map = id_map_of(question.container) if question.container else None
    found: list[dict[str, Any]] = json.loads(userns.call(id_map, look))
    return found


def _shown(container: Container | None) -> AbstractContextManager[None]:
    return nullcontext() if container is None else image_file_shown(container)


def _as_json(verdict: Verdict, role: str) -> dict[str, Any]:
    return {
        "branch": verdict.branch,
        "role": role,
        "directory": verdict.directory,
        "shows": verdict.shows,
        "holds": verdict.holds or None,
        **({"at": verdict.place} if verdict.place else {}),
        "marks": [mark._asdict() for mark in verdict.marks],
        "because": verdict.because,
        **({"data": _data_as_json(verdict.data, verdict.lower)} if verdict.data else {}),
    }


def _data_as_json(data: DataPlace, lower: int | None) -> dict[str, Any]:
    return {
        "size": data.size,
        "own": data.own,
        "branch": lower,
        "at": "/" + os.fsdecode(b"/".join(data.lower.path)) if data.lower is not None else None,
        "fault": data.fault,
    }
