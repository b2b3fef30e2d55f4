"""Format the output of verbs: tables, sizes, modes, printable names.

Columns are the same in a pipe and on a terminal; rich adds bold heads on a terminal only, and is imported only then.
"""

from __future__ import annotations

import os
import stat
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any, Final

from layers.entry import DIRECTORY, LINK, Entry
from layers.safe_open import Path
from unionfs.printable import printable

_GAP: Final = "  "


def path_text(path: Path) -> str:
    """An absolute path, safe to print."""
    return printable("/" + os.fsdecode(b"/".join(path)))


def human(count: int) -> str:
    """A number of bytes with a unit: 1.5 kB, 20 MB (powers of 1000)."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: str = "", title: str = "") -> None:
    """Print a table; columns whose head is in `right` (comma-separated) are right-aligned. Prints nothing without
    rows."""
    if not rows:
        return
    lines = aligned(head, [head, *rows], right=right)
    if title:
        print(f"\n{title}")
    if not sys.stdout.isatty():
        print("\n".join(lines))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for number, text in enumerate(lines):
        console.print(Text(text, "bold" if not number else ""), no_wrap=True, overflow="ellipsis", crop=True)


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]], *, right: str = "", gap: str = _GAP) -> list[str]:
    """`lines` with padded columns; those whose head is in `right` (comma-separated) are right-aligned."""
    to_the_right = set(right.split(","))
    widths = [max(_width(line[column]) for line in lines) for column in range(len(head))]
    padded = []
    for line in lines:
        cells = [
            " " * (width - _width(cell)) + cell if name in to_the_right else cell + " " * (width - _width(cell))
            for name, cell, width in zip(head, line, widths, strict=True)
        ]
        padded.append(gap.join(cells).rstrip())
    return padded


def _width(text: str) -> int:
    """The width of a text in columns of a terminal: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def attributes(entry: Entry) -> str:
    """Mode and owner of an entry, as ls -ln prints them: `-rwxr-xr-x 0:0`."""
    kind = stat.S_IFREG if entry.kind == LINK else entry.kind
    return f"{stat.filemode(kind | entry.mode)} {entry.uid}:{entry.gid}"


def what(entry: Entry, stored: int) -> str:
    """An entry in words: mode, owner, and size or target; `stored` is the number of bytes without holes."""
    text = attributes(entry)
    if entry.kind == LINK:
        return f"{text} hard link to {path_text(entry.link)}"
    if entry.target:
        return f"{text} -> {printable(entry.target)}"
    if entry.kind == DIRECTORY:
        return text
    holes = f" ({human(stored)} of data)" if stored < entry.size else ""
    return f"{text} {human(entry.size)}{holes}"


def json_path(path: Path) -> str:
    """A path for JSON; bytes that are not UTF-8 become surrogates, which json.dumps escapes."""
    return "/" + os.fsdecode(b"/".join(path))


def json_entry(entry: Entry) -> dict[str, Any]:
    """The fields of an entry for JSON, without its path."""
    kinds = {stat.S_IFREG: "file", DIRECTORY: "directory", stat.S_IFLNK: "symlink", LINK: "link"}
    kinds |= {stat.S_IFCHR: "character device", stat.S_IFBLK: "block device", stat.S_IFIFO: "fifo"}
    value: dict[str, Any] = {
        "type": kinds.get(entry.kind, "other"),
        "mode": f"{entry.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime_ns": entry.mtime_ns,
        "size": entry.size,
    }
    if entry.target:
        value["target"] = os.fsdecode(entry.target)
    if entry.kind == LINK:
        value["link"] = json_path(entry.link)
    if entry.kind in (stat.S_IFCHR, stat.S_IFBLK):
        value["device"] = list(entry.device)
    return value
