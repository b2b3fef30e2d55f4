"""Parse signals by name or number: TERM, SIGTERM, 15, RTMIN+3."""

from __future__ import annotations

import re
import signal

from unionfs.cli.errors import USAGE, CommandError


def number_of(text: str) -> int:
    """The signal's number. Raises: CommandError for an unknown signal."""
    name = text.strip().upper().removeprefix("SIG")
    if name.isdecimal() and name.isascii():
        number = int(name)
    elif shift := re.fullmatch(r"RT(MIN\+|MAX-)([0-9]{1,2})", name):
        number = signal.SIGRTMIN + int(shift[2]) if shift[1] == "MIN+" else signal.SIGRTMAX - int(shift[2])
    else:
        number = getattr(signal, f"SIG{name}", 0) if name.isalnum() else 0
    if number not in signal.valid_signals():
        raise CommandError(f"no such signal: {text}", hint="use a name or a number: TERM, SIGKILL, 15", status=USAGE)
    return number
