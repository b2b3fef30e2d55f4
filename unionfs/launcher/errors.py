"""The launcher's exception, and the exit codes of docker's convention. Prints nothing: the command line does."""

from __future__ import annotations

import os
from typing import Final

OWN_FAILURE: Final = 125
"""Exit code: the launcher failed, not the command (docker's convention, as the two below)."""
NOT_EXECUTABLE: Final = 126
"""Exit code: the command cannot be executed."""
NOT_FOUND: Final = 127
"""Exit code: the command does not exist."""

SEE_DOCTOR: Final = "`unionfs doctor` lists what this machine lacks, with the command that installs or enables it"


class LaunchError(Exception):
    """The action `what` failed on `path` because of `why`; `hint` says what to do, `status` is the exit code.

    `path` may be empty. `what` may be empty if `why` is a complete sentence.
    """

    def __init__(self, what: str, path: str, why: str, *, hint: str = "", status: int = OWN_FAILURE) -> None:
        super().__init__(what, path, why, hint, status)
        self.what = what
        self.path = path
        self.why = why
        self.hint = hint
        self.status = status

    @classmethod
    def of(cls, what: str, error: OSError, *, path: str = "", hint: str = "", status: int = OWN_FAILURE) -> LaunchError:
        """Return the LaunchError for an OSError that ended the action `what`; `path` defaults to that of `error`."""
        named = "" if error.filename is None else os.fsdecode(error.filename)
        return cls(what, path or named, error.strerror or str(error), hint=hint, status=status)

    def __str__(self) -> str:
        return ": ".join(part for part in (f"{self.what} failed" if self.what else "", self.path, self.why) if part)
