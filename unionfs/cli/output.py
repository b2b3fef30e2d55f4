"""Format changes: as lines, as a table on a terminal, as JSON.

Pure, except that it checks whether standard output is a terminal. File names are untrusted: on a terminal all
characters that are not printable are shown as escapes, so that a name can neither move the cursor nor look like
another.

JSON has names as text if they are UTF-8; otherwise `path` has U+FFFD for the other bytes, and `path_base64` has all
bytes.
"""

from __future__ import annotations

import base64
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from layers.entry import WORDS
from unionfs.changes.compare import MTIME
from unionfs.changes.listing import ADDED, CHANGED, DELETED, Change
from unionfs.changes.objects import Object
from unionfs.cli.units import human_size
from unionfs.printable import printable

_COLOURS: Final = {ADDED: "green", CHANGED: "yellow", DELETED: "red"}
_WORDS: Final = {ADDED: "added", CHANGED: "changed", DELETED: "deleted"}


def as_lines(changes: Iterable[Change], *, sizes: bool = False, end: bytes = b"\n") -> bytes:
    """One line for each change, `KIND PATH` as docker prints it, or `KIND SIZE PATH`. Names are not escaped."""
    lines = []
    for change in changes:
        size = b"%12s " % (b"-" if (count := size_of(change)) is None else b"%d" % count) if sizes else b""
        lines.append(change.kind.encode() + b" " + size + change.path + end)
    return b"".join(lines)


def print_lines(changes: Iterable[Change], *, sizes: bool = False, end: bytes = b"\n") -> None:
    """as_lines() to standard output; names are made printable if that is a terminal."""
    if sys.stdout.isatty():
        changes = [change._replace(path=printable(change.path).encode()) for change in changes]
    sys.stdout.flush()
    sys.stdout.buffer.write(as_lines(changes, sizes=sizes, end=end))
    sys.stdout.buffer.flush()


def print_table(changes: list[Change], limit: int | None = None) -> None:
    """The changes as a coloured table, for a terminal; at most `limit` rows."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    table.add_column("size", justify="right")
    table.add_column("what")
    table.add_column("path", overflow="fold")
    for change in changes[:limit]:
        size = size_of(change)
        table.add_row(
            Text(change.kind, style=_COLOURS[change.kind]),
            Text("" if size is None else human_size(size)),
            Text(", ".join(change.what)),
            Text(printable(change.path)),
        )
    Console(highlight=False).print(table)
    if limit is not None and len(changes) > limit:
        print(f"... and {len(changes) - limit} more")


def worth_telling(changes: list[Change]) -> list[Change]:
    """The changes without directories that are listed only because an entry of them changed."""
    busy = {os.path.dirname(change.path) for change in changes if change.kind != CHANGED}

    def only_leads_on(change: Change) -> bool:
        return change.kind == CHANGED and (not change.what or (change.what == (MTIME,) and change.path in busy))

    return [change for change in changes if not only_leads_on(change)]


def summary(changes: list[Change]) -> str:
    """`3 added, 1 changed, 2 deleted; 12.1 KiB`, without such directories."""
    shown = worth_telling(changes)
    if not shown:
        return "nothing changed"
    counts = Counter(change.kind for change in shown)
    words = [f"{counts[kind]} {_WORDS[kind]}" for kind in _WORDS if counts[kind]]
    return f"{', '.join(words)}; {human_size(sum(size_of(change) or 0 for change in shown))}"


def as_json(changes: Iterable[Change]) -> list[dict[str, Any]]:
    """The changes as JSON values, see `unionfs diff --help`."""
    return [_one_as_json(change) for change in changes]


def _one_as_json(change: Change) -> dict[str, Any]:
    shown: dict[str, Any] = {"kind": change.kind, **path_as_json(change.path)}
    there = change.new or change.old
    assert there is not None
    shown["type"] = kind_of(there)
    for word, one in (("size", change.new), ("old_size", change.old)):
        if one is not None and stat.S_ISREG(one.mode):
            shown[word] = one.size
    if change.kind == CHANGED:
        shown["changed"] = list(change.what)
    return shown


def path_as_json(path: bytes) -> dict[str, str]:
    """The fields that name a path."""
    try:
        return {"path": path.decode()}
    except UnicodeDecodeError:
        return {"path": path.decode(errors="replace"), "path_base64": base64.b64encode(path).decode()}


def kind_of(one: Object) -> str:
    """The type of a file in a word."""
    return WORDS.get(one.kind, "unknown")


def size_of(change: Change) -> int | None:
    """The size of a regular file, new or deleted; None for other types."""
    there = change.new or change.old
    return there.size if there is not None and stat.S_ISREG(there.mode) else None
