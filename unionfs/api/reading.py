"""The methods of `Union` that change nothing."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final, Literal, overload

from unionfs.api import file as files
from unionfs.api.access import READ, Access
from unionfs.api.guard import Guard
from unionfs.api.paths import StrPath, Walk, refuse
from unionfs.core.attrs import Attrs, Caller, DirEntry

if TYPE_CHECKING:
    from io import BufferedRandom, BufferedReader, BufferedWriter, TextIOWrapper

    from _typeshed import (
        OpenBinaryMode,
        OpenBinaryModeReading,
        OpenBinaryModeUpdating,
        OpenBinaryModeWriting,
        OpenTextMode,
    )

_NOT_THERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Item:
    """An entry of `scandir`: os.DirEntry for a union."""

    __slots__ = ("name", "path", "_union", "_line")

    def __init__(self, union: Reading, directory: str, line: DirEntry) -> None:
        self.name = os.fsdecode(line.name)
        self.path = os.path.join(directory, self.name)
        self._union = union
        self._line = line

    def __repr__(self) -> str:
        return f"<Item {self.name!r}>"

    def __fspath__(self) -> str:
        return self.path

    def inode(self) -> int:
        """The number that stat() shows as st_ino."""
        return self._line.ino

    def is_symlink(self) -> bool:
        """Whether the entry is a symlink."""
        return self._line.kind == stat.S_IFLNK

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether the entry is a directory, or a symlink to one."""
        if follow_symlinks and self.is_symlink():
            return self._union.is_dir(self.path)
        return self._line.kind == stat.S_IFDIR

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether the entry is a regular file, or a symlink to one."""
        if follow_symlinks and self.is_symlink():
            return self._union.is_file(self.path)
        return self._line.kind == stat.S_IFREG

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Union.stat of the entry; not cached."""
        return self._union.stat(self.path, follow_symlinks=follow_symlinks)


class Reading:
    """Reads a union. Each method with a path raises OSError like the system call of its name: ENOENT, ENOTDIR,
    ELOOP, ENAMETOOLONG, EACCES; ValueError if the union is closed or the path has a NUL byte."""

    def __init__(self, guard: Guard, access: Access) -> None:
        self._guard = guard
        self._access = access
        self._written: set[IO[Any]] = set()  # open for writing

    @contextmanager
    def _call(self, path: StrPath, other: StrPath | None = None) -> Iterator[Walk]:
        """Context of one call with one or two paths. Errors name the paths as the caller gave them."""
        try:
            with self._guard as core:
                walk = Walk(core, self._access)
                try:
                    yield walk
                finally:
                    walk.end()
        except OSError as error:
            error.filename = os.fspath(path)
            if other is not None:
                error.filename2 = os.fspath(other)
            raise

    # -- attributes --------------------------------------------------------------------------------------------------

    def stat(self, path: StrPath, *, follow_symlinks: bool = True) -> os.stat_result:
        """os.stat. `st_ino` is the number that a mounted union shows; `st_dev` is 0."""
        with self._call(path) as walk:
            return stat_result(walk.find(path, follow=follow_symlinks).attrs)

    def lstat(self, path: StrPath) -> os.stat_result:
        """os.lstat: does not follow a symlink at the end of the path."""
        return self.stat(path, follow_symlinks=False)

    def exists(self, path: StrPath, *, follow_symlinks: bool = True) -> bool:
        """Whether the path, or the target of a symlink, exists."""
        return self._mode(path, follow=follow_symlinks) is not None

    def is_dir(self, path: StrPath) -> bool:
        """Whether the path is a directory, or a symlink to one; False if it does not exist."""
        return stat.S_ISDIR(self._mode(path) or 0)

    def is_file(self, path: StrPath) -> bool:
        """Whether the path is a regular file, or a symlink to one; False if it does not exist."""
        return stat.S_ISREG(self._mode(path) or 0)

    def is_symlink(self, path: StrPath) -> bool:
        """Whether the path is a symlink; False if it does not exist."""
        return stat.S_ISLNK(self._mode(path, follow=False) or 0)

    def _mode(self, path: StrPath, *, follow: bool = True) -> int | None:
        try:
            return self.stat(path, follow_symlinks=follow).st_mode
        except OSError as error:
            if error.errno in _NOT_THERE:
                return None
            raise

    def which(self, path: StrPath, *, follow_symlinks: bool = True) -> str:
        """The directory of the branch that provides the path; for a merged directory, of the topmost such branch."""
        with self._call(path) as walk:
            return walk.core.place_of(walk.find(path, follow=follow_symlinks).nodeid).branch

    def readlink(self, path: StrPath) -> str:
        """os.readlink. Raises: EINVAL if the path is not a symlink."""
        with self._call(path) as walk:
            return os.fsdecode(walk.core.readlink(walk.find(path, follow=False).nodeid))

    def getxattr(self, path: StrPath, name: str | bytes, *, follow_symlinks: bool = True) -> bytes:
        """os.getxattr. Raises: ENODATA for a missing attribute."""
        with self._call(path) as walk:
            entry = walk.find(path, follow=follow_symlinks)
            if os.fsencode(name).startswith(b"user."):
                self._access.require(walk.core, entry.nodeid, entry.attrs, READ)
            return walk.core.getxattr(entry.nodeid, os.fsencode(name))

    def listxattr(self, path: StrPath, *, follow_symlinks: bool = True) -> list[str]:
        """os.listxattr, without the union's own marks."""
        with self._call(path) as walk:
            nodeid = walk.find(path, follow=follow_symlinks).nodeid
            return [os.fsdecode(name) for name in walk.core.listxattr(nodeid, os.geteuid() == 0)]

    # -- directories -------------------------------------------------------------------------------------------------

    def listdir(self, path: StrPath = ".") -> list[str]:
        """os.listdir: the names, in arbitrary order. Raises: ENOTDIR."""
        return [os.fsdecode(line.name) for line in self._lines(path)]

    def scandir(self, path: StrPath = ".") -> Iterator[Item]:
        """os.scandir: the names with their types, at the time of the call. Raises: ENOTDIR."""
        directory = os.fsdecode(path)
        return iter([Item(self, directory, line) for line in self._lines(path)])

    def walk(
        self, top: StrPath = ".", *, topdown: bool = True, onerror: Callable[[OSError], object] | None = None
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """os.walk without following symlinks: yields (directory, its subdirectories, its other names). With `topdown`
        a directory comes before its subdirectories, which may be pruned in the list. For a directory that cannot be
        listed `onerror` is called."""
        todo: list[tuple[str, tuple[list[str], list[str]] | None]] = [(os.fsdecode(top), None)]
        while todo:
            directory, listed = todo.pop()
            if listed is not None:
                yield directory, *listed
                continue
            try:
                lines = self._lines(directory)
            except OSError as error:
                if onerror is not None:
                    onerror(error)
                continue
            inner = [os.fsdecode(line.name) for line in lines if line.kind == stat.S_IFDIR]
            names = [os.fsdecode(line.name) for line in lines if line.kind != stat.S_IFDIR]
            if topdown:
                yield directory, inner, names
            else:
                todo.append((directory, (inner, names)))
            todo += [(os.path.join(directory, name), None) for name in reversed(inner)]

    def _lines(self, path: StrPath) -> list[DirEntry]:
        with self._call(path) as walk:
            entry = walk.find(path)
            if not stat.S_ISDIR(entry.attrs.mode):
                refuse(errno.ENOTDIR)
            self._access.require(walk.core, entry.nodeid, entry.attrs, READ)
            return list(walk.core.readdir(entry.nodeid, 0))[2:]  # without "." and ".."

    # -- files -------------------------------------------------------------------------------------------------------

    @overload
    def open(
        self, path: StrPath, mode: OpenTextMode = "r", buffering: int = -1, encoding: str | None = None,
        errors: str | None = None, newline: str | None = None,
    ) -> TextIOWrapper: ...  # fmt: skip

    @overload
    def open(self, path: StrPath, mode: OpenBinaryMode, buffering: Literal[0]) -> files.RawFile: ...

    @overload
    def open(self, path: StrPath, mode: OpenBinaryModeReading, buffering: Literal[-1, 1] = -1) -> BufferedReader: ...

    @overload
    def open(self, path: StrPath, mode: OpenBinaryModeWriting, buffering: Literal[-1, 1] = -1) -> BufferedWriter: ...

    @overload
    def open(self, path: StrPath, mode: OpenBinaryModeUpdating, buffering: Literal[-1, 1] = -1) -> BufferedRandom: ...

    @overload
    def open(
        self, path: StrPath, mode: str, buffering: int = -1, encoding: str | None = None, errors: str | None = None,
        newline: str | None = None,
    ) -> Any: ...  # fmt: skip

    def open(
        self,
        path: StrPath,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """The builtin open for a file of the union: the same modes and file objects, but no descriptor
        (fileno() raises io.UnsupportedOperation). Closing the union first closes files that are open for writing.
        Raises: ENOENT, EEXIST, EISDIR, EROFS, EACCES; ENXIO for a fifo, socket or device."""
        wanted = files.parse_mode(mode)
        files.check_arguments(wanted, buffering, encoding, errors, newline)
        with self._call(path) as walk:
            nodeid = walk.keep(files.open_node(walk, path, wanted, maker))
            raw = files.RawFile(self._guard, nodeid, path, wanted)
        try:
            opened: IO[Any] = files.wrap(raw, wanted, buffering, encoding, errors, newline)
        except BaseException:
            raw.close()
            raise
        if wanted.writing:
            self._written = {file for file in self._written if not file.closed}
            self._written.add(opened)
        return opened

    def read_bytes(self, path: StrPath) -> bytes:
        """The content of a file."""
        with self.open(path, "rb", 0) as file:
            return file.readall()

    def read_text(self, path: StrPath, encoding: str | None = None, errors: str | None = None) -> str:
        """The content of a file as text."""
        with self.open(path, "r", -1, encoding, errors) as file:
            return file.read()


def maker() -> Caller:
    """This process with its umask, as the caller that creates objects."""
    return Caller(os.geteuid(), os.getegid(), os.getpid(), _umask())


def _umask() -> int:
    """Read the umask without changing it, since other threads make files with it (proc(5))."""
    with open("/proc/thread-self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o077


def stat_result(attrs: Attrs) -> os.stat_result:
    """The attributes as an os.stat_result."""
    seconds = [ns / 1e9 for ns in (attrs.atime_ns, attrs.mtime_ns, attrs.ctime_ns)]
    whole = [ns // 1_000_000_000 for ns in (attrs.atime_ns, attrs.mtime_ns, attrs.ctime_ns)]
    return os.stat_result(
        (attrs.mode, attrs.ino, 0, attrs.nlink, attrs.uid, attrs.gid, attrs.size, *whole),
        {
            "st_atime": seconds[0],
            "st_mtime": seconds[1],
            "st_ctime": seconds[2],
            "st_atime_ns": attrs.atime_ns,
            "st_mtime_ns": attrs.mtime_ns,
            "st_ctime_ns": attrs.ctime_ns,
            "st_blksize": attrs.blksize,
            "st_blocks": attrs.blocks,
            "st_rdev": attrs.rdev,
        },
    )
