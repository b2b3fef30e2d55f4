"""The output of a build: its steps and the output of their commands, in podman's words; on a terminal only the steps,
and the last lines of a command that fails.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from unionfs.build.options import CACHED, DONE, NOTE, STEP, Event, EventReceiver
from unionfs.cli import notes, parents
from unionfs.launcher.capture import STDERR
from unionfs.printable import printable_line
from unionfs.write_all import write_all

_KEPT: Final = 200  # lines of a command, shown if it fails


def say(line: str) -> None:
    """Print a line, whole: several processes print at once."""
    _write(1, f"{printable_line(line)}\n".encode(errors="replace"))


def note(text: str, *, quiet: bool = False) -> None:
    """Print a note on standard error."""
    if not quiet:
        notes.warn(text)


@contextmanager
def shown(progress: str, *, quiet: bool) -> Iterator[EventReceiver]:
    """The receiver of the build's events within the block."""
    if quiet:
        yield EventReceiver(_only_notes, lambda stage, stream, data: None, parents.leave_beside_container)
        return
    is_terminal = sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if progress == "tty" or (progress == "auto" and is_terminal):
        lines = _OnTerminal()
        try:
            yield EventReceiver(lines.event, lines.output, parents.leave_beside_container)
        finally:
            lines.clear()
        return
    plain = _Plain()
    yield EventReceiver(plain.event, plain.output, parents.leave_beside_container, is_direct=True)


def _only_notes(event: Event) -> None:
    if event.kind == NOTE:
        notes.warn(event.text)


class _Plain:
    """A line for each step, and what commands print. Commands of several stages at once: each line names its stage."""

    def __init__(self) -> None:
        self._rest: Final[dict[tuple[int, str], bytes]] = {}  # the beginnings of incomplete lines
        self._stages = 1

    def event(self, event: Event) -> None:
        prefix = f"[{event.stage}/{event.stages}] " if event.stages > 1 else ""
        self._stages = event.stages
        match event.kind:
            case "step":
                say(f"{prefix}STEP {event.step}/{event.steps}: {event.text}")
            case "cached":
                self._flush(event.stage)
                say(f"{prefix}--> Using cache {event.text}")
            case "done":
                self._flush(event.stage)
                say(f"{prefix}--> {event.text}")
            case "failed":
                self._flush(event.stage)
            case "note":
                notes.warn(event.text)

    def output(self, stage: int, stream: str, data: bytes) -> None:
        fd = 2 if stream == STDERR else 1
        if self._stages == 1:
            _write(fd, data)
            return
        whole, newline, rest = (self._rest.pop((stage, stream), b"") + data).rpartition(b"\n")
        if newline:
            prefix = f"[{stage}/{self._stages}] ".encode()
            _write(fd, b"".join(prefix + line + b"\n" for line in whole.split(b"\n")))
        if rest:
            self._rest[stage, stream] = rest

    def _flush(self, stage: int) -> None:
        for known in [key for key in self._rest if key[0] == stage]:
            self.output(*known, b"\n")


class _OnTerminal:
    """The present step on one line, which the next one replaces; the last lines of each command are kept for its
    failure."""

    def __init__(self) -> None:
        self._said: deque[bytes] = deque(maxlen=_KEPT)

    def event(self, event: Event) -> None:
        if event.kind == NOTE:
            self.clear()
            notes.warn(event.text)
        elif event.kind == STEP:
            self._said.clear()
            prefix = f"[{event.stage}/{event.stages}] " if event.stages > 1 else ""
            width = max(os.get_terminal_size(1).columns if os.isatty(1) else 80, 20)
            line = printable_line(f"{prefix}{event.step}/{event.steps} {event.text}")[: width - 1]
            _write(1, b"\r\x1b[K" + line.encode(errors="replace"))
        elif event.kind in (CACHED, DONE):
            self._said.clear()
        else:
            self.clear()

    def output(self, _stage: int, _stream: str, data: bytes) -> None:
        self._said.extend(data.splitlines(keepends=True))

    def clear(self) -> None:
        """Remove the line, and show the last output of the command."""
        _write(1, b"\r\x1b[K" + b"".join(self._said))
        self._said.clear()


def _write(fd: int, data: bytes) -> None:
    if data:
        write_all(fd, data)
