"""The values and exceptions that the snapshotter's modules share.

Terms are containerd's (its documentation, "Snapshotters"): an *active* snapshot is writable and can be committed, a
*view* is read-only, a *committed* one can be a parent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    """The kind of a snapshot. The numbers are those of the protocol and of the database."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3

    @property
    def word(self) -> str:
        """The kind as filters and messages write it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Info:
    """The description of a snapshot. Immutable."""

    name: str
    parent: str  # empty: none
    kind: Kind
    created_ns: int
    updated_ns: int
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Usage:
    """The disk usage of a snapshot without its parents. Immutable."""

    size: int  # bytes on the disk
    inodes: int


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount for containerd to make. Immutable."""

    type: str
    source: str
    options: tuple[str, ...]


class SnapshotError(Exception):
    """A request failed; the message says why. `code` is the name of the gRPC status."""

    code = "UNKNOWN"


class InvalidArgumentError(SnapshotError):
    code = "INVALID_ARGUMENT"


class NotFoundError(SnapshotError):
    code = "NOT_FOUND"


class AlreadyExistsError(SnapshotError):
    code = "ALREADY_EXISTS"


class FailedPreconditionError(SnapshotError):
    code = "FAILED_PRECONDITION"
