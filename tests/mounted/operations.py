"""A random but repeatable sequence of system calls, and what came of each: the same for every directory it runs in.

`generate(seed, count)` knows nothing of results, so both sides of a comparison do exactly the same. `run` does them in
the current directory and tells each result as a text without anything that may differ between two correct filesystems:
no inode numbers, no sizes of directories, no times but those that were set.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from tests.mounted.libc import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    fallocate,
    renameat2,
)

_NAMES: Final = ("a", "b", "c", "d", "e")
_SLOTS: Final = 6
_MAX_SIZE: Final = 40_000
_SET_TIMES_END_NS: Final = 10**9 * 10**9
"""Times that are set lie before this (2001), times that are taken from the clock after it."""


class Operation(NamedTuple):
    """One call: the name of a method of Runner, and its arguments."""

    call: str
    args: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.call}({', '.join(map(repr, self.args))})"


def random_tree(seed: int) -> str:
    """A tree, as trees.parse takes it, over the names that the operations use, in the directory `top`."""
    dice = random.Random(f"tree {seed}")
    kinds: dict[str, str] = {}
    for _ in range(60):
        path = _path(dice)
        parents = ["/".join(path.split("/")[:depth]) for depth in range(1, path.count("/") + 1)]
        if path in kinds or any(kinds.get(parent, "dir") != "dir" for parent in parents):
            continue
        kinds.update(dict.fromkeys(parents, "dir"))
        kinds[path] = dice.choice(("dir", "dir", "file", "file", "file", "large", "link", "fifo", "hard"))
    words: list[str] = []
    files: list[str] = []
    for path, kind in kinds.items():
        if kind == "hard" and files:
            words.append(f"{path}=={dice.choice(files)}")
        elif kind == "dir":
            words.append(f"{path}/:{dice.choice(('755', '700', '777'))}")
        elif kind == "link":
            words.append(f"{path}->{dice.choice((*_NAMES, 'a/b', '../c', 'nowhere'))}")
        elif kind == "fifo":
            words.append(f"{path}|")
        else:
            files.append(path)
            words.append(f"{path}~{dice.randrange(9_000, _MAX_SIZE)}" if kind == "large" else f"{path}:640={path}")
    return " ".join(f"top/{word}".replace("==", "==top/") for word in words) or "top/"


def generate(seed: int, count: int, *, with_fallocate: bool) -> list[Operation]:
    """`count` operations. `with_fallocate`: also what not every transport can carry."""
    dice = random.Random(f"operations {seed}")
    weights = {name: weight for name, weight in _WEIGHTS.items() if with_fallocate or name != "fallocate"}
    calls = dice.choices(list(weights), list(weights.values()), k=count)
    return [Operation(call, _ARGUMENTS[call](dice)) for call in calls]


def _path(dice: random.Random) -> str:
    return "/".join(dice.choices(_NAMES, k=dice.choice((1, 1, 1, 2, 2, 3))))


def _slot(dice: random.Random) -> int:
    return dice.randrange(_SLOTS)


def _range(dice: random.Random) -> tuple[int, int]:
    return dice.randrange(_MAX_SIZE), dice.choice((0, 1, 100, 5_000, 20_000))


def _flags(dice: random.Random) -> int:
    flags = dice.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR))
    for extra, chance in ((os.O_CREAT, 0.5), (os.O_TRUNC, 0.15), (os.O_APPEND, 0.15), (os.O_EXCL, 0.1)):
        flags |= extra if dice.random() < chance else 0
    extra = dice.choice((0, 0, 0, os.O_NOFOLLOW, os.O_DIRECTORY))
    return flags if extra == os.O_DIRECTORY and flags & os.O_CREAT else flags | extra


def _time(dice: random.Random) -> int:
    return dice.randrange(-(10**18), _SET_TIMES_END_NS)


_ARGUMENTS: Final[dict[str, Callable[[random.Random], tuple[Any, ...]]]] = {
    "open": lambda d: (_slot(d), _path(d), _flags(d), d.choice((0o644, 0o600, 0o755, 0o444))),
    "close": lambda d: (_slot(d),),
    "pread": lambda d: (_slot(d), *_range(d)),
    "pwrite": lambda d: (_slot(d), *_range(d), d.randrange(256)),
    "read": lambda d: (_slot(d), d.randrange(3_000)),
    "write": lambda d: (_slot(d), d.randrange(3_000), d.randrange(256)),
    "lseek": lambda d: (_slot(d), d.randrange(-100, _MAX_SIZE), d.choice((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END))),
    "ftruncate": lambda d: (_slot(d), d.randrange(_MAX_SIZE)),
    "fstat": lambda d: (_slot(d),),
    "fchmod": lambda d: (_slot(d), d.choice((0o600, 0o644, 0o755))),
    "fsync": lambda d: (_slot(d),),
    "fallocate": lambda d: (
        _slot(d),
        d.choice((0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE)),
        *_range(d),
    ),
    "copy": lambda d: (_slot(d), _slot(d), *_range(d), d.randrange(_MAX_SIZE)),
    "map_write": lambda d: (_slot(d), d.randrange(_MAX_SIZE), d.randrange(1, 3_000), d.randrange(256)),
    "whole": lambda d: (_slot(d),),
    "stat": lambda d: (_path(d),),
    "lstat": lambda d: (_path(d),),
    "content": lambda d: (_path(d),),
    "truncate": lambda d: (_path(d), d.randrange(_MAX_SIZE)),
    "mkdir": lambda d: (_path(d), d.choice((0o755, 0o700, 0o700, 0o555))),
    "rmdir": lambda d: (_path(d),),
    "unlink": lambda d: (_path(d),),
    "rename": lambda d: (_path(d), _path(d), d.choice((0, 0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE))),
    "link": lambda d: (_path(d), _path(d)),
    "symlink": lambda d: (d.choice((*_NAMES, "a/b", "../a", "nowhere")), _path(d)),
    "readlink": lambda d: (_path(d),),
    "mkfifo": lambda d: (_path(d),),
    "chmod": lambda d: (_path(d), d.choice((0o755, 0o700, 0o644, 0o600, 0o777, 0o4755, 0o555, 0o500, 0o000))),
    "utime": lambda d: (_path(d), _time(d), _time(d)),
    "setxattr": lambda d: (
        _path(d),
        d.choice("xyz"),
        d.randrange(500),
        d.choice((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)),
    ),
    "getxattr": lambda d: (_path(d), d.choice("xyz")),
    "listxattr": lambda d: (_path(d),),
    "removexattr": lambda d: (_path(d), d.choice("xyz")),
    "listdir": lambda d: (d.choice((".", _path(d))),),
    "same_file": lambda d: (_path(d), _path(d)),
    "remove_all": lambda d: (_path(d),),
}

_WEIGHTS: Final = dict.fromkeys(_ARGUMENTS, 2) | {
    "open": 12, "close": 4, "pread": 5, "pwrite": 6, "write": 4, "fstat": 4, "whole": 4, "lstat": 5, "stat": 3,
    "mkdir": 6, "unlink": 5, "rename": 10, "link": 5, "listdir": 5, "content": 4, "remove_all": 1, "fsync": 1,
}  # fmt: skip


def run(operations: list[Operation]) -> list[str]:
    """As a job: do `operations` in the current directory; what came of each."""
    runner = Runner()
    told = []
    for operation in operations:
        try:
            told.append(repr(getattr(runner, operation.call)(*operation.args)))
        except OSError as failure:
            said = errno.errorcode[failure.errno or 0]
            # rename(2) names both for a directory that is not empty; xfs says the other one.
            plainly = operation.call == "rename" and operation.args[2] == 0
            told.append("ENOTEMPTY" if plainly and said == "EEXIST" else said)
    return told


class Runner:
    """One method for each kind of operation. An empty slot answers EBADF, as a closed descriptor would."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}  # slot -> descriptor; changed by open and close only

    def open(self, slot: int, path: str, flags: int, mode: int) -> None:
        with suppress(OSError):
            self.close(slot)
        # O_NONBLOCK, or a fifo would wait for its other end.
        self._fds[slot] = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)

    def close(self, slot: int) -> None:
        fd = self._fd(slot)
        del self._fds[slot]
        os.close(fd)

    def pread(self, slot: int, offset: int, size: int) -> bytes:
        return os.pread(self._fd(slot), size, offset)

    def pwrite(self, slot: int, offset: int, size: int, byte: int) -> int:
        return os.pwrite(self._fd(slot), bytes([byte]) * size, offset)

    def read(self, slot: int, size: int) -> bytes:
        return os.read(self._file(slot), size)

    def write(self, slot: int, size: int, byte: int) -> int:
        return os.write(self._file(slot), bytes([byte]) * size)

    def lseek(self, slot: int, offset: int, whence: int) -> int:
        return os.lseek(self._file(slot), offset, whence)

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self._fd(slot), size)

    def fstat(self, slot: int) -> tuple[object, ...]:
        return _tell(os.fstat(self._fd(slot)))

    def fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self._fd(slot), mode)

    def fsync(self, slot: int) -> None:
        os.fsync(self._fd(slot))

    def fallocate(self, slot: int, mode: int, offset: int, length: int) -> None:
        fallocate(self._fd(slot), mode, offset, length)

    def copy(self, source: int, target: int, offset: int, size: int, target_offset: int) -> int:
        """copy_file_range(2) until done: how much one call copies is up to the filesystem."""
        done = 0
        while done < size:
            moved = os.copy_file_range(
                self._file(source),
                self._file(target),
                size - done,
                offset_src=offset + done,
                offset_dst=target_offset + done,
            )
            if moved == 0:
                break
            done += moved
        return done

    def map_write(self, slot: int, offset: int, size: int, byte: int) -> int:
        fd = self._file(slot)
        length = os.fstat(fd).st_size
        if length == 0:
            return 0
        with mmap.mmap(fd, length, mmap.MAP_SHARED) as memory:
            part = min(size, max(0, length - offset))
            memory[offset : offset + part] = bytes([byte]) * part
            return part

    def whole(self, slot: int) -> bytes:
        return os.pread(self._file(slot), 1 << 20, 0)

    def stat(self, path: str) -> tuple[object, ...]:
        return _tell(os.stat(path))

    def lstat(self, path: str) -> tuple[object, ...]:
        return _tell(os.lstat(path))

    def content(self, path: str) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.read(fd, 1 << 20)
        finally:
            os.close(fd)

    def truncate(self, path: str, size: int) -> None:
        os.truncate(path, size)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rename(self, old: str, new: str, flags: int) -> None:
        renameat2(old, new, flags)

    def link(self, old: str, new: str) -> None:
        os.link(old, new)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, path)

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def mkfifo(self, path: str) -> None:
        os.mkfifo(path)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def utime(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def setxattr(self, path: str, name: str, size: int, flags: int) -> None:
        os.setxattr(path, f"user.{name}", b"v" * size, flags)

    def getxattr(self, path: str, name: str) -> bytes:
        return os.getxattr(path, f"user.{name}")

    def listxattr(self, path: str) -> list[str]:
        return sorted(os.listxattr(path))

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(path, f"user.{name}")

    def listdir(self, path: str) -> list[tuple[str, bool, bool]]:
        with os.scandir(path) as entries:
            return sorted((each.name, each.is_symlink(), each.is_dir(follow_symlinks=False)) for each in entries)

    def same_file(self, one: str, two: str) -> bool:
        return os.path.samestat(os.lstat(one), os.lstat(two))

    def remove_all(self, path: str) -> int:
        """rm -rf, by hand, so that what it does is part of the comparison."""
        removed = 0
        for name in sorted(os.listdir(path)):
            below = f"{path}/{name}"
            if stat.S_ISDIR(os.lstat(below).st_mode):
                removed += self.remove_all(below)
            else:
                os.unlink(below)
                removed += 1
        os.rmdir(path)
        return removed + 1

    def _fd(self, slot: int) -> int:
        if slot not in self._fds:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._fds[slot]

    def _file(self, slot: int) -> int:
        """The slot's descriptor if it is a regular file; others have no content to compare."""
        fd = self._fd(slot)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))
        return fd


def _tell(status: os.stat_result) -> tuple[object, ...]:
    is_dir = stat.S_ISDIR(status.st_mode)
    return (
        oct(status.st_mode), status.st_uid, status.st_gid,
        "" if is_dir else status.st_nlink, "" if is_dir else status.st_size,
        status.st_mtime_ns if status.st_mtime_ns < _SET_TIMES_END_NS else "now",
    )  # fmt: skip
