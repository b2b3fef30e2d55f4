"""The interface of applying changes: check, apply, resume or undo an interrupted apply.

    plan = check.plan(...)          check everything, change nothing
    apply(plan, ...)                build new files, write the plan, execute it
    resume(journal_path)            continue after a crash or a failure
    take_back(journal_path)         remove files that were built but not renamed

An upper can be applied once: afterwards the lower has changed, and the marks of the upper (for example that a directory
was moved) are not valid any more. So the journal stays, as a record of the apply, until the upper is removed.

Invariant: at every moment each path of the target has its whole old or its whole new content. (A directory
that stays gets its attributes one after the other, after all changes in it.)
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
    """Building new files failed; the target is unchanged. `error` is the reason."""

    def __init__(self, path: str, error: OSError) -> None:
        super().__init__(path, error)
        self.path = path
        self.error = error


class PartlyAppliedError(Exception):
    """Executing the plan stopped at one path. `done` and `left` are the operations done and not done, in order."""

    def __init__(self, done: list[Operation], left: list[Operation], error: OSError) -> None:
        super().__init__(done, left, error)
        self.done = done
        self.left = left
        self.error = error


@dataclass(frozen=True, slots=True)
class Applied:
    """The operations done. `not_removed`: old files, already renamed away, that could not be removed."""

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
    """Apply a plan. The caller must have handled its objections.

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
    """Resume an interrupted apply. None if it had renamed nothing yet: then its new files are removed.

    Raises: PartlyAppliedError; BlockingIOError while another process applies it.
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
    """Remove files that an interrupted apply built but did not rename. Renamed files stay."""
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
                not_removed = commit.clear()  # removing the old files changes the directories' times
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
    """Sync the new files to the device before they replace files that are on the device."""
    try:
        fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        files.syncfs(fd)
    finally:
        os.close(fd)
