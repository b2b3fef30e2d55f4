"""Open descriptors 0, 1 and 2 if they are closed: otherwise the next file that is opened gets such a number, and output
is written into it."""

from __future__ import annotations

import os


def open_missing() -> None:
    """Open /dev/null for each standard descriptor that the caller of this program has closed.

    Call it before anything else is opened, that is, first in `main`.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(opened, True)
