"""The version of a record of nodes: the word with which it begins. Pure."""

from __future__ import annotations

from typing import Final

_NAME: Final = int.from_bytes(b"unionfs", "little")
_SHIFT: Final = 56  # the last byte is the version
_READABLE: Final = (2, 3)
"""Versions that this program reads and continues with."""

WRITTEN: Final = _NAME | 3 << _SHIFT
"""The first word of a record that this program makes. In a record of version 2, which a program of that version may
read again, it puts no listings."""


def why_not_readable(word: int) -> str:
    """Return why a record that begins with `word` cannot be read; "" if it can."""
    if word & ((1 << _SHIFT) - 1) != _NAME:
        return "it does not begin as a record of nodes does"
    if word >> _SHIFT in _READABLE:
        return ""
    return f"its version is {word >> _SHIFT}, and this program reads {' and '.join(map(str, _READABLE))}"
