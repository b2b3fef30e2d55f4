"""The failures of a command of the OCI runtime."""

from __future__ import annotations

import os


class OciError(Exception):
    """A command failed; `str()` is the whole message, in the words of runc if engines search for them."""

    @classmethod
    def of(cls, what: str, error: OSError) -> OciError:
        """Make the failure of `what` from `error`."""
        named = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return cls(f"{what}: {named}{(error.strerror or str(error)).lower()}")


class NoContainerError(OciError):
    """There is no container of this id."""

    def __init__(self) -> None:
        super().__init__("container does not exist")
