"""Put what a container changed in its view of this machine in place: checked first, done by a journal, resumed.

It is done by this process itself, with the rights it has here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from unionfs.changes import apply as applying
from unionfs.changes import check, record
from unionfs.changes import journal as journals
from unionfs.changes.apply import Applied, NotAppliedError, PartlyAppliedError
from unionfs.changes.check import ApplyPlan, Objection
from unionfs.changes.listing import Changes
from unionfs.changes.owners import OwnerChoice
from unionfs.changes.stage import Progress
from unionfs.containers.diff import branches_of, changes_of, saved_list
from unionfs.containers.errors import ContainerError
from unionfs.containers.ids import ids_outside
from unionfs.containers.record import Container
from unionfs.launcher import idmap

_NAMED: Final = 20  # objections listed one by one


class NotReadyError(ContainerError):
    """Changes cannot be put in place now; nothing was done. `objections` say why, by path."""

    def __init__(self, container: Container, why: str, objections: list[Objection], *, hint: str) -> None:
        lines = [f"{os.fsdecode(one.path)}: {one.why}" for one in objections[:_NAMED]]
        if len(objections) > _NAMED:
            lines.append(f"... and {len(objections) - _NAMED} more")
        super().__init__(
            "apply", container.name, f"{why} (nothing was done)", hint="\n".join([*lines, *([hint] if hint else [])])
        )
        self.objections = objections


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is known before anything is done: what would be done, and what forbids it."""

    container: Container
    found: Changes
    plan: ApplyPlan

    def refuse(self, *, force: bool, strict: bool = False) -> None:
        """Raises: NotReadyError if there is a problem, a conflict that is not to be overridden, or with `strict` a
        warning: a hard link that would be broken."""
        name = self.container.name
        if problems := _distinct(self.plan.problems):
            hint = ""
            if all(problem.privilege for problem in problems) and os.geteuid() != 0:
                hint = f"root may: sudo unionfs apply --root {self.container.root} {name}"
            objections = problems + _distinct(self.plan.conflicts)
            raise NotReadyError(self.container, "this cannot be put in place", objections, hint=hint)
        if (conflicts := _distinct(self.plan.conflicts)) and not force:
            raise NotReadyError(
                self.container,
                "this machine was changed meanwhile",
                conflicts,
                hint=f"to replace what is there now: unionfs apply --force {name}",
            )
        if strict and (warnings := _distinct(self.plan.warnings)):
            hint = f"unionfs apply {name} puts all in place that can be"
            raise NotReadyError(self.container, "this would be put in place in part only", warnings, hint=hint)


def prepare(container: Container) -> Prepared:
    """Look at everything that would be done. Raises: ContainerError, for a container of anything but `/` too."""
    lowers = container.config.rootfs.lowers
    if lowers != ("/",):
        why = f"it is a view of {':'.join(lowers)}, not of this machine's /"
        raise ContainerError("apply", container.name, why)
    if container.is_running():
        raise ContainerError("apply", container.name, "it is still running")
    found = changes_of(container)
    saved = saved_list(container)
    if saved is not None:
        found = record.still_there(saved, found)
    owners = _owners(container)
    try:
        with branches_of(container, owners.ids) as branches:
            return Prepared(container, found, check.plan(branches, found, owners, container.state.began_ns))
    except OSError as error:
        raise ContainerError.of("checking the changes", error) from error


def is_begun(container: Container) -> bool:
    """Whether changes were put in place before, wholly or in part."""
    return journals.is_begun(container.journal)


def put_in_place(prepared: Prepared, *, force: bool, progress: Progress) -> Applied:
    """Do what was prepared. Raises: ContainerError, which says what is done and what is not."""
    container, owners = prepared.container, _owners(prepared.container)
    prepared.refuse(force=force)
    carry_on(container, force=False, progress=progress)  # takes back what an apply that was killed has built
    try:
        with branches_of(container, owners.ids) as branches:
            return applying.apply(
                branches,
                prepared.plan,
                prepared.found.unchanged_links,
                owners,
                "/",
                container.journal,
                force=force,
                progress=progress,
            )
    except NotAppliedError as error:
        why = f"{error.error.strerror} (nothing was changed)"
        raise ContainerError("apply", error.path, why) from error
    except PartlyAppliedError as error:
        raise _partly(container, error) from error
    except OSError as error:
        raise ContainerError.of("apply", error) from error


def carry_on(container: Container, *, force: bool, progress: Progress) -> Applied | None:
    """Complete what was interrupted; None if nothing was. Raises: ContainerError."""
    try:
        return applying.resume(container.journal, force=force, progress=progress)
    except PartlyAppliedError as error:
        raise _partly(container, error) from error
    except BlockingIOError:
        raise ContainerError("apply", container.name, "another process is applying it at this moment") from None
    except OSError as error:
        raise ContainerError.of("apply", error) from error


def _partly(container: Container, error: PartlyAppliedError) -> ContainerError:
    stopped = error.left[0]
    done = [f"done: {operation.kind} /{operation.path}" for operation in error.done if operation.says]
    left = [f"not done: {operation.kind} /{operation.path}" for operation in error.left if operation.says]
    hint = f"unionfs apply {container.name} carries on with the rest"
    if not error.error.errno:
        hint += "; with --force it replaces what is there now"
    return ContainerError(
        "apply",
        f"/{stopped.path}",
        f"{error.error.strerror}; {len(done)} of {len(done) + len(left)} steps are done",
        hint="\n".join([*done, *left, hint]),
    )


def _distinct(objections: list[Objection]) -> list[Objection]:
    return list(dict.fromkeys(objections))


def _owners(container: Container) -> OwnerChoice:
    return OwnerChoice(ids_outside(container), idmap.is_privileged())
