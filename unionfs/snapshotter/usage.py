"""Measure the disk usage of a directory tree of any depth, without following symlinks or entering other mounts."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final

from unionfs.snapshotter.values import Usage
from unionfs.syscalls import files
from unionfs.trees.open_beneath import open_beneath

_BLOCK: Final = 512  # of st_blocks (inode(7))


def disk_usage(path: str) -> Usage:
    """Return bytes and inodes of the tree at `path`, itself included. A file with several names counts once.

    The tree may change meanwhile: an entry that has vanished when it is read does not count.
    """
    root_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        blocks, inodes = os.fstat(root_fd).st_blocks, 1
        linked: set[int] = set()
        waiting = [b""]
        while waiting:
            rel = waiting.pop()
            for name, found in _listed(root_fd, rel):
                if stat.S_ISDIR(found.st_mode):
                    waiting.append(rel + b"/" + name if rel else name)
                elif found.st_nlink > 1:
                    if found.st_ino in linked:
                        continue
                    linked.add(found.st_ino)
                blocks += found.st_blocks
                inodes += 1
    finally:
        os.close(root_fd)
    return Usage(blocks * _BLOCK, inodes)


def _listed(root_fd: int, rel: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield the entries of one directory with their attributes."""
    try:
        fd = open_beneath(root_fd, rel, os.O_RDONLY | os.O_DIRECTORY, files.RESOLVE_NO_XDEV)
    except OSError:
        return  # vanished, no directory any more, or another mount: not counted
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    yield os.fsencode(entry.name), entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
    finally:
        os.close(fd)
