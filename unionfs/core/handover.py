"""The branches of a union as descriptors and values, with which another process goes on: nothing is opened by path.

A daemon hands them to its successor of another version (unionfs.daemon.state). What was found out when the branches
were opened is handed over too: paths have other meanings in the mount namespace of a daemon, and tests write.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import NamedTuple

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


class OpenBranches(NamedTuple):
    """All branches of a union. Immutable."""

    lowers: tuple[OpenBranch, ...]  # top first
    upper: OpenBranch | None
    staging: OpenStaging | None  # not None with an upper
    others: tuple[OpenBranch, ...] = ()  # that have been lowers, and are still in use
    numbering: Numbering | None = None
    is_restacked: bool = False  # whether the lowers are others than at first

    def with_descriptors(self, descriptors: list[int]) -> OpenBranches:
        """Return the same with others, in the order of `descriptors`."""
        fds = iter(descriptors)

        def with_next(branch: OpenBranch) -> OpenBranch:
            fd = next(fds)
            return branch._replace(fd=fd, private_fd=next(fds) if branch.private_fd >= 0 else -1)

        lowers, others = (tuple(map(with_next, some)) for some in (self.lowers, self.others))
        upper, staging = self.upper, self.staging
        if upper is not None and staging is not None:
            upper = with_next(upper)
            staging = staging._replace(root_fd=next(fds), live_fd=next(fds))
        return self._replace(lowers=lowers, others=others, upper=upper, staging=staging)

    def descriptors(self) -> list[int]:
        """Return all descriptors."""
        uppers = [self.upper] if self.upper is not None else []
        fds = [fd for one in (*self.lowers, *self.others, *uppers) for fd in (one.fd, one.private_fd) if fd >= 0]
        if self.staging is not None:
            fds += [self.staging.root_fd, self.staging.live_fd]
        return fds


def branches(
    lowers: list[Branch],
    upper: Branch | None,
    staging: OpenStaging | None,
    opened: Iterable[Branch],
    inodes: Inodes,
    *,
    is_restacked: bool,
) -> OpenBranches:
    """Describe the branches. `opened`: all that have been lowers. The descriptors stay the caller's."""
    others = [branch for branch in opened if branch not in lowers and branch.root.held is not None]
    return OpenBranches(
        tuple(map(_describe, lowers)),
        None if upper is None else _describe(upper),
        staging,
        tuple(map(_describe, others)),
        inodes.numbering(),
        is_restacked,
    )


def _describe(branch: Branch) -> OpenBranch:
    kept = branch.overrides
    values = None if kept is None else (kept.xattrs, kept.floor, kept.stands_in)
    fd, hidden = branch.root.fd(), tuple(branch.hidden_places())
    private_fd = -1 if branch.private is None else branch.private.fd
    return OpenBranch(fd, hidden, values, branch.path, branch.number, branch.was_upper, private_fd)


class Taken(NamedTuple):
    """The branches, made. Immutable."""

    lowers: list[Branch]  # top first
    opened: list[Branch]  # all lowers so far, by Branch.number; one that is closed is represented by another
    upper: Branch | None
    staging: Staging | None


def take(options: Options, given: OpenBranches, fds: FdCache) -> Taken:
    """Make the branches. Raises: OptionError."""
    upper = staging = None
    try:
        paths = zip(options.lowers, given.lowers, strict=True)
        lowers = [_take(path, there, fds, writable=False) for path, there in paths]
        others = [_take(there.path, there, fds, writable=False) for there in given.others]
        if options.upper is not None and options.work is not None and given.upper is not None:
            upper = _take(options.upper, given.upper, fds, writable=True)
            staging = Staging(options.work, fds, given.staging)
            staging.branch.overrides = upper.overrides
    except OSError as exc:
        raise OptionError(exc.errno or errno.EIO, f"a branch cannot be used any more: {exc.strerror}") from None
    for position, branch in enumerate(lowers):
        branch.number = position if branch.number < 0 else branch.number
    by_number = {branch.number: branch for branch in (*lowers, *others)}
    opened = [by_number.get(number, lowers[-1]) for number in range(max(by_number) + 1)]
    return Taken(lowers, opened, upper, staging)


def _take(path: str, given: OpenBranch, fds: FdCache, *, writable: bool) -> Branch:
    branch = Branch(path, fds, writable=writable, fd=given.fd)
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
    }


def from_values(values: dict[str, object]) -> OpenBranches:
    """Undo `to_values`, of this or an earlier version. Raises: TypeError, KeyError for other values."""
    lowers, upper, staging = values["lowers"], values["upper"], values["staging"]
    others, numbering = values.get("others") or [], values.get("numbering")
    if not isinstance(lowers, list) or not isinstance(others, list):
        raise TypeError("lowers")
    return OpenBranches(
        tuple(OpenBranch(**branch) for branch in lowers),
        OpenBranch(**upper) if isinstance(upper, dict) else None,
        OpenStaging(**staging) if isinstance(staging, dict) else None,
        tuple(OpenBranch(**branch) for branch in others),
        Numbering(**numbering) if isinstance(numbering, dict) else None,
        bool(values.get("is_restacked")),
    )
