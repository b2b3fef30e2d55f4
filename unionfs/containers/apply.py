"""Apply the changes of a container to this machine: check them, apply them with a journal, resume after an
interruption.

The calling process applies the changes, with its own rights.
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
    """Changes cannot be applied now; nothing was done. `objections` give the reasons, by path."""

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
    """The result of the check: the actions, and the objections to them."""

    container: Container
    found: Changes
    plan: ApplyPlan

    def refuse(self, *, force: bool, strict: bool = False) -> None:
        """Raises: NotReadyError if there is a problem, a conflict without `force`, or with `strict` a
        warning: a hard link that would be broken."""
        name = self.container.name
        if problems := _distinct(self.plan.problems):
            hint = ""
            if all(problem.privilege for problem in problems) and os.geteuid() != 0:
                hint = f"as root: sudo unionfs apply --root {self.container.root} {name}"
            objections = problems + _distinct(self.plan.conflicts)
            raise NotReadyError(self.container, "these changes cannot be applied", objections, hint=hint)
        if (conflicts := _distinct(self.plan.conflicts)) and not force:
            raise NotReadyError(
                self.container,
                "this machine was changed meanwhile",
                conflicts,
                hint=f"to replace the current files: unionfs apply --force {name}",
            )
        if strict and (warnings := _distinct(self.plan.warnings)):
            hint = f"unionfs apply {name} without --strict applies all the others"
            raise NotReadyError(self.container, "these changes would be applied in part only", warnings, hint=hint)


def prepare(container: Container) -> Prepared:
    """Check all changes. Raises: ContainerError, also if the container is not a view of `/`."""
    if container.base != ("/",):
        why = f"it is a view of {':'.join(container.base)}, not of this machine's /"
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
    """Whether an earlier apply has begun to apply changes, or has applied all."""
    return journals.is_begun(container.journal)


def put_in_place(prepared: Prepared, *, force: bool, progress: Progress) -> Applied:
    """Apply the prepared changes. Raises: ContainerError, which lists the operations that are done and not done."""
    container, owners = prepared.container, _owners(prepared.container)
    prepared.refuse(force=force)
    carry_on(container, force=False, progress=progress)  # removes files that a killed apply has built
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
    """Complete an interrupted apply; None if none was interrupted. Raises: ContainerError."""
    try:
        return applying.resume(container.journal, force=force, progress=progress)
    except PartlyAppliedError as error:
        raise _partly(container, error) from error
    except BlockingIOError:
        raise ContainerError("apply", container.name, "another process is applying it") from None
    except OSError as error:
        raise ContainerError.of("apply", error) from error


def _partly(container: Container, error: PartlyAppliedError) -> ContainerError:
    stopped = error.left[0]
    done = [f"done: {operation.kind} /{operation.path}" for operation in error.done if operation.says]
    left = [f"not done: {operation.kind} /{operation.path}" for operation in error.left if operation.says]
    hint = f"unionfs apply {container.name} applies the rest"
    if not error.error.errno:
        hint += "; with --force it replaces the current files"
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
