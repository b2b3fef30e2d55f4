"""Many processes at once on one tree: jobs for test_stress. Knows directories and system calls, no mounts.

Workers have a directory each, so what comes of their calls does not depend on the others: it is compared with a plain
directory. Meddlers share one directory and get in each other's way: of theirs only the errnos that a race can have are
accepted, and what they leave must be a sound tree.
"""

from __future__ import annotations

import errno
import os
import pickle
import random
import stat
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress

from tests.mounted import operations
from tests.mounted.checking import read_fd
from tests.mounted.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

SHARED = "shared"
_NAMES = ("a", "b", "c", "d")
_OF_RACES = {
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, errno.EPERM),
    *(errno.ELOOP, errno.ENODATA, errno.ENXIO, errno.EXDEV, errno.EMLINK),
}
"""Of two calls at once on the same names one may come too late. Nothing else is an excuse: no EIO, no ESTALE."""


def worker_dir(number: int) -> str:
    return f"worker{number}"


def together(seed: int, workers: int, meddlers: int, count: int, with_fallocate: bool) -> list[list[str]]:
    """As a job: all of them at once in the current directory; what came of each worker's calls.

    Raises: AssertionError with the story of a process that failed.
    """
    jobs: list[Callable[[], list[str]]] = []
    for number in range(workers):
        calls = operations.generate(seed + number, count, with_fallocate=with_fallocate)
        jobs.append(lambda number=number, calls=calls: _work(number, calls))  # type: ignore[misc]
    jobs += [lambda number=number: _meddle(random.Random(f"{seed} {number}"), count) for number in range(meddlers)]  # type: ignore[misc]
    return _in_processes(jobs)[:workers]


def _in_processes(jobs: Sequence[Callable[[], list[str]]]) -> list[list[str]]:
    readers = []
    for job in jobs:
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(reader)
            try:
                outcome: list[str] | str = job()
            except BaseException:  # noqa: BLE001 - the story is the result
                outcome = traceback.format_exc()
            with open(writer, "wb") as pipe:
                pickle.dump(outcome, pipe)
            os._exit(0)
        os.close(writer)
        readers.append(reader)
    outcomes = [pickle.loads(read_fd(reader)) for reader in readers]
    for _ in jobs:
        os.wait()
    for outcome in outcomes:
        assert isinstance(outcome, list), outcome
    return outcomes


def _work(number: int, calls: list[operations.Operation]) -> list[str]:
    os.chdir(f"{worker_dir(number)}/top")
    return operations.run(calls)


def _meddle(dice: random.Random, count: int) -> list[str]:
    os.chdir(SHARED)
    for _ in range(count):
        call = dice.choice(_MEDDLING)
        try:
            call(dice)
        except OSError as failure:
            if failure.errno not in _OF_RACES:
                raise AssertionError(f"{call.__name__}: {failure!r}") from failure
    return []


def _path(dice: random.Random) -> str:
    return "/".join(dice.choices(_NAMES, k=dice.choice((1, 1, 2, 2, 3))))


def _create(dice: random.Random) -> None:
    fd = os.open(_path(dice), os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | dice.choice((0, os.O_EXCL, os.O_TRUNC)), 0o644)
    try:
        data = bytes([dice.randrange(256)]) * dice.randrange(1, 9000)
        os.write(fd, data)
        os.fstat(fd)
        os.ftruncate(fd, dice.randrange(9000))
        os.pread(fd, 9000, 0)
    finally:
        os.close(fd)


def _mkdir(dice: random.Random) -> None:
    os.mkdir(_path(dice))


def _remove(dice: random.Random) -> None:
    path = _path(dice)
    try:
        os.unlink(path)
    except IsADirectoryError:
        os.rmdir(path)


def _rename(dice: random.Random) -> None:
    renameat2(_path(dice), _path(dice), dice.choice((0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE)))


def _link(dice: random.Random) -> None:
    os.link(_path(dice), _path(dice), follow_symlinks=False)


def _symlink(dice: random.Random) -> None:
    os.symlink(dice.choice(("a", "../b", "nowhere")), _path(dice))


def _attributes(dice: random.Random) -> None:
    path = _path(dice)
    os.chmod(path, dice.choice((0o755, 0o700, 0o777)))
    os.utime(path, (1, 1))
    os.setxattr(path, "user.x", b"%d" % dice.randrange(100))
    os.listxattr(path)


def _list(dice: random.Random) -> None:
    """Look at everything that a directory lists; it may have gone meanwhile, but never come twice."""
    path = dice.choice((".", _path(dice)))
    with os.scandir(path) as entries:
        listed = list(entries)
    assert len({entry.name for entry in listed}) == len(listed), [entry.name for entry in listed]
    for entry in listed:
        with suppress(FileNotFoundError):
            entry.stat(follow_symlinks=False)


def _hold(dice: random.Random) -> None:
    """Keep a file open over what others do to its name: the descriptor leads to the same file all the time."""
    fd = os.open(_path(dice), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        number = os.fstat(fd).st_ino
        for _ in range(5):
            with suppress(OSError):
                _rename(dice)
            status = os.fstat(fd)
            assert status.st_ino == number
            if stat.S_ISREG(status.st_mode):
                os.pread(fd, 100, 0)
    finally:
        os.close(fd)


_MEDDLING: Sequence[Callable[[random.Random], None]] = (
    _create, _create, _mkdir, _mkdir, _remove, _remove, _rename, _rename, _link, _symlink, _attributes, _list, _hold,
)  # fmt: skip


def problems(top: str) -> list[str]:
    """As a job: what is not sound in a tree: names that are listed but not there, link counts that are too small."""
    found: list[str] = []
    names: dict[int, tuple[int, int]] = {}
    for directory, below, files in os.walk(top):
        for name in (*below, *files):
            path = os.path.join(directory, name)
            try:
                status = os.lstat(path)
            except OSError as failure:
                found.append(f"{path}: is listed: {failure}")
                continue
            if not stat.S_ISDIR(status.st_mode):
                count, _ = names.get(status.st_ino, (0, 0))
                names[status.st_ino] = (count + 1, status.st_nlink)
    return found + [
        f"inode {ino}: {nlink} links, {count} names" for ino, (count, nlink) in names.items() if count != nlink
    ]
