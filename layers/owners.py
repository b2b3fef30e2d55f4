"""Owners, modes and devices that this process cannot give to a file, kept beside it in an extended attribute.

Pure: when that is done. The attribute is `unionfs.markers.OVERRIDE_XATTR`, as container tools have it.
"""

from __future__ import annotations

from typing import Final

from unionfs import markers
from unionfs.markers import Override

XATTR: Final = markers.OVERRIDE_XATTR

NAMES: Final = (markers.OVERRIDE_PRIVILEGED_XATTR, markers.OVERRIDE_XATTR, markers.OVERRIDE_OLD_XATTR)
"""All names that are read, the first that a file has counts."""

MAPPED: Final = "mapped"
"""Files get their owners: this process is root, or root of a user namespace that has all of them."""
NOTED: Final = "noted"
"""Files belong to this process; the attribute says whose they should be."""

write = markers.write_override
read = markers.read_override

__all__ = ["MAPPED", "NAMES", "NOTED", "XATTR", "Override", "read", "write"]
