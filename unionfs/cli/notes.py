"""Print notes and warnings on standard error; the verb continues."""

from __future__ import annotations

import sys

from unionfs.printable import printable_line


def warn(text: str) -> None:
    """Print a line that begins with `note: ` or `warning: `."""
    print("\n".join(map(printable_line, f"unionfs: {text}".splitlines())), file=sys.stderr)


def note_shrunk(path: str) -> None:
    """Print a note that a file became shorter while it was packed."""
    warn(f"note: /{path} became shorter while it was read: the rest is filled with zeros")
