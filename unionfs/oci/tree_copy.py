"""Copy a small tree into a new filesystem, with owners, modes, times and extended attributes (tmpcopyup)."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat


def copy_tree(source_fd: int, target: str) -> None:
    """Copy the content of the directory `source_fd` into the directory `target`. Raises: OSError.

    Sockets are left out. Mountpoints in it are copied with the mounted files. Preconditions: no process changes either
    directory.
    """
    with os.scandir(source_fd) as found:
        names = [entry.name for entry in found]
    for name in names:
        _copy(source_fd, name, os.path.join(target, name))
    status = os.fstat(source_fd)
    os.chown(target, status.st_uid, status.st_gid)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy(directory: int, name: str, target: str) -> None:
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFLNK:
        os.symlink(os.readlink(name, dir_fd=directory), target)
        os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
        return
    if kind == stat.S_IFSOCK:
        return
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        os.mknod(target, status.st_mode, status.st_rdev)
        os.chown(target, status.st_uid, status.st_gid)
        os.chmod(target, stat.S_IMODE(status.st_mode))
        return
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if kind == stat.S_IFDIR:
            os.mkdir(target)
            copy_tree(fd, target)
        else:
            with open(target, "xb") as out, open(fd, "rb", closefd=False) as file:
                shutil.copyfileobj(file, out)
            os.chown(target, status.st_uid, status.st_gid)
        for attribute in os.listxattr(fd):
            with contextlib.suppress(OSError):  # a tmpfs supports few kinds
                os.setxattr(target, attribute, os.getxattr(fd, attribute))
        os.chmod(target, stat.S_IMODE(status.st_mode))
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(fd)
