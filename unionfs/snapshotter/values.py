"""What the snapshotter's rooms pass on to one another, and how they refuse.

Words as containerd has them (its documentation, "Snapshotters"): *active* is writable and will be committed, a *view*
is only looked at, *committed* may be a parent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    """Numbers as in the protocol and in the database."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3

    @property
    def word(self) -> str:
        """As filters and messages have it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Info:
    """What is told of a snapshot. Immutable."""

    name: str
    parent: str  # empty: none
    kind: Kind
    created_ns: int
    updated_ns: int
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot takes beyond its parents. Immutable."""

    size: int  # bytes on the disk
    inodes: int


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount for containerd to make. Immutable."""

    type: str
    source: str
    options: tuple[str, ...]


class SnapshotError(Exception):
    """A request cannot be met, and why. `code` is the name of the gRPC status."""

    code = "UNKNOWN"


class InvalidArgumentError(SnapshotError):
    code = "INVALID_ARGUMENT"


class NotFoundError(SnapshotError):
    code = "NOT_FOUND"


class AlreadyExistsError(SnapshotError):
    code = "ALREADY_EXISTS"


class FailedPreconditionError(SnapshotError):
    code = "FAILED_PRECONDITION"
