"""The branches of a union as descriptors and values, with which another process goes on: nothing is opened by path.

A daemon hands them to its successor of another version (unionfs.daemon_state). What was found out when the branches
were opened is handed over too: paths have other meanings in the mount namespace of a daemon, and tests write.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import NamedTuple

from unionfs.core.branch import Branch
from unionfs.core.fds import FdCache
from unionfs.core.options import OptionError, Options
from unionfs.core.overrides import Overrides
from unionfs.core.staging import OpenStaging, Staging


class OpenBranch(NamedTuple):
    """One branch. Immutable."""

    fd: int  # O_PATH, of the root directory
    hidden: tuple[tuple[bytes, ...], ...]  # the path components of directories that are shown as empty
    overrides: tuple[tuple[str, ...], int, bool] | None  # attributes, least mode, stands_in (core.overrides)


class OpenBranches(NamedTuple):
    """All branches of a union. Immutable."""

    lowers: tuple[OpenBranch, ...]  # top first
    upper: OpenBranch | None
    staging: OpenStaging | None  # not None with an upper

    def descriptors(self) -> list[int]:
        """Return all descriptors."""
        fds = [branch.fd for branch in self.lowers]
        if self.upper is not None and self.staging is not None:
            fds += [self.upper.fd, self.staging.root_fd, self.staging.live_fd]
        return fds


def branches(lowers: Iterable[Branch], upper: Branch | None, staging: OpenStaging | None) -> OpenBranches:
    """Describe the branches. The descriptors stay the caller's."""
    return OpenBranches(tuple(map(_describe, lowers)), None if upper is None else _describe(upper), staging)


def _describe(branch: Branch) -> OpenBranch:
    kept = branch.overrides
    values = None if kept is None else (kept.xattrs, kept.floor, kept.stands_in)
    return OpenBranch(branch.root.fd(), tuple(branch.hidden_places()), values)


def take(options: Options, given: OpenBranches, fds: FdCache) -> tuple[list[Branch], Branch | None, Staging | None]:
    """Make the branches: the lowers, the upper, the work directory. Raises: OptionError."""
    upper = staging = None
    try:
        paths = zip(options.lowers, given.lowers, strict=True)
        lowers = [_take(path, there, fds, writable=False) for path, there in paths]
        if options.upper is not None and options.work is not None and given.upper is not None:
            upper = _take(options.upper, given.upper, fds, writable=True)
            staging = Staging(options.work, fds, given.staging)
            staging.branch.overrides = upper.overrides
    except OSError as exc:
        raise OptionError(exc.errno or errno.EIO, f"a branch cannot be used any more: {exc.strerror}") from None
    return lowers, upper, staging


def _take(path: str, given: OpenBranch, fds: FdCache, *, writable: bool) -> Branch:
    branch = Branch(path, fds, writable=writable, fd=given.fd)
    for components in given.hidden:
        branch.hide(components)
    if given.overrides is not None:
        xattrs, floor, stands_in = given.overrides
        branch.overrides = Overrides(xattrs, floor)
        branch.overrides.stands_in = stands_in
    return branch


def to_values(given: OpenBranches) -> dict[str, object]:
    """Return the same as plain values (marshal)."""
    upper, staging = given.upper, given.staging
    return {
        "lowers": [branch._asdict() for branch in given.lowers],
        "upper": None if upper is None else upper._asdict(),
        "staging": None if staging is None else staging._asdict(),
    }


def from_values(values: dict[str, object]) -> OpenBranches:
    """Undo `to_values`, of this or an earlier version. Raises: TypeError, KeyError for other values."""
    lowers, upper, staging = values["lowers"], values["upper"], values["staging"]
    if not isinstance(lowers, list):
        raise TypeError("lowers")
    return OpenBranches(
        tuple(OpenBranch(**branch) for branch in lowers),
        OpenBranch(**upper) if isinstance(upper, dict) else None,
        OpenStaging(**staging) if isinstance(staging, dict) else None,
    )
