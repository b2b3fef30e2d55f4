"""The interface through which long work reports its progress. Command lines implement it; other modules pass it on."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A receiver of progress reports. Calls may come from several threads."""

    def begin(self, key: str, what: str, total: int | None) -> None:
        """Report that the work `key` begins, or its next part: `what` in words, `total` bytes (None: unknown)."""

    def advance(self, key: str, count: int) -> None:
        """Report `count` more bytes done."""

    def end(self, key: str, outcome: str) -> None:
        """Report the end of the work `key`, with its outcome in words."""


class Silent:
    """A Progress that discards all reports."""

    def begin(self, key: str, what: str, total: int | None) -> None:
        pass

    def advance(self, key: str, count: int) -> None:
        pass

    def end(self, key: str, outcome: str) -> None:
        pass
