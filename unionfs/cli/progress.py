"""Progress on a terminal: one line for each layer. Nothing in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from layers.progress import Progress, Silent
from unionfs.printable import printable_line

if TYPE_CHECKING:
    import rich.progress


@contextmanager
def shown(*, quiet: bool = False) -> Iterator[Progress]:
    """Show progress on stderr if stderr is a terminal and `quiet` is false."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield Silent()
        return
    import rich.progress
    from rich.console import Console

    bars = rich.progress.Progress(
        rich.progress.TextColumn("{task.description:<24}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        console=Console(stderr=True),
    )
    with bars:
        yield _Bars(bars)


class _Bars:
    """A bar for each key. Its methods may be called from any thread: rich has its own lock."""

    def __init__(self, bars: rich.progress.Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def begin(self, key: str, what: str, total: int | None) -> None:
        if key in self._tasks:
            self._bars.reset(self._tasks[key], total=total, description=_shown(key, what))
        else:
            self._tasks[key] = self._bars.add_task(_shown(key, what), total=total)

    def advance(self, key: str, count: int) -> None:
        self._bars.advance(self._tasks[key], count)

    def end(self, key: str, outcome: str) -> None:
        self._bars.update(self._tasks[key], description=_shown(key, outcome))


def _shown(key: str, what: str) -> str:
    return printable_line(f"{key} {what}").replace("[", "\\[")  # rich takes brackets for its markup
