"""How the launcher says that a container could not be run. Knows no terminal: who calls it prints."""

from __future__ import annotations

import os
from typing import Final

OWN_FAILURE: Final = 125
"""The launcher failed, not the command (docker's convention, as the two below)."""
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127

SEE_DOCTOR: Final = "`unionfs doctor` tells what this machine lacks and what mends it"


class LaunchError(Exception):
    """`what` failed on `path` because of `why`; `hint` says what to do, `status` how to exit.

    `path` may be empty; so may `what`, when `why` is a whole sentence from somebody who knows better.
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
        """The failure of `what` that `error` describes, on the path it names unless `path` is given."""
        named = "" if error.filename is None else os.fsdecode(error.filename)
        return cls(what, path or named, error.strerror or str(error), hint=hint, status=status)

    def __str__(self) -> str:
        return ": ".join(part for part in (f"{self.what} failed" if self.what else "", self.path, self.why) if part)
