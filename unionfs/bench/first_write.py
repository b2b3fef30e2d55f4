"""Time one first write in the child process that makes it, and count the bytes that the system wrote for it.

The time is all that a program waits for: opening, changing and closing. Systems that copy instead of copying up do so
within that time.

Bytes are counted on the file in the upper: its extents that are not shared with another file (FIEMAP), or its blocks if
the filesystem lists no extents. They are not derived from sizes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from unionfs.bench import cases
from unionfs.bench.cases import COLD, Point
from unionfs.syscalls import extents, files

_BLOCK: Final = 4096
_RECORD: Final = 64 << 10  # bytes of one write(2) in sequence
_READ: Final = 1 << 20
_ATTRIBUTE: Final = "user.bench"
_NEW: Final = ".new"  # suffix of a renamed file
_NARROW: Final = 128 << 10  # bytes that `cp --reflink=never` reads at once

Fetch = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Target:
    """The directories of one mounted system that a first write uses."""

    lower: Path  # the lower that holds the file, to warm it up or cool it down
    merged: Path  # where the file is changed
    upper: Path  # where written data are stored
    fetch: Fetch | None = None  # copies a file or a tree first; only systems that copy
    second: Path | None = None  # another mount of the same lower, for series about sharing


def act(target: Target, point: Point, cache: str, *, count: bool) -> dict[str, Any]:
    """Make one first write; return {ns: how long it took, again_ns: a repetition, bytes: written, None if not counted}.

    Raises: OSError as the system answers.
    """
    lower, merged = os.fspath(target.lower / point.path), os.fspath(target.merged / point.path)
    if point.trigger == cases.SHARED:
        assert target.second is not None
        second = os.fspath(target.second / point.path)
        if target.fetch is not None:
            target.fetch(lower, merged)
            target.fetch(lower, second)
            _cool_down(second)  # writing the copy has left its pages in the cache
        return {"resident": _resident_share(merged, second)}
    for path in _files_of(lower):
        (_cool_down if cache == COLD else _warm_up)(path)
    change = _change_of(point)
    if point.trigger == cases.READ_AFTER:
        if target.fetch is not None:
            target.fetch(lower, merged)
            target = replace(target, fetch=None)
        _write_at_random(merged, point.x)
        _cool_down(merged)
    began = time.perf_counter_ns()
    if target.fetch is not None:
        Path(merged).parent.mkdir(parents=True, exist_ok=True)
        target.fetch(lower, merged)
    change(merged)
    took = time.perf_counter_ns() - began
    found: dict[str, Any] = {"ns": took, "bytes": None}
    if point.trigger in _REPEATABLE:
        began = time.perf_counter_ns()
        change(merged)
        found["again_ns"] = time.perf_counter_ns() - began
    if count:
        end = _NEW if point.trigger == cases.RENAME else ""
        found["bytes"] = _written(os.fspath(target.upper / point.path) + end)
    return found


def make_first_change(path: Path) -> None:
    """Change a file, so that a daemon has finished its start and made its directories before anything is measured."""
    _append(os.fspath(path))


# -- triggers ----------------------------------------------------------------------------------------------------------


def _append(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, b"x")
    finally:
        os.close(fd)


def _middle(path: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        size = os.fstat(fd).st_size
        os.pwrite(fd, b"x" * _BLOCK, size // 2 // _BLOCK * _BLOCK)
    finally:
        os.close(fd)


def _synced(path: str) -> None:
    _middle(path)
    fd = os.open(path, os.O_WRONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _truncate(path: str) -> None:
    os.truncate(path, os.stat(path).st_size // 2)


def _chmod(path: str) -> None:
    os.chmod(path, 0o600)


def _chown(path: str) -> None:
    """Give the file to its present owner: no privilege is needed, and it is copied up all the same."""
    st = os.stat(path)
    os.chown(path, st.st_uid, st.st_gid)


def _setxattr(path: str) -> None:
    os.setxattr(path, _ATTRIBUTE, b"1")


def _rename(path: str) -> None:
    os.rename(path, path + _NEW)


def _link(path: str) -> None:
    os.link(path, path + _NEW)


def _chmod_tree(top: str) -> None:
    """Change modes as `chmod -R` does."""
    os.chmod(top, 0o700)
    for directory, below, names in os.walk(top):
        for name in below:
            os.chmod(f"{directory}/{name}", 0o700)
        for name in names:
            os.chmod(f"{directory}/{name}", 0o600)


def _chown_tree(top: str) -> None:
    """Give a tree to its present owner, as `chown -R` does."""
    _chown(top)
    for directory, below, names in os.walk(top):
        for name in (*below, *names):
            _chown(f"{directory}/{name}")


def _write_at_random(path: str, percent: float) -> None:
    """Write a share of a file's blocks, each once, in the same random order every time."""
    fd = os.open(path, os.O_WRONLY)
    try:
        blocks = os.fstat(fd).st_size // _BLOCK
        chosen = random.Random(1).sample(range(blocks), max(1, int(blocks * percent / 100)))
        for block in chosen:
            os.pwrite(fd, b"x" * _BLOCK, block * _BLOCK)
    finally:
        os.close(fd)


def _write_in_sequence(path: str, percent: float) -> None:
    """Write a share of a file from its start."""
    fd = os.open(path, os.O_WRONLY)
    try:
        for at in range(0, max(1, int(os.fstat(fd).st_size * percent / 100)), _RECORD):
            os.pwrite(fd, b"x" * _RECORD, at)
    finally:
        os.close(fd)


def _read(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        while os.read(fd, _READ):
            pass
    finally:
        os.close(fd)


def _change_of(point: Point) -> Callable[[str], None]:
    by_share = {cases.RANDOM: _write_at_random, cases.SEQUENTIAL: _write_in_sequence}.get(point.trigger)
    return _CHANGES[point.trigger] if by_share is None else partial(by_share, percent=point.x)


def _append_tree(top: str) -> None:
    for directory, _, names in os.walk(top):
        for name in names:
            _append(f"{directory}/{name}")


_CHANGES: Final[dict[str, Callable[[str], None]]] = {
    cases.APPEND: _append,
    cases.MIDDLE: _middle,
    cases.SYNCED: _synced,
    cases.TRUNCATE: _truncate,
    cases.CHMOD: _chmod,
    cases.CHOWN: _chown,
    cases.SETXATTR: _setxattr,
    cases.RENAME: _rename,
    cases.LINK: _link,
    cases.CHMOD_TREE: _chmod_tree,
    cases.APPEND_TREE: _append_tree,
    cases.CHOWN_TREE: _chown_tree,
    cases.READ_AFTER: _read,
}
_REPEATABLE: Final = (cases.APPEND, cases.MIDDLE, cases.SYNCED)


# -- copies instead of copy-up -----------------------------------------------------------------------------------------


def copy(src: str, dst: str) -> None:
    """Copy a file or a tree as `cp -p --reflink=auto` does where there are no reflinks: copy_file_range(2) between the
    holes. Without the start of a process."""
    _copy_each(src, dst, _copy_data)


def reflink(src: str, dst: str) -> None:
    """Copy a file or a tree as `cp -p --reflink=always` does."""
    _copy_each(src, dst, lambda source, target, _: files.ficlone(target, source))


def copy_apart(src: str, dst: str) -> None:
    """Copy as `cp -p --reflink=never` does: copy_file_range(2) would share data if the filesystem can."""
    _copy_each(src, dst, _read_write_data)


def cp(src: str, dst: str) -> None:
    """Copy a file or a tree by the command."""
    subprocess.run(["cp", "-rp", "--reflink=auto", "-T", "--", src, dst], check=True, capture_output=True)


def _copy_each(src: str, dst: str, data: Callable[[int, int, int], None]) -> None:
    if os.path.isdir(src):
        os.makedirs(dst, exist_ok=True)
        for entry in os.scandir(src):
            _copy_each(entry.path, f"{dst}/{entry.name}", data)
        return
    source = os.open(src, os.O_RDONLY)
    st = os.fstat(source)
    target = os.open(dst, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        data(source, target, st.st_size)
        os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))
        if os.geteuid() == 0:
            os.fchown(target, st.st_uid, st.st_gid)
        os.fchmod(target, st.st_mode & 0o7777)
    finally:
        os.close(source)
        os.close(target)


def _copy_data(source: int, target: int, size: int) -> None:
    for start, end in _data(source, size):
        at = start
        while at < end:
            moved = os.copy_file_range(source, target, end - at, at, at)
            if moved == 0:
                break
            at += moved
    os.ftruncate(target, size)


def _read_write_data(source: int, target: int, size: int) -> None:
    for start, end in _data(source, size):
        at = start
        while at < end:
            data = os.pread(source, min(_NARROW, end - at), at)
            if not data:
                break
            at += os.pwrite(target, data, at)
    os.ftruncate(target, size)


def _data(source: int, size: int) -> list[tuple[int, int]]:
    """The (start, end) of the data between the holes."""
    found = []
    at = 0
    while at < size:
        try:
            start = os.lseek(source, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(source, start, os.SEEK_HOLE)
        found.append((start, at))
    return found


# -- caches and counts -------------------------------------------------------------------------------------------------


def _files_of(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    return [f"{directory}/{name}" for directory, _, names in os.walk(path) for name in names]


def _warm_up(path: str) -> None:
    """Read the data of a file, holes left out."""
    fd = os.open(path, os.O_RDONLY)
    try:
        for start, end in _data(fd, os.fstat(fd).st_size):
            for at in range(start, end, _READ):
                os.pread(fd, _READ, at)
    finally:
        os.close(fd)


def _cool_down(path: str) -> None:
    """Drop the clean pages of this file alone from the page cache (posix_fadvise, POSIX_FADV_DONTNEED)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _written(path: str) -> int:
    """Count the bytes of data in a file or a tree of the upper, without those that are shared with the lower.

    A system may copy a file with several names up under another name: then the file under that name counts.
    """
    names = _files_of(path) if os.path.lexists(path) else _files_of(os.path.dirname(path))
    total = 0
    seen = set()
    for name in names:
        fd = os.open(name, os.O_RDONLY)
        try:
            if (ino := os.fstat(fd).st_ino) not in seen:
                seen.add(ino)
                total += extents.own_bytes(fd)
        finally:
            os.close(fd)
    return total


def _resident_share(first: str, second: str) -> float:
    """Read a file through the mount `first`; return which share of it `second`, another mount of the same lower, then
    has in the page cache (mincore(2))."""
    _warm_up(first)
    fd = os.open(second, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        # Private and writable, since ctypes takes addresses of writable buffers only; nothing is written.
        with mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as whole:
            return _mincore(whole, size)
    finally:
        os.close(fd)


def _mincore(whole: mmap.mmap, size: int) -> float:
    libc = ctypes.CDLL(None, use_errno=True)
    pages = -(-size // mmap.PAGESIZE)
    seen = (ctypes.c_ubyte * pages)()
    first = ctypes.c_char.from_buffer(whole)
    try:
        if libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), seen) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        del first  # the mapping cannot be closed while a pointer into it exists
    return sum(page & 1 for page in seen) / pages
