"""Names of containers and volumes: which are allowed, and new ones for containers that were given none. Pure."""

from __future__ import annotations

import random
import re
import secrets
from collections.abc import Collection
from typing import Final

from unionfs.containers.errors import ContainerError

PATTERN: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
"""As docker and podman have it, so that names can be moved between the tools."""

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
    """Raises: ContainerError unless a container may have this name."""
    if not PATTERN.fullmatch(name):
        hint = "use letters, digits, '_', '.' and '-', and begin with a letter or digit"
        raise ContainerError("", "", f"bad name: {name}", hint=hint)


def choose(taken: Collection[str]) -> str:
    """A new name that is not in `taken`."""
    for attempt in range(100):
        name = f"{random.choice(_ADJECTIVES)}_{random.choice(_NOUNS)}" + (str(attempt) if attempt > 10 else "")
        if name not in taken:
            return name
    return secrets.token_hex(6)
