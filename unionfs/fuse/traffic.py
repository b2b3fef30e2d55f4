"""How many requests of each kind a transport has served: what every transport can tell about itself."""

from __future__ import annotations

from typing import Protocol


class Traffic(Protocol):
    """May be read from any thread."""

    @property
    def protocol(self) -> str:
        """The FUSE protocol spoken, as "7.45", or who speaks it for us."""

    @property
    def messages(self) -> dict[str, int]:
        """Requests by the kernel's opcode names without FUSE_; kinds that never came are absent."""


class Tally:
    """Traffic counted by the transport itself, one `count` a request."""

    protocol = "libfuse"

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def count(self, opcode: str) -> None:
        """One more request of this kind. On the transport's thread only."""
        self._counts[opcode] = self._counts.get(opcode, 0) + 1

    @property
    def messages(self) -> dict[str, int]:
        """See Traffic."""
        return dict(self._counts)
