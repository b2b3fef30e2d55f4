"""How long work is told of. The command lines show it; everybody else passes it on."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Somebody who is told. Calls may come from several threads."""

    def begin(self, key: str, what: str, total: int | None) -> None:
        """Work `key` begins, or begins its next part: `what` in words, `total` in bytes when it is known."""

    def advance(self, key: str, count: int) -> None:
        """`count` more bytes are done."""

    def end(self, key: str, outcome: str) -> None:
        """Work `key` is over."""


class Silent:
    """Nobody is told."""

    def begin(self, key: str, what: str, total: int | None) -> None:
        pass

    def advance(self, key: str, count: int) -> None:
        pass

    def end(self, key: str, outcome: str) -> None:
        pass
