"""Limits on the size of layers from untrusted sources, and the errors that refuse larger ones. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from layers.errors import Refused

_WHAT: Final = "unpacking a layer"

NAME_MAX: Final = 255  # limits.h
PATH_MAX: Final = 4095  # limits.h, without the NUL; a longer path cannot be used by any program in the container
HEADER_MAX: Final = 1 << 20
"""Bytes of one extended header. A file's extended attributes come to 64 KiB on the usual filesystems."""
ZSTD_WINDOW_MAX: Final = 128 << 20  # `zstd --ultra -22` writes this much; the decoder allocates it


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one layer. A layer within them may still fill the disk, which is then an ENOSPC like any other."""

    max_bytes: int = 64 << 30  # of the tar without compression, and of its files; known layers are smaller
    max_entries: int = 5_000_000
    max_ratio: int | None = 250  # tar to compressed tar; text reaches 20, a disk image full of zeros 1000
    ratio_from: int = 256 << 20  # the ratio is checked beyond this many bytes

    def check_bytes(self, packed: int, unpacked: int) -> None:
        """Raise Refused if `packed` compressed bytes that give `unpacked` bytes exceed the size or the ratio."""
        if unpacked > self.max_bytes:
            raise Refused(_WHAT, "", f"it is larger than {self.max_bytes} bytes", hint=_HINT)
        if self.max_ratio is not None and unpacked > self.ratio_from and unpacked > packed * self.max_ratio:
            why = f"{packed} bytes became {unpacked} and more: this looks like a decompression bomb"
            raise Refused(_WHAT, "", why, hint=_HINT)

    def check_files(self, size: int) -> None:
        """Raise Refused if the files of a layer, `size` bytes together, exceed the limit. Holes count: they take no
        space on disk, but a program that reads the files reads all of them."""
        if size > self.max_bytes:
            raise Refused(_WHAT, "", f"its files are larger than {self.max_bytes} bytes, holes included", hint=_HINT)

    def check_entries(self, count: int) -> None:
        """Raise Refused if a layer has more than `max_entries` entries."""
        if count > self.max_entries:
            raise Refused(_WHAT, "", f"it has more than {self.max_entries} entries")


_HINT: Final = "if you trust the image, raise the limit: --max-layer-size SIZE"
