"""`os` on a plain directory by the names of Union's methods: the oracle of what a union must answer."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unionfs import Union

Picture = dict[str, tuple[object, ...]]


class Native:
    """A plain directory. Paths are below it, as long as no `..` or absolute symlink leads out."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsdecode(root)

    def at(self, path: str) -> str:
        if not path:
            return ""
        return os.path.join(self.root, path.lstrip("/")) if path.strip("/") else self.root + "/." + path

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self.at(path))

    def link(self, path: str, new: str) -> None:
        os.link(self.at(path), self.at(new))

    def rename(self, path: str, new: str) -> None:
        os.rename(self.at(path), self.at(new))

    def open(self, path: str, mode: str) -> Any:
        return open(self.at(path), mode)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self.at(path), mode)

    def rmtree(self, path: str) -> None:
        if os.path.islink(self.at(path)):  # which shutil refuses without an errno
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        shutil.rmtree(self.at(path))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(os, name)
        return lambda path, *args, **wishes: function(self.at(path), *args, **wishes)


def picture(one: Union | Native) -> Picture:
    """Everything below the root: kind, permissions, owner, content or target, attributes; times that tests set."""
    found: Picture = {}
    todo = ["/"]
    while todo:
        path = todo.pop()
        info = one.lstat(path)
        kind = stat.S_IFMT(info.st_mode)
        data: object = b""
        if kind == stat.S_IFREG:
            with one.open(path, "rb") as file:
                data = file.read()
        elif kind == stat.S_IFLNK:
            data = one.readlink(path)
        elif kind == stat.S_IFDIR:
            todo += [os.path.join(path, name) for name in one.listdir(path)]
        listed = one.listxattr(path, follow_symlinks=False) if kind in (stat.S_IFREG, stat.S_IFDIR) else []
        xattrs = tuple(sorted((name, one.getxattr(path, name)) for name in listed))
        aged = info.st_mtime_ns if info.st_mtime_ns < 1_500_000_000 * 10**9 else "recent"
        found[path] = (kind, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, data, xattrs, aged)
    return found


def answer(one: Union | Native, verb: str, *args: object) -> object:
    """What a verb answers, or the name of its errno."""
    try:
        if verb == "read":
            with one.open(str(args[0]), "rb") as file:
                return file.read()
        if verb == "write":
            path, mode, data = args
            with one.open(str(path), str(mode)) as file:
                return file.write(data)
        result = getattr(one, verb)(*args)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    if isinstance(result, os.stat_result):
        size = 0 if stat.S_ISDIR(result.st_mode) else result.st_size
        return result.st_mode, result.st_uid, result.st_gid, size
    return sorted(result) if isinstance(result, list) else result
