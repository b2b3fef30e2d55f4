"""Names of containers and volumes: check names, and make random ones. Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Final

from unionfs.containers.errors import ContainerError

PATTERN: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")
"""The rule of docker and podman, so that names are valid in all these tools; and a name is one of a file."""

_ADJECTIVES: Final = (
    "able",
    "bold",
    "brisk",
    "calm",
    "clear",
    "eager",
    "fair",
    "glad",
    "keen",
    "kind",
    "merry",
    "neat",
)
_NOUNS: Final = (
    "alder",
    "birch",
    "cedar",
    "fern",
    "heron",
    "ibis",
    "linden",
    "lynx",
    "otter",
    "plover",
    "rowan",
    "wren",
)


def check(name: str) -> None:
    """Raises: ContainerError if a container may not have this name."""
    if not PATTERN.fullmatch(name):
        hint = "use at most 255 letters, digits, '_', '.' and '-', and begin with a letter or digit"
        raise ContainerError("", "", f"bad name: {name}", hint=hint)


def choose(is_taken: Callable[[str], bool]) -> str:
    """A new name that is not taken."""
    for attempt in range(100):
        name = f"{_any_of(_ADJECTIVES)}_{_any_of(_NOUNS)}" + (str(attempt) if attempt > 10 else "")
        if not is_taken(name):
            return name
    return os.urandom(6).hex()


def _any_of(words: Sequence[str]) -> str:
    return words[int.from_bytes(os.urandom(4), "little") % len(words)]  # the module `random` is slow to import
