"""Count the requests of each kind that a transport has served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from unionfs.core.union import Union
    from unionfs.fuse.calls import Calls
    from unionfs.fuse.death_helper import DeathHelper
    from unionfs.fuse.view_offer import ViewOffer


class Observation(Protocol):
    """A record of a mount's requests. `begin`, `end` and `take` are called on the union's thread (`fuse.calls`)."""

    settings: dict[str, Any]
    """Of the mount: timeout_s, writeback, passthrough, read_only, partial (files are copied up without all data)."""

    def begin(self) -> bool:
        """Begin to record. Returns False."""

    def end(self) -> bool:
        """End the recording. Returns False."""

    def take(self, *, whole: bool) -> dict[str, Any]:
        """Return the record: `rows` since the last call, and if `whole`, all else since the beginning."""


class Traffic(Protocol):
    """The protocol and request counts of a transport. May be read from any thread."""

    view_offer: ViewOffer | None  # set once, by the daemon, where the union's lowers can have a view
    calls: Calls | None  # set once, by a transport that can change a union while it serves it
    death_helper: DeathHelper | None  # set once, by the daemon, where another one is to continue
    has_resend: bool  # whether the kernel resends unanswered requests, so that another daemon can continue

    @property
    def protocol(self) -> str:
        """The FUSE protocol version, as "7.45", or the library that speaks it ("libfuse")."""

    @property
    def messages(self) -> dict[str, int]:
        """The number of requests by opcode name without FUSE_; opcodes that never came are absent."""

    @property
    def passthrough(self) -> dict[str, int] | None:
        """Under passthrough: files that are `open` now, and `plain` opens so far without it. None: it is not used."""

    def observe(self, union: Union) -> Observation | None:
        """Make a record of the requests, which has not begun; None where the transport can make none."""


class Tally:
    """Traffic counted by the transport itself, one `count` a request."""

    protocol = "libfuse"
    has_resend = False
    passthrough = None

    def __init__(self) -> None:
        self.view_offer: ViewOffer | None = None  # see Traffic
        self.calls: Calls | None = None  # likewise
        self.death_helper: DeathHelper | None = None  # likewise
        self._counts: dict[str, int] = {}

    def count(self, opcode: str) -> None:
        """Count one request. On the transport's thread only."""
        self._counts[opcode] = self._counts.get(opcode, 0) + 1

    @property
    def messages(self) -> dict[str, int]:
        """See Traffic."""
        return dict(self._counts)

    def observe(self, union: Union) -> None:
        """See Traffic."""
