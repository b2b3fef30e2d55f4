"""Noted owners: owner, mode and device that this process cannot give to a file, recorded in an extended attribute.

Pure; the attribute (`unionfs.markers.OVERRIDE_XATTR`) is the one that containers/storage uses.
"""

from __future__ import annotations

from typing import Final

from unionfs import markers
from unionfs.markers import Override

XATTR: Final = markers.OVERRIDE_XATTR

NAMES: Final = (markers.OVERRIDE_PRIVILEGED_XATTR, markers.OVERRIDE_XATTR, markers.OVERRIDE_OLD_XATTR)
"""The names of the attribute that are read; if a file has several, the first of this list counts."""

MAPPED: Final = "mapped"
"""Files are chowned: this process is root, or root of a user namespace in which all owners are mapped."""
NOTED: Final = "noted"
"""Files belong to this process; the attribute records their owners."""

write = markers.write_override
read = markers.read_override

__all__ = ["MAPPED", "NAMES", "NOTED", "XATTR", "Override", "read", "write"]
