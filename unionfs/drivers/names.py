"""The names of drivers. A module of its own, since every command that lists containers imports it."""

from __future__ import annotations

from typing import Final

NAMES: Final = ("fuse", "overlay", "vfs", "btrfs", "devicemapper")
FUSE: Final = "fuse"
"""Our union, the default."""
