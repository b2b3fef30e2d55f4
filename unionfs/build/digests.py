"""Digests of the files of a context, remembered by their stat(2), so that an unchanged file is not read again.

The record is a JSON object: path -> [size, mtime_ns, ctime_ns, device, inode, digest]. A file that was changed less
than two seconds before it was read is not remembered: a filesystem's clock may tick slowly, and a second change within
one tick would not show.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from layers.safe_open import Path

_READ: Final = 1 << 20
_SETTLED_NS: Final = 2 * 10**9


class _Stat(Protocol):
    """The values that identify a state of a file."""

    @property
    def size(self) -> int: ...

    @property
    def mtime_ns(self) -> int: ...

    @property
    def ctime_ns(self) -> int: ...

    @property
    def inode(self) -> tuple[int, int]: ...


class Digests:
    """The digests of one context."""

    def __init__(self, recorded: bytes = b"") -> None:
        """`recorded`: an earlier result of `record`; a broken one is ignored."""
        try:
            known = json.loads(recorded) if recorded else {}
        except ValueError:
            known = {}
        self._known: Final[dict[str, list[int | str]]] = known if isinstance(known, dict) else {}
        self.new: Final[dict[str, list[int | str]]] = {}  # those that were computed

    def of(self, path: Path, found: _Stat, open_file: Callable[[], int]) -> str:
        """The digest of a file. Raises: OSError."""
        name = os.fsdecode(b"/".join(path))
        state = [found.size, found.mtime_ns, found.ctime_ns, *found.inode]
        known = self._known.get(name)
        if known is not None and known[:-1] == state:
            return str(known[-1])
        fd = open_file()
        before = time.time_ns()
        st = os.fstat(fd)
        digest = digest_of(fd)
        now = [st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_dev, st.st_ino]
        if now == state and max(st.st_mtime_ns, st.st_ctime_ns) < before - _SETTLED_NS:
            self.new[name] = self._known[name] = [*state, digest]
        return digest

    @property
    def is_changed(self) -> bool:
        """Whether there are new digests to record."""
        return bool(self.new)

    def learn(self, new: Mapping[str, list[int | str]]) -> None:
        """Add the digests that another process has computed: its `new`."""
        self._known.update(new)
        self.new.update(new)

    def record(self) -> bytes:
        return json.dumps(self._known, separators=(",", ":")).encode("ascii")


def digest_of(fd: int) -> str:
    """The sha256 of a file's data, in hex. Closes `fd`. Raises: OSError."""
    hash_ = hashlib.sha256()
    with open(fd, "rb", buffering=0) as file:
        while data := file.read(_READ):
            hash_.update(data)
    return hash_.hexdigest()
