"""The branches of a union as descriptors and values, with which another process continues it: nothing is opened by
path.

A daemon hands them to its successor of another version (unionfs.daemon.state), together with the facts that were found
out when the branches were opened: paths have other meanings in the mount namespace of a daemon, and some of these tests
write to the branches.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any, NamedTuple

from unionfs.core.branch import Branch
from unionfs.core.fds import FdCache, FileFd
from unionfs.core.inodes import Inodes, Numbering
from unionfs.core.options import OptionError, Options
from unionfs.core.overrides import Overrides
from unionfs.core.staging import OpenStaging, Staging


class OpenBranch(NamedTuple):
    """One branch. Immutable."""

    fd: int  # O_PATH, of the root directory
    hidden: tuple[tuple[bytes, ...], ...]  # the path components of directories that are shown as empty
    overrides: tuple[tuple[str, ...], int, bool] | None  # attributes, least mode, stands_in (core.overrides)
    path: str = ""  # for messages
    number: int = -1  # Branch.number of a lower; -1: its position
    was_upper: bool = False
    private_fd: int = -1  # a private copy of its mount, under passthrough (core.backing); -1: there is none
    has_xattrs: bool = True  # Branch.has_xattrs


class OpenChange(NamedTuple):
    """A change of the branches that is about to be made (core.unfinished_change). Immutable."""

    order: tuple[int, ...] = ()  # the lowers from then on, top first, by Branch.number; -1: `added`
    added: OpenBranch | None = None
    freeze: tuple[bytes, bytes, int] | None = None
    """A freeze instead: the upper's name in the directory above it, the name that it gets, and the inode number of the
    empty directory that takes its place."""


class OpenBranches(NamedTuple):
    """All branches of a union. Immutable."""

    lowers: tuple[OpenBranch, ...]  # top first
    upper: OpenBranch | None
    staging: OpenStaging | None  # not None with an upper
    others: tuple[OpenBranch, ...] = ()  # former lowers that are still in use
    numbering: Numbering | None = None
    is_restacked: bool = False  # whether the lowers have changed since the mount
    viewed: tuple[int, ...] = ()  # the lowers of its view, top first, by Branch.number; none: there was no view
    change: OpenChange | None = None

    def with_descriptors(self, descriptors: list[int]) -> OpenBranches:
        """Return the same branches with other descriptors, in the order of `descriptors`."""
        fds = iter(descriptors)

        def with_next(branch: OpenBranch) -> OpenBranch:
            fd = next(fds)
            return branch._replace(fd=fd, private_fd=next(fds) if branch.private_fd >= 0 else -1)

        lowers, others = (tuple(map(with_next, some)) for some in (self.lowers, self.others))
        upper, staging = self.upper, self.staging
        if upper is not None and staging is not None:
            upper = with_next(upper)
            staging = staging._replace(root_fd=next(fds), live_fd=next(fds))
        change = self.change
        if change is not None and change.added is not None:
            change = change._replace(added=with_next(change.added))
        return self._replace(lowers=lowers, others=others, upper=upper, staging=staging, change=change)

    def descriptors(self) -> list[int]:
        """Return all descriptors."""
        uppers = [self.upper] if self.upper is not None else []
        fds = [fd for one in (*self.lowers, *self.others, *uppers) for fd in (one.fd, one.private_fd) if fd >= 0]
        if self.staging is not None:
            fds += [self.staging.root_fd, self.staging.live_fd]
        added = self.change.added if self.change is not None else None
        if added is not None:
            fds += [fd for fd in (added.fd, added.private_fd) if fd >= 0]
        return fds


class Change:
    """A change of the branches that is about to be made."""

    def __init__(self, lowers: list[Branch], freeze: tuple[bytes, bytes, int] | None = None) -> None:
        self.lowers = lowers  # immutable: those from then on, top first; none: it is a freeze
        self.freeze = freeze  # immutable: see OpenChange


def branches(
    lowers: list[Branch],
    upper: Branch | None,
    staging: OpenStaging | None,
    opened: Iterable[Branch],
    inodes: Inodes,
    *,
    is_restacked: bool,
    viewed: list[Branch],
    change: Change | None,
) -> OpenBranches:
    """Describe the branches. `opened`: all that have been lowers. The descriptors stay the caller's."""
    opened = list(opened)
    others = [branch for branch in opened if branch not in lowers and branch.root.held is not None]
    return OpenBranches(
        tuple(map(_describe, lowers)),
        None if upper is None else _describe(upper),
        staging,
        tuple(map(_describe, others)),
        inodes.numbering(),
        is_restacked,
        tuple([branch.number for branch in viewed]),
        None if change is None else _describe_change(change, opened),
    )


def _describe_change(change: Change, opened: list[Branch]) -> OpenChange:
    order = tuple([branch.number if branch in opened else -1 for branch in change.lowers])
    added = next((_describe(branch) for branch in change.lowers if branch not in opened), None)
    return OpenChange(order, added, change.freeze)


def _describe(branch: Branch) -> OpenBranch:
    kept = branch.overrides
    values = None if kept is None else (kept.xattrs, kept.floor, kept.stands_in)
    fd, hidden = branch.root.fd(), tuple(branch.hidden_places())
    private_fd = -1 if branch.private is None else branch.private.fd
    return OpenBranch(fd, hidden, values, branch.path, branch.number, branch.was_upper, private_fd, branch.has_xattrs)


class TakenBranches(NamedTuple):
    """The branches as objects, made from OpenBranches. Immutable."""

    lowers: list[Branch]  # top first
    opened: list[Branch]  # all lowers so far, by Branch.number; one that is closed is represented by another
    upper: Branch | None
    staging: Staging | None
    viewed: list[Branch]  # the lowers of its view, top first
    change: Change | None


def take(options: Options, given: OpenBranches, fds: FdCache) -> TakenBranches:
    """Make the branches. Raises: OptionError."""
    upper = staging = None
    try:
        paths = zip(options.lowers, given.lowers, strict=True)
        lowers = [_take(path, there, fds, writable=False) for path, there in paths]
        others = [_take(there.path, there, fds, writable=False) for there in given.others]
        if options.upper is not None and options.work is not None and given.upper is not None:
            upper = _take(options.upper, given.upper, fds, writable=True)
            staging = Staging(options.work, fds, upper, given.staging)
            staging.branch.overrides = upper.overrides
        added = given.change.added if given.change is not None else None
        new = None if added is None else _take(added.path, added, fds, writable=False)
    except OSError as exc:
        raise OptionError(exc.errno or errno.EIO, f"a branch cannot be used any more: {exc.strerror}") from None
    for position, branch in enumerate(lowers):
        branch.number = position if branch.number < 0 else branch.number
    by_number = {branch.number: branch for branch in (*lowers, *others)}
    opened = [by_number.get(number, lowers[-1]) for number in range(max(by_number) + 1)]
    change = None
    if given.change is not None:
        stack = [opened[number] if number >= 0 else new for number in given.change.order]
        change = Change([branch for branch in stack if branch is not None], given.change.freeze)
    return TakenBranches(lowers, opened, upper, staging, [opened[number] for number in given.viewed], change)


def _take(path: str, given: OpenBranch, fds: FdCache, *, writable: bool) -> Branch:
    branch = Branch(path, fds, writable=writable, fd=given.fd, has_xattrs=given.has_xattrs)
    for components in given.hidden:
        branch.hide(components)
    branch.number, branch.was_upper = given.number, given.was_upper
    if given.private_fd >= 0:
        branch.private = FileFd(given.private_fd)
    if given.overrides is not None:
        xattrs, floor, stands_in = given.overrides
        branch.overrides = Overrides(xattrs, floor)
        branch.overrides.stands_in = stands_in
    return branch


def to_values(given: OpenBranches) -> dict[str, object]:
    """Return the same as plain values (marshal)."""
    upper, staging, numbering = given.upper, given.staging, given.numbering
    return {
        "lowers": [branch._asdict() for branch in given.lowers],
        "upper": None if upper is None else upper._asdict(),
        "staging": None if staging is None else staging._asdict(),
        "others": [branch._asdict() for branch in given.others],
        "numbering": None if numbering is None else numbering._asdict(),
        "is_restacked": given.is_restacked,
        "viewed": list(given.viewed),
        "change": None if given.change is None else _change_to_values(given.change),
    }


def _change_to_values(change: OpenChange) -> dict[str, object]:
    return {**change._asdict(), "added": None if change.added is None else change.added._asdict()}


def _change_from_values(values: dict[str, Any]) -> OpenChange:
    added = values["added"]
    return OpenChange(**{**values, "added": None if added is None else OpenBranch(**added)})


def from_values(values: dict[str, object]) -> OpenBranches:
    """Undo `to_values`, of this or an earlier version. Raises: TypeError, KeyError for other values."""
    lowers, upper, staging = values["lowers"], values["upper"], values["staging"]
    others, numbering = values.get("others") or [], values.get("numbering")
    viewed, change = values.get("viewed"), values.get("change")
    if not isinstance(lowers, list) or not isinstance(others, list):
        raise TypeError("lowers")
    return OpenBranches(
        tuple(OpenBranch(**branch) for branch in lowers),
        OpenBranch(**upper) if isinstance(upper, dict) else None,
        OpenStaging(**staging) if isinstance(staging, dict) else None,
        tuple(OpenBranch(**branch) for branch in others),
        Numbering(**numbering) if isinstance(numbering, dict) else None,
        bool(values.get("is_restacked")),
        tuple(viewed) if isinstance(viewed, list) else (),
        _change_from_values(change) if isinstance(change, dict) else None,
    )
