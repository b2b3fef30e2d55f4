"""Merge a fork into the container that it was forked from, or into another one on the same branches.

The changes of both since their common branches are compared (changes.merging). If the fork's branches hide nothing that
the parent has changed, or only files that the fork's files replace, they become lowers of the parent, on top of its
own: no file is copied. If they hide attributes of directories, a further branch on top of them has these as the parent
has them. Otherwise, or for some paths only, the wanted changes are made in a new branch (containers.replay).

The merge happens when the parent's record is written, once, by a rename: before that the parent is unchanged,
afterwards it has all changes. If the command is killed after that, the same command completes the merge. A parent that
runs is paused meanwhile, and shows the changes at once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from unionfs.changes import compare, listing
from unionfs.changes import record as change_records
from unionfs.changes.listing import Change, Changes
from unionfs.changes.merging import Conflict, above, concerned, conflicts, hidden, is_passage
from unionfs.changes.merging import own as without_passages
from unionfs.changes.objects import Branches, BranchPath, Object
from unionfs.containers import diff, freeze, pause
from unionfs.containers.branches import ask_daemon
from unionfs.containers.complete import complete_upper
from unionfs.containers.errors import ContainerError
from unionfs.containers.ids import id_map_of, shown_ids
from unionfs.containers.record import Container
from unionfs.containers.remove import remove
from unionfs.containers.rootfs import mountpoints, note_mountpoints, union_options
from unionfs.containers.store import ContainerStore
from unionfs.control import branch_client
from unionfs.control.branch_client import BranchError
from unionfs.core import frozen_names
from unionfs.core.options import OptionError
from unionfs.drivers.names import FUSE
from unionfs.launcher import userns
from unionfs.trees.remove import remove_path

_WHAT: Final = "merge"
_STAGING: Final = "merging"

REFUSE: Final = "refuse"
THEIRS: Final = "theirs"
OURS: Final = "ours"
"""The choices for changes that conflict: merge nothing, take the fork's, keep the parent's."""


class ConflictError(ContainerError):
    """Nothing was merged, since changes conflict."""

    def __init__(self, fork: Container, parent: Container, found: list[Conflict]) -> None:
        hint = f"--theirs takes those of {fork.name}, --ours keeps those of {parent.name}, paths select some"
        why = f"{len(found)} of its changes conflict with those of {parent.name} (nothing was changed)"
        super().__init__(_WHAT, fork.name, why, hint=hint)
        self.conflicts = found


class Merged(NamedTuple):
    """The result of a merge."""

    changes: list[Change]  # that the parent has now
    conflicts: list[Conflict]  # decided by `choice`
    copied: bool  # whether the changes were copied; else the parent has the fork's branches
    fork_stays: bool


def parent_of(fork: Container) -> Container:
    """The container that it was forked from. Raises: ContainerError."""
    for one in ContainerStore(fork.root).list():
        if one.id == fork.parent:
            return one
    why = "the container that it was forked from is gone" if fork.parent else "it was not forked"
    raise ContainerError(_WHAT, fork.name, why, hint="--into CONTAINER names another one on the same branches")


def merge(
    fork: Container,
    parent: Container,
    *,
    choice: str = REFUSE,
    paths: Sequence[bytes] = (),
    keep: bool = False,
    dry_run: bool = False,
    warn: freeze.Warn = lambda _: None,
) -> Merged:
    """Merge the fork's changes, all or those at and below `paths` (absolute), into the parent. A fork that was merged
    as a whole is removed unless `keep`. Raises: ConflictError, ContainerError, LaunchError, OSError."""
    store = ContainerStore(fork.root)
    stays = keep or dry_run or bool(paths)
    with contextlib.ExitStack() as locks:
        for one in sorted({fork.id, parent.id}):  # in one order, or two merges could wait for each other
            locks.enter_context(store.changing(store.load(one)))
        fork, parent = store.load(fork.id), store.load(parent.id)
        _check(fork, parent)
        with store.claimed(fork):
            fork = _frozen(fork, dry_run=dry_run)
            with _still(store, parent, warn, dry_run=dry_run) as target:
                given_up = set() if stays else store.only_of(fork)
                done = _Merge(fork, target, choice, paths, given_up, dry_run=dry_run).run()
            if not stays:
                store.adopt(fork, parent.id)
                remove(store, fork, mine=True)
    return done._replace(fork_stays=stays)


def _check(fork: Container, parent: Container) -> None:
    if fork.id == parent.id:
        raise ContainerError(_WHAT, fork.name, "a container cannot be merged into itself")
    if fork.is_running():
        hint = f"unionfs stop {fork.name} ends it"
        raise ContainerError(_WHAT, fork.name, "it is running", hint=hint)
    for one in (fork, parent):
        freeze.check(one, _WHAT)
    if _common(fork, parent) == 0 or fork.facts.uid_map != parent.facts.uid_map:
        raise ContainerError(_WHAT, fork.name, f"it is not on the same branches as {parent.name}")


def _common(fork: Container, parent: Container) -> int:
    """The number of lowers, the last of both, that both have."""
    pairs = zip(reversed(fork.config.rootfs.lowers), reversed(parent.config.rootfs.lowers), strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), _shorter(fork, parent))


def _shorter(fork: Container, parent: Container) -> int:
    return min(len(fork.config.rootfs.lowers), len(parent.config.rootfs.lowers))


def _frozen(container: Container, *, dry_run: bool) -> Container:
    """The record of a claimed container whose changes are all in frozen branches, except with `dry_run`."""
    if dry_run:
        complete_upper(container, _WHAT)
    elif freeze.has_changes(container):
        return freeze.freeze_claimed(container)
    return container


@contextlib.contextmanager
def _still(store: ContainerStore, parent: Container, warn: freeze.Warn, *, dry_run: bool) -> Iterator[Container]:
    """Context in which the parent does not change. Its changes are all in frozen branches, except with `dry_run`."""
    if parent.status == "running":
        with pause.paused(parent, _WHAT, stopped=True):
            yield freeze.freeze_held(parent, warn=warn) if freeze.has_changes(parent) and not dry_run else parent
        return
    with store.claimed(parent):
        yield _frozen(parent, dry_run=dry_run)


class _Told(NamedTuple):
    """The result of the work on the files."""

    changes: Sequence[Change] = ()
    conflicts: Sequence[Conflict] = ()
    copied: bool = False
    why: str = ""  # it was not possible

    def dump(self) -> bytes:
        """As a line of JSON, and the changes."""
        first = {"conflicts": [_plain(one) for one in self.conflicts], "copied": self.copied, "why": self.why}
        return json.dumps(first).encode() + b"\n" + change_records.dump(Changes(list(self.changes)))

    @staticmethod
    def load(data: bytes) -> _Told:
        first, _, rest = data.partition(b"\n")
        told = json.loads(first)
        found = [Conflict(*_conflict(row)) for row in told["conflicts"]]
        return _Told(change_records.load(rest).changes, found, told["copied"], told["why"])


class _Merge:
    """One merge. The fork and the parent do not change meanwhile."""

    def __init__(
        self,
        fork: Container,
        parent: Container,
        choice: str,
        paths: Sequence[bytes],
        given_up: Collection[str],
        *,
        dry_run: bool,
    ) -> None:
        """`given_up`: branches of the fork that are removed after the merge."""
        self.fork: Final = fork
        self.parent: Final = parent
        self.choice: Final = choice
        self.paths: Final = paths
        self.given_up: Final = given_up
        self.dry_run: Final = dry_run
        self.ids: Final = shown_ids(parent)
        common = _common(fork, parent)
        lowers = fork.config.rootfs.lowers
        above_fork = lowers[: len(lowers) - common]
        above_parent = parent.config.rootfs.lowers[: len(parent.config.rootfs.lowers) - common]
        # Not a branch that `unionfs branch` has added: changes of the parent below it would count as unchanged.
        self.can_share: Final = len(above_fork) <= len(fork.frozen)
        self.above_fork: Final = (fork.upper, *above_fork) if dry_run else above_fork
        self.above_parent: Final = (parent.upper, *above_parent) if dry_run else above_parent
        self.base: Final = lowers[len(above_fork) :]
        self.missing: Final = [path for path in self.above_fork if path not in self.above_parent]

    def run(self) -> Merged:
        if not self.missing:  # nothing was changed, or an earlier merge was killed after it had been recorded
            self.show()
            return Merged([], [], copied=False, fork_stays=True)
        staging = os.path.join(self.parent.directory, _STAGING)
        try:
            told = self.worked(staging)
        except OSError as error:
            self.clear(staging)
            raise ContainerError.of(_WHAT, error) from error
        if told.why:
            self.clear(staging)
            raise ContainerError(_WHAT, self.fork.name, told.why)
        if told.conflicts and self.choice == REFUSE:
            raise ConflictError(self.fork, self.parent, list(told.conflicts))
        merged = Merged(list(told.changes), list(told.conflicts), copied=told.copied, fork_stays=True)
        if not self.dry_run and (merged.changes or not told.copied):
            if not told.copied:
                note_mountpoints(self.parent, mountpoints(self.fork))
            made = [self.place(staging)] if os.path.lexists(staging) else []
            self.record(made if told.copied else [*made, *self.missing])
            self.show()
        self.clear(staging)
        return merged

    def worked(self, staging: str) -> _Told:
        """As `work`, in a process with the ids of the containers if this one does not have them."""
        id_map = id_map_of(self.parent)
        if id_map is None:
            return self.work(staging)
        return _Told.load(userns.call(id_map, lambda: self.work(staging).dump()))

    def clear(self, staging: str) -> None:
        def body() -> bytes:
            remove_path(staging)
            return b""

        if os.path.lexists(staging):
            userns.call(id_map_of(self.parent), body)

    # -- in a process with the ids of the containers -----------------------------------------------------------------

    def work(self, staging: str) -> _Told:
        """Compare, and make a branch of the changes if it is needed."""
        if os.path.lexists(staging):  # of a merge that was killed
            remove_path(staging)
        with self.opened(self.above_fork) as fork:
            theirs = listing.changes(fork)
            theirs.changes = listing.without(theirs.changes, mountpoints(self.fork))
            with self.opened(self.above_parent) as parent:
                ours = listing.changes(parent, within=concerned(fork)).changes if self.above_parent else []
            with self.opened((*self.above_fork, *self.above_parent)) as both:
                wanted = self.selected(theirs.changes)
                found = conflicts(wanted, ours, self.equality(both))
            if missing := [path for path in self.paths if not any(_is_at(one.path, path) for one in theirs.changes)]:
                why = f"it has changed nothing at or below {os.fsdecode(missing[0])}"
                return _Told(why=why)
            if found and self.choice == REFUSE:
                return _Told(conflicts=found)
            if found and self.choice == OURS:
                wanted = _outside(wanted, {one.path for one in found})
            is_whole = not self.paths and (not found or self.choice == THEIRS)
            root = any(one.path == b"/" for one in theirs.changes)
            again = hidden(fork, theirs.changes, ours) if is_whole and not root and self.can_share else None
            copied = again is None
            why = ""
            if copied and not self.dry_run:
                why = self.copy(staging, fork, theirs, wanted, {change.path for change in ours})
            elif again and not self.dry_run:
                with self.opened(self.above_parent) as parent:
                    why = self.repeat(staging, parent, again)
            if why:
                return _Told(why=why)
        return _Told(without_passages(wanted), found, copied)

    def opened(self, above_base: Sequence[str]) -> Branches:
        """The branches above the base, all of which hold changes, and the base."""
        first, *others = above_base or self.base
        facts = self.parent.facts
        lowers = (*others, *self.base) if above_base else others
        return Branches(
            first,
            lowers,
            ids=self.ids,
            hidden=facts.hidden,
            skip_unreadable=facts.skip_unreadable,
            has_upper=bool(above_base),
            frozen=len(others) if above_base else 0,
        )

    def equality(self, both: Branches) -> Callable[[Object, Object], bool]:
        """Whether two objects are equal but for times. `both`: the fork's own branches, then the parent's, the base."""
        own_fork, own_parent = len(self.above_fork), len(self.above_parent)

        def equal(new: Object, there: Object) -> bool:
            one = _moved(new, own_fork, own_parent)
            other = there._replace(
                place=BranchPath(there.place.branch + own_fork, there.place.rel),
                data=BranchPath(there.data.branch + own_fork, there.data.rel),
            )
            return not {*compare.differences(both, one, other)} - {compare.MTIME}

        return equal

    def selected(self, changes: list[Change]) -> list[Change]:
        """The changes at and below the wanted paths, and the directories that lead to them."""
        if not self.paths:
            return changes
        return [
            one
            for one in changes
            if any(_is_at(one.path, path) for path in self.paths)
            or (is_passage(one) and any(one.path in above(path) for path in self.paths))
        ]

    def copy(
        self, staging: str, fork: Branches, theirs: Changes, wanted: list[Change], changed: Collection[bytes]
    ) -> str:
        """Make the changes in a new branch. `changed`: paths that the parent has changed. Returns why it is not
        possible, or ""."""
        given_up = {at for at, path in enumerate(self.above_fork) if path in self.given_up}
        return self.replay(staging, (), fork, wanted, theirs.unchanged_links, given_up, changed)

    def repeat(self, staging: str, parent: Branches, again: list[Change]) -> str:
        """Make changes of the parent in a new branch, on top of the fork's branches. Returns as `copy`."""
        return self.replay(staging, self.missing, parent, again, {}, (), ())

    def replay(
        self,
        staging: str,
        lowers: Sequence[str],
        source: Branches,
        changes: list[Change],
        links: Mapping[tuple[int, int], bytes],
        given_up: Collection[int],
        changed: Collection[bytes],
    ) -> str:
        """Make changes in a new branch, on top of `lowers` and the parent's. `links`, `given_up` and `changed`: for
        containers.replay and branch_files. Returns as `copy`."""
        from unionfs.containers.branch_files import BranchFiles  # late: these import most of the core
        from unionfs.containers.replay import replay
        from unionfs.core.union import Union

        if len(self.parent.facts.uid_map) == 1 and self.parent.facts.uid_map[0].length == 1:
            return "with one id only all changes of a fork can be merged, and only without conflicts"
        os.mkdir(staging, 0o700)
        for name in ("upper", "work"):
            os.mkdir(os.path.join(staging, name), 0o755)
        try:
            options = union_options(self.parent, (*lowers, *self.parent.branches), staging, FUSE)
            union = Union(options._replace(keeps_umask=True))
        except OptionError as error:
            return str(error)
        try:
            new_files = BranchFiles(os.path.join(staging, "upper"), source, given_up, changed)
            replay(union, source, changes, links, new_files)
        finally:
            union.close()
        frozen_names.record(os.path.join(staging, "upper"))
        return ""

    # -- the result --------------------------------------------------------------------------------------------------

    def place(self, staging: str) -> str:
        """Give the new branch its name beside the parent's upper. Returns its path."""
        number = 1
        while os.path.lexists(path := os.path.join(self.parent.directory, f"upper.m{number}")):
            number += 1
        os.rename(os.path.join(staging, "upper"), path)
        return path

    def record(self, new: list[str]) -> None:
        ContainerStore(self.parent.root).set_lowers(self.parent, (*new, *self.parent.config.rootfs.lowers))
        diff.forget_list(self.parent)

    def show(self) -> None:
        """Let a parent that runs show the lowers of its record."""
        current = ContainerStore(self.parent.root).load(self.parent.id)
        if current.status != "running":
            return
        wanted = current.config.rootfs.lowers

        def ask(union: branch_client.Served, _: str) -> None:
            shown = {os.path.realpath(line.path) for line in branch_client.listed(union)}
            known = next((at for at, path in enumerate(wanted) if os.path.realpath(path) in shown), None)
            if known is None:
                raise BranchError("its union has none of its recorded branches")
            for path in reversed(wanted[:known]):
                branch_client.add(union, path, force=True)

        try:
            ask_daemon(self.parent, ask, _WHAT)
        except BranchError as error:
            why = f"the changes are recorded, and show when {self.parent.name} is started again: {error}"
            raise ContainerError(_WHAT, self.fork.name, why) from error


def _outside(changes: list[Change], left: set[bytes]) -> list[Change]:
    """The changes neither at nor below any of some paths."""

    @functools.cache
    def is_left(directory: bytes) -> bool:
        return directory in left or not left.isdisjoint(above(directory))

    return [one for one in changes if one.path not in left and not is_left(one.path.rpartition(b"/")[0])]


def _is_at(path: bytes, top: bytes) -> bool:
    """Whether a path is `top` or below it."""
    return path == top or path.startswith(top.rstrip(b"/") + b"/")


def _moved(new: Object, own_fork: int, own_parent: int) -> Object:
    """The object with the places that it has among the branches of both."""

    def place(at: BranchPath) -> BranchPath:
        return at if at.branch < own_fork else BranchPath(at.branch + own_parent, at.rel)

    return new._replace(place=place(new.place), data=place(new.data))


def _plain(one: Conflict) -> list[str]:
    return [os.fsdecode(value) if isinstance(value, bytes) else value for value in one]


def _conflict(row: list[str]) -> tuple[bytes, str, bytes, str]:
    path, fork, parent_path, parent = row
    return os.fsencode(path), fork, os.fsencode(parent_path), parent
