"""Failures of containers: the attempted action, the path or name, the reason, and a hint for the user.

Does not print or exit: `unionfs.cli.errors` makes lines and exit codes of these failures.
"""

from __future__ import annotations

import os


class ContainerError(Exception):
    """`what` failed on `subject` (a path, a container's name) because of `why`; `hint` says what to do, in lines.

    `subject` may be empty; `what`, too, if `why` is the whole message. `status`: the exit code of this failure
    (docker's 126 and 127; those of `layers` for images); 0: the usual one of the verb.
    """

    def __init__(self, what: str, subject: str, why: str, *, hint: str = "", status: int = 0) -> None:
        super().__init__(what, subject, why, hint, status)
        self.what = what
        self.subject = subject
        self.why = why
        self.hint = hint
        self.status = status

    @classmethod
    def of(cls, what: str, error: OSError, *, subject: str = "", hint: str = "") -> ContainerError:
        """Make the failure of `what` from `error`, on the path that `error` names unless `subject` is given."""
        named = "" if error.filename is None else os.fsdecode(error.filename)
        return cls(what, subject or named, error.strerror or str(error), hint=hint)

    def __str__(self) -> str:
        return ": ".join(filter(None, (f"{self.what} failed" if self.what else "", self.subject, self.why)))


class NoSuchContainerError(ContainerError):
    """There is no container of this name or id (any more)."""

    def __init__(self, reference: str, *, hint: str = "") -> None:
        super().__init__("", "", f"no such container: {reference}", hint=hint)


class NotRunningError(ContainerError):
    """The container is not running (any more)."""


class AlreadyRunningError(ContainerError):
    """The container is running, or another process prepares or changes it."""

    def __init__(self, name: str) -> None:
        super().__init__("", "", f"already running: {name}", hint=f"unionfs stop {name} ends it")


class BrokenRecordError(ContainerError):
    """The record of a container cannot be read."""

    def __init__(self, container_id: str, path: str, why: str) -> None:
        hint = f"unionfs rm --force {container_id[:12]} removes this container and its changes"
        super().__init__("reading the record", path, why, hint=hint)
        self.container_id = container_id
