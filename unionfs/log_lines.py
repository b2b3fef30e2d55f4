"""The log of a daemon or a service: one printable line for each message, with any names in it.

Imported late, because importing `logging` takes as long as mounting.
"""

from __future__ import annotations

import logging

from unionfs.printable import printable_line


def start(*, debug: bool, path: str | None = None) -> None:
    """Log to `path`, by default to stderr, from now on."""
    handler = logging.FileHandler(path) if path else logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler])


class _Formatter(logging.Formatter):
    """Tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable_line(super().formatMessage(record))
