"""Descriptors 0, 1 and 2 are open: else the next file opened gets the number, and what is printed goes there."""

from __future__ import annotations

import os


def open_missing() -> None:
    """Open /dev/null in the place of each standard descriptor that the caller of this program has closed.

    To be called before anything else is opened, that is, first in `main`.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(opened, True)
