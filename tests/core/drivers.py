"""One set of verbs over paths, so that the same test can drive a plain directory and a Union.

Paths are relative to the root, bytes or str; b"" is the root. Every verb raises OSError as the system call it is named
after. What the kernel decides by itself before a filesystem is asked (reading a fifo, changing the mode of a symlink)
is decided here, once for both.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from unionfs.core.attrs import Attrs

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
"""Flags of renameat2(2)."""

Path = bytes | str


def split(path: Path) -> list[bytes]:
    """The names of a path."""
    return [name for name in os.fsencode(path).split(b"/") if name]


def errno_of(act: Callable[[], object]) -> int:
    """The errno that `act` fails with, 0 if it does not. The exception goes at once, with all its traceback holds."""
    try:
        act()
    except OSError as exc:
        return exc.errno or -1
    return 0


def refuse(code: int, path: Path) -> OSError:
    return OSError(code, os.strerror(code), os.fsdecode(path))


class Driver(ABC):
    """The verbs. Handles are numbers of the driver's own; what they name stays usable after it lost its last name."""

    # -- looking --

    @abstractmethod
    def stat(self, path: Path) -> Attrs: ...

    @abstractmethod
    def listing(self, path: Path) -> dict[bytes, tuple[int, int]]:
        """Name -> (S_IFMT bits, d_ino), without "." and ".."."""

    @abstractmethod
    def readlink(self, path: Path) -> bytes: ...

    @abstractmethod
    def read(self, path: Path, offset: int = 0, size: int = 1 << 20) -> bytes: ...

    @abstractmethod
    def lseek(self, path: Path, offset: int, whence: int) -> int: ...

    @abstractmethod
    def getxattr(self, path: Path, name: bytes) -> bytes: ...

    @abstractmethod
    def listxattr(self, path: Path) -> list[bytes]: ...

    # -- changing what exists --

    @abstractmethod
    def write(self, path: Path, offset: int, data: bytes) -> int: ...

    @abstractmethod
    def truncate(self, path: Path, size: int) -> None: ...

    @abstractmethod
    def fallocate(self, path: Path, mode: int, offset: int, length: int) -> None: ...

    @abstractmethod
    def copy_file_range(self, src: Path, src_offset: int, dst: Path, dst_offset: int, length: int) -> int: ...

    @abstractmethod
    def chmod(self, path: Path, perm: int) -> None: ...

    @abstractmethod
    def chown(self, path: Path, uid: int, gid: int) -> None: ...

    @abstractmethod
    def utime(self, path: Path, atime_ns: int, mtime_ns: int) -> None: ...

    @abstractmethod
    def setxattr(self, path: Path, name: bytes, value: bytes, flags: int = 0) -> None: ...

    @abstractmethod
    def removexattr(self, path: Path, name: bytes) -> None: ...

    # -- making, naming, removing --

    @abstractmethod
    def create(self, path: Path, perm: int = 0o644) -> None: ...

    @abstractmethod
    def mknod(self, path: Path, mode: int, rdev: int = 0) -> None: ...

    @abstractmethod
    def mkdir(self, path: Path, perm: int = 0o755) -> None: ...

    @abstractmethod
    def symlink(self, path: Path, target: bytes) -> None: ...

    @abstractmethod
    def link(self, old: Path, new: Path) -> None: ...

    @abstractmethod
    def unlink(self, path: Path) -> None: ...

    @abstractmethod
    def rmdir(self, path: Path) -> None: ...

    @abstractmethod
    def rename(self, old: Path, new: Path, flags: int = 0) -> None: ...

    # -- open files --

    @abstractmethod
    def open(self, path: Path) -> int: ...

    @abstractmethod
    def tmpfile(self, directory: Path, perm: int = 0o600) -> int: ...

    @abstractmethod
    def link_handle(self, handle: int, new: Path) -> None: ...

    @abstractmethod
    def fstat(self, handle: int) -> Attrs: ...

    @abstractmethod
    def pread(self, handle: int, offset: int, size: int) -> bytes: ...

    @abstractmethod
    def pwrite(self, handle: int, offset: int, data: bytes) -> int: ...

    @abstractmethod
    def ftruncate(self, handle: int, size: int) -> None: ...

    @abstractmethod
    def close(self, handle: int) -> None: ...

    # -- shared --

    def names(self, path: Path) -> dict[bytes, int]:
        """Name -> S_IFMT bits, without "." and ".."."""
        return {name: kind for name, (kind, _) in self.listing(path).items()}

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Nothing changes in this context, so a path may be resolved once for many questions."""
        yield

    def put(self, path: Path, data: bytes, perm: int = 0o644) -> None:
        """Make a file holding `data`."""
        self.create(path, perm)
        if data:
            self.write(path, 0, data)

    def exists(self, path: Path) -> bool:
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        return True

    def mode(self, path: Path) -> int:
        return self.stat(path).mode

    def want_file(self, path: Path) -> None:
        """Data belongs to regular files: EISDIR for a directory, EINVAL for what is neither (open(2), truncate(2))."""
        kind = stat.S_IFMT(self.mode(path))
        if kind != stat.S_IFREG:
            raise refuse(errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL, path)

    def want_mode(self, path: Path) -> None:
        """A symlink has no mode of its own: EOPNOTSUPP (fchmodat2(2))."""
        if stat.S_ISLNK(self.mode(path)):
            raise refuse(errno.EOPNOTSUPP, path)
