"""An open file of a union, and an `open` like the builtin's.

A file is a node, not a descriptor: all its users read the same data, before and after it is copied up, and an
unlinked file stays readable until it is closed.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from unionfs.api.access import READ, WRITE
from unionfs.api.paths import StrPath, Walk, names_of, refuse
from unionfs.core.attrs import AttrChange, Caller, Entry

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from unionfs.api.guard import Guard

_BUFFER: Final = 1 << 17  # bytes: as the largest request of a mount
_CHUNK: Final = 1 << 20


class Mode(NamedTuple):
    """A parsed mode of open()."""

    text: str  # as it was given, without `t`
    reading: bool
    writing: bool
    making: bool  # a missing file is made
    only_new: bool  # an existing file is refused
    emptying: bool
    appending: bool
    binary: bool


def parse_mode(mode: str) -> Mode:
    """Parse a mode. Raises: ValueError for one that the builtin refuses."""
    kinds = [letter for letter in mode if letter in "rwxa"]
    if len(kinds) != 1 or len(set(mode)) != len(mode) or set(mode) - set("rwxab+t") or {"b", "t"} <= set(mode):
        raise ValueError(f"invalid mode: {mode!r}")
    kind, plus = kinds[0], "+" in mode
    return Mode(
        mode.replace("t", ""), kind == "r" or plus, kind != "r" or plus, kind != "r", kind == "x", kind == "w",
        kind == "a", "b" in mode,
    )  # fmt: skip


def open_node(walk: Walk, path: StrPath, mode: Mode, maker: Callable[[], Caller]) -> Entry:
    """Find or make a file, as open(2) does. Raises: ENOENT, EEXIST, EISDIR, EROFS, EACCES, and ENXIO for a fifo, socket
    or device."""
    if mode.making and names_of(path).endswith(b"/"):
        walk.place(path)
        refuse(errno.EISDIR)
    place = walk.place(path, follow=not mode.only_new)
    entry = place.entry
    if entry is None:
        if not mode.making:
            refuse(errno.ENOENT)
        if place.slash:
            refuse(errno.EISDIR)
        walk.require_writable(place.parent)
        return walk.owe(walk.core.mknod(place.parent.nodeid, place.name, stat.S_IFREG | 0o666, 0, maker()))
    if mode.only_new:
        refuse(errno.EEXIST)
    kind = stat.S_IFMT(entry.attrs.mode)
    if kind == stat.S_IFDIR:
        refuse(errno.EISDIR)
    if kind != stat.S_IFREG:
        refuse(errno.ENXIO)
    if mode.writing and walk.core.options.upper is None:
        refuse(errno.EROFS)
    wanted = (READ if mode.reading else 0) | (WRITE if mode.writing else 0)
    walk.access.require(walk.core, entry.nodeid, entry.attrs, wanted)
    if mode.writing:
        walk.core.check_open(entry.nodeid, os.O_RDWR | (os.O_APPEND if mode.appending else 0))
    if mode.emptying:
        walk.core.setattr(entry.nodeid, AttrChange(size=0, kill_priv=loses_privileges()))
    return entry


def loses_privileges() -> bool:
    """Whether a write by this process clears set-id bits and capabilities, as every write but root's
    (capabilities(7))."""
    return os.geteuid() != 0


class RawFile(io.RawIOBase):
    """An open file without a buffer. It has no descriptor: fileno() raises io.UnsupportedOperation."""

    def __init__(self, guard: Guard, nodeid: int, name: StrPath, mode: Mode) -> None:
        self._guard = guard  # immutable
        self._node = nodeid  # immutable; forgotten by close
        self._at = 0  # bytes from the beginning
        self._mode = mode  # immutable
        self.name = name  # the path given to open
        self.mode = mode.text if mode.binary else mode.text + "b"

    def close(self) -> None:
        """Close the file. May be called again."""
        if not self.closed:
            super().close()
            self._guard.forget(self._node)

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        self._require_open()
        return self._mode.reading

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        self._require_open()
        return self._mode.writing

    def seekable(self) -> bool:
        """Always true: only regular files are opened."""
        self._require_open()
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read up to the buffer's size. Returns the number of bytes; 0 at the end."""
        if not self.readable():
            raise io.UnsupportedOperation("not readable")
        view = memoryview(buffer).cast("B")
        with self._guard as core:
            data = core.read(self._node, self._at, len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Read to the end."""
        if not self.readable():
            raise io.UnsupportedOperation("not readable")
        parts: list[bytes] = []
        while True:
            with self._guard as core:
                data = core.read(self._node, self._at, _CHUNK)
            if not data:
                return b"".join(parts)
            self._at += len(data)
            parts.append(data)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write at the position, or with mode `a` at the end. Returns the number of bytes. A file of a lower is copied
        up first. Raises: ENOSPC, EFBIG, EDQUOT."""
        if not self.writable():
            raise io.UnsupportedOperation("not writable")
        view = memoryview(data).cast("B")
        with self._guard as core:
            if self._mode.appending:
                self._at = core.getattr(self._node).size
            written = core.write(self._node, self._at, view, loses_privileges()) if len(view) else 0
        self._at += written
        return written

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position; also with SEEK_DATA and SEEK_HOLE (lseek(2)). EINVAL, ENXIO."""
        self._require_open()
        if whence == os.SEEK_CUR:
            offset += self._at
        elif whence == os.SEEK_END:
            with self._guard as core:
                offset += core.getattr(self._node).size
        elif whence in (os.SEEK_DATA, os.SEEK_HOLE):
            with self._guard as core:
                offset = core.lseek(self._node, offset, whence)
        elif whence != os.SEEK_SET:
            refuse(errno.EINVAL)
        if offset < 0:
            refuse(errno.EINVAL)
        self._at = offset
        return offset

    def tell(self) -> int:
        """The position in bytes."""
        self._require_open()
        return self._at

    def truncate(self, size: int | None = None, /) -> int:
        """Set the size of the file in bytes, by default to the position. Raises: EINVAL, EFBIG, ENOSPC."""
        if not self.writable():
            raise io.UnsupportedOperation("not writable")
        length = self._at if size is None else size
        if length < 0:
            refuse(errno.EINVAL)
        with self._guard as core:
            core.setattr(self._node, AttrChange(size=length, kill_priv=loses_privileges()))
        return length

    def fsync(self) -> None:
        """Write the data through to the device (fsync(2)). Call flush() of the buffered file before."""
        self._require_open()
        with self._guard as core:
            core.fsync(self._node, datasync=False)

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


def wrap(
    raw: RawFile, mode: Mode, buffering: int, encoding: str | None, errors: str | None, newline: str | None
) -> Any:
    """Make the buffered or text file for a raw one, as io.open does."""
    if buffering == 0:
        return raw
    size = _BUFFER if buffering in (-1, 1) else buffering
    buffer: io.BufferedRandom | io.BufferedReader | io.BufferedWriter
    if mode.reading and mode.writing:
        buffer = io.BufferedRandom(raw, size)
    else:
        buffer = io.BufferedReader(raw, size) if mode.reading else io.BufferedWriter(raw, size)
    if mode.binary:
        return buffer
    text = io.TextIOWrapper(buffer, io.text_encoding(encoding), errors, newline, buffering == 1)
    text.mode = mode.text  # type: ignore[misc]
    return text


def check_arguments(mode: Mode, buffering: int, encoding: str | None, errors: str | None, newline: str | None) -> None:
    """Refuse the arguments that the builtin refuses. Raises: ValueError."""
    if mode.binary and (encoding is not None or errors is not None or newline is not None):
        raise ValueError("binary mode takes no encoding, errors or newline")
    if buffering == 0 and not mode.binary:
        raise ValueError("can't have unbuffered text I/O")
    if buffering < -1:
        raise ValueError("invalid buffering size")
