"""The file of `-o FILE`: written completely, or left as it was; a device is not replaced."""

from __future__ import annotations

import contextlib
import os
import stat
from types import TracebackType
from typing import IO


class OutputFile:
    """Opens the file at a path for writing; used in a `with` block.

    A regular or missing file is replaced when the block ends without an exception and without `abandon`: the new file
    is written beside it (beside a symlink's target). A device, a pipe or a socket is written to and never replaced: `-o
    /dev/null` as root must not remove /dev/null. Raises: OSError of open(2) and rename(2).
    """

    def __init__(self, path: str) -> None:
        self._place = os.path.realpath(path)
        self._aside = "" if _stays(path, self._place) else f"{self._place}.{os.urandom(4).hex()}"
        self.file: IO[bytes] = open(self._aside or path, "xb" if self._aside else "wb")  # noqa: SIM115 - see __exit__
        self._is_wanted = True

    @property
    def path(self) -> str:
        """Where `file` is until the block ends: for programs that write it themselves."""
        return self._aside or self._place

    def abandon(self) -> None:
        """Discard the new file, and leave the old one, if any, as it is."""
        self._is_wanted = False

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.file.close()
            if self._aside and kind is None and self._is_wanted:
                os.rename(self._aside, self._place)
        finally:
            if self._aside:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._aside)


def _stays(path: str, place: str) -> bool:
    """Whether the file cannot be replaced: it is not a regular file, or has no name (/dev/fd/3)."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode) or not os.path.exists(place)
    except FileNotFoundError:
        return False
