"""The door to putting changes in place: check first, then apply; carry on or take back what was interrupted.

    plan = check.plan(...)          look at everything, change nothing
    apply(plan, ...)                build aside, write the plan down, carry it out
    resume(journal_path)            carry on after a crash or a failure
    take_back(journal_path)         remove what was built and not put in place

An upper can be applied once: afterwards the lower is another one, and what the upper says of it (that a directory was
moved, say) is not true any more. So the journal stays, as the sign that it was done, until the upper is removed.

Invariant: at every moment each path of the target holds what it held before or what it shall hold, whole. (A directory
that stays gets its attributes one after the other, after all that is to be done in it.)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from unionfs.changes import journal as journals
from unionfs.changes.check import ApplyPlan
from unionfs.changes.commit import Commit
from unionfs.changes.journal import Journal, Operation
from unionfs.changes.objects import Branches
from unionfs.changes.owners import OwnerChoice
from unionfs.changes.stage import Progress, Stage
from unionfs.syscalls import files


class NotAppliedError(Exception):
    """Building aside failed; the target is as it was. `error` says why."""

    def __init__(self, path: str, error: OSError) -> None:
        super().__init__(path, error)
        self.path = path
        self.error = error


class PartlyAppliedError(Exception):
    """Carrying out the plan stopped at one path. What is done and what is not is in `done` and `left`, in order."""

    def __init__(self, done: list[Operation], left: list[Operation], error: OSError) -> None:
        super().__init__(done, left, error)
        self.done = done
        self.left = left
        self.error = error


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done. `not_removed` names old content, put aside already, that could not be removed."""

    done: list[Operation]
    not_removed: list[str]


def _quiet(_what: str, _path: bytes) -> None:
    pass


def apply(
    branches: Branches,
    plan: ApplyPlan,
    unchanged_links: dict[tuple[int, int], bytes],
    owners: OwnerChoice,
    target: str,
    journal_path: str,
    *,
    force: bool = False,
    progress: Progress = _quiet,
) -> Applied:
    """Put a plan in place. Objections in it are the caller's business.

    Raises: NotAppliedError, PartlyAppliedError; FileExistsError if there is a journal, see resume().
    """
    with journals.begin(journal_path, target) as journal:
        stage = Stage(branches, owners, journal, unchanged_links, progress)
        try:
            operations = stage.build(plan.actions)
            _sync(target)
            journal.set_plan(operations)
        except BaseException as error:
            _take_back(journal, progress)
            if isinstance(error, OSError):
                raise NotAppliedError(os.fsdecode(stage.at), error) from error
            raise
        return _commit(journal, force, progress)


def resume(journal_path: str, *, force: bool = False, progress: Progress = _quiet) -> Applied | None:
    """Carry on what was interrupted. None if nothing was put in place yet: what was only being built is taken back.

    Raises: PartlyAppliedError, BlockingIOError while another process is at it.
    """
    journal = journals.find(journal_path)
    if journal is None:
        return None
    with journal:
        if journal.plan is None:
            _take_back(journal, progress)
            return None
        if journal.done:
            return Applied(journal.plan, [])
        return _commit(journal, force, progress)


def take_back(journal_path: str, *, progress: Progress = _quiet) -> None:
    """Remove what an interrupted apply built and did not put in place. What it did put in place stays."""
    journal = journals.find(journal_path)
    if journal is None:
        return
    with journal:
        if journal.plan is None:
            _take_back(journal, progress)
            return
        if not journal.done:
            with _committing(journal, False, progress) as commit:
                commit.clear()
        journal.end()


def _commit(journal: Journal, force: bool, progress: Progress) -> Applied:
    assert journal.plan is not None
    done: list[Operation] = []
    not_removed: list[str] | None = None
    with _committing(journal, force, progress) as commit:
        for operation in journal.plan:
            if operation.for_directory and not_removed is None:
                not_removed = commit.clear()  # removing what was put aside changes the directories' times
            try:
                commit.carry_out(operation)
            except OSError as error:
                raise PartlyAppliedError(done, journal.plan[len(done) :], error) from error
            done.append(operation)
        if not_removed is None:
            not_removed = commit.clear()
    _sync(journal.target)
    journal.set_done()
    return Applied(done, not_removed)


def _take_back(journal: Journal, progress: Progress) -> None:
    with _committing(journal, False, progress) as commit:
        commit.take_back()
    journal.end()


@contextlib.contextmanager
def _committing(journal: Journal, force: bool, progress: Progress) -> Iterator[Commit]:
    commit = Commit(journal, force=force, progress=progress)
    try:
        yield commit
    finally:
        commit.close()


def _sync(target: str) -> None:
    """What was built must be on the device before it gets the name of something that is."""
    try:
        fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        files.syncfs(fd)
    finally:
        os.close(fd)
