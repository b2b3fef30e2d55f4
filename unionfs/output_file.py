"""The file that a command writes for its user: `-o FILE`. It is whole or as it was before; a device stays a device."""

from __future__ import annotations

import contextlib
import os
import stat
from types import TracebackType
from typing import IO


class OutputFile:
    """Opens the file at a path for writing; used in a `with` block.

    A regular file, or none, is replaced when the block ends without an exception and without `abandon`: the new one is
    written beside it, where a symlink leads. A device, a pipe or a socket is written to as it is, never replaced:
    `-o /dev/null` of root's must not take /dev/null away. Raises: OSError, as open(2) and rename(2) do.
    """

    def __init__(self, path: str) -> None:
        self._place = os.path.realpath(path)
        self._aside = "" if _stays(path, self._place) else f"{self._place}.{os.urandom(4).hex()}"
        self.file: IO[bytes] = open(self._aside or path, "xb" if self._aside else "wb")  # noqa: SIM115 - see __exit__
        self._is_wanted = True

    def abandon(self) -> None:
        """Leave the old file, if any, as it is."""
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
    """Whether something is there that cannot be replaced: no regular file, or, as /dev/fd/3, one without a name."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode) or not os.path.exists(place)
    except FileNotFoundError:
        return False
