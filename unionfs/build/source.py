"""The place of an instruction, for messages: every error of the language names the file, the line and the expected
form.
"""

from __future__ import annotations

from typing import NamedTuple

from unionfs.containers.errors import ContainerError


class Place(NamedTuple):
    """A line of a Containerfile."""

    file: str  # as the user named it
    line: int  # counted from 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class ContainerfileError(ContainerError):
    """A Containerfile that cannot be built. `str()` is `FILE:LINE: WHY`, `hint` the expected form."""

    def __init__(self, place: Place, why: str, *, hint: str = "") -> None:
        super().__init__("", str(place), why, hint=hint)
        self.place = place
