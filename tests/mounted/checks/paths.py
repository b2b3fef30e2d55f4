"""The errors of every call that takes a path for a bad one: path_resolution(7), and the ERRORS of each page."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable

from tests.mounted.checking import check, fails, names, read, same, write
from tests.mounted.libc import AT_SYMLINK_NOFOLLOW, RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2, utimensat

Calls = dict[str, Callable[[str], object]]


def _that_look() -> Calls:
    """Calls that need what the path names, and follow a symbolic link at its end."""
    return {
        "stat": os.stat,
        "open for reading": lambda path: os.open(path, os.O_RDONLY),
        "open for writing": lambda path: os.open(path, os.O_WRONLY),
        "open O_PATH": lambda path: os.open(path, os.O_PATH),
        "chmod": lambda path: os.chmod(path, 0o600),
        "chown": lambda path: os.chown(path, -1, -1),
        "truncate": lambda path: os.truncate(path, 0),
        "utimensat": lambda path: utimensat(path, (1, 1), (1, 1)),
        "statvfs": os.statvfs,
        "listdir": os.listdir,
        "chdir": os.chdir,
        "chroot": os.chroot,
        "execve": lambda path: os.execv(path, ["x"]),
        "getxattr": lambda path: os.getxattr(path, "user.x"),
        "setxattr": lambda path: os.setxattr(path, "user.x", b"1"),
        "listxattr": os.listxattr,
        "removexattr": lambda path: os.removexattr(path, "user.x"),
        "name in it": lambda path: os.stat(f"{path}/below"),
        "file in it": lambda path: os.close(os.open(f"{path}/new", os.O_WRONLY | os.O_CREAT)),
        "directory in it": lambda path: os.mkdir(f"{path}/new"),
        "removal in it": lambda path: os.unlink(f"{path}/below"),
    }


def _that_name() -> Calls:
    """Calls that do not follow a symbolic link at the end of the path, and those that make a name."""
    return {
        "lstat": os.lstat,
        "readlink": os.readlink,
        "lchown": lambda path: os.lchown(path, -1, -1),
        "utimensat nofollow": lambda path: utimensat(path, (1, 1), (1, 1), AT_SYMLINK_NOFOLLOW),
        "lgetxattr": lambda path: os.getxattr(path, "trusted.x", follow_symlinks=False),
        "unlink": os.unlink,
        "rmdir": os.rmdir,
        "rename": lambda path: os.rename(path, "elsewhere"),
        "rename to": lambda path: os.rename("f", path),
        "rename noreplace": lambda path: renameat2("f", path, RENAME_NOREPLACE),
        "exchange": lambda path: renameat2("f", path, RENAME_EXCHANGE),
        "link": lambda path: os.link(path, "elsewhere", follow_symlinks=False),
        "link to": lambda path: os.link("f", path),
        "symlink": lambda path: os.symlink("x", path),
        "mkdir": os.mkdir,
        "mkfifo": os.mkfifo,
        "mknod": lambda path: os.mknod(path, stat.S_IFREG | 0o600),
        "create": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)),
    }


def _all_fail(code: int, path: str, calls: Calls) -> None:
    for name, call in calls.items():
        try:
            fails(code, call, path)
        except AssertionError as failure:
            raise AssertionError(f"{name}: {failure}") from None


@check("f=hello d/")
def names_too_long_for_every_call() -> None:
    """path_resolution(7): a component of 256 bytes is ENAMETOOLONG for every call, whether it is the last or not."""
    for length in (256, 1023, 1024):
        for path in ("x" * length, f"d/{'x' * length}"):
            _all_fail(errno.ENAMETOOLONG, path, {**_that_look(), **_that_name()})
    same(names(), ["d", "f"])
    same(read("f"), b"hello")


@check("f=hello d/")
def paths_too_long_for_every_call() -> None:
    """path_resolution(7): a path of 4096 bytes is ENAMETOOLONG for every call; one of 4095 is looked at."""
    calls = {**_that_look(), **_that_name()}
    _all_fail(errno.ENAMETOOLONG, "./" * 2047 + "xx", calls)
    longest = "./" * 2047 + "x"
    for name in ("stat", "chmod", "lstat", "unlink", "rename"):
        fails(errno.ENOENT, calls[name], longest)
    write("./" * 2047 + "y", b"by a path of 4095 bytes")
    same(names(), ["d", "f", "y"])


@check("f=hello loop->loop a->b b->a d/ l40->l39")
def loops_for_every_call() -> None:
    """path_resolution(7): ELOOP for every call that follows a link which leads back, at the end of a path or within."""
    for path in ("loop", "a"):
        _all_fail(errno.ELOOP, path, _that_look())
    _all_fail(errno.ELOOP, "a/x", {**_that_look(), **_that_name()})
    same(os.readlink("a"), "b")
    os.rename("loop", "moved")
    os.unlink("moved")
    same(names(), ["a", "b", "d", "f", "l40"])


@check("f=hello d/ p|")
def names_below_what_is_no_directory() -> None:
    """path_resolution(7): ENOTDIR for every call with a path through a file or a fifo."""
    for path in ("f/x", "p/x", "f/x/y"):
        _all_fail(errno.ENOTDIR, path, {**_that_look(), **_that_name()})
    same(read("f"), b"hello")
    same(names(), ["d", "f", "p"])


@check("f=hello d/")
def names_below_nothing() -> None:
    """path_resolution(7): ENOENT for every call with a path through a directory that does not exist, and for ""."""
    _all_fail(errno.ENOENT, "nothing/x", {**_that_look(), **_that_name()})
    _all_fail(errno.ENOENT, "nothing", _that_look())
    _all_fail(errno.ENOENT, "", {name: call for name, call in _that_look().items() if not name.endswith("in it")})
    _all_fail(errno.ENOENT, "", _that_name())
    same(names(), ["d", "f"])


@check("f=hello d/g=1 e/ l->f")
def names_that_are_taken() -> None:
    """mkdir(2), mkfifo(3), mknod(2), symlink(2), link(2), bind(2): EEXIST, or EADDRINUSE, whatever has the name."""
    for name in ("f", "d", "e", "l", "d/g"):
        for make in (
            os.mkdir,
            os.mkfifo,
            lambda path: os.mknod(path, stat.S_IFREG | 0o600),
            lambda path: os.symlink("x", path),
            lambda path: os.link("f", path),
            lambda path: os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        ):
            fails(errno.EEXIST, make, name)
        with socket.socket(socket.AF_UNIX) as server:
            fails(errno.EADDRINUSE, server.bind, name)
    same(read("f"), b"hello")
    same(names("d"), ["g"])
    same(os.readlink("l"), "f")


@check("d/e/f=1")
def relative_to_a_descriptor() -> None:
    """openat(2) and its kin: names are relative to the directory of the descriptor; ENOTDIR if it is none."""
    top = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
    inner = os.open("d/e", os.O_PATH | os.O_DIRECTORY)
    with os.fdopen(os.open("new", os.O_WRONLY | os.O_CREAT, dir_fd=inner), "wb") as file:
        file.write(b"2")
    os.mkdir("sub", dir_fd=inner)
    os.symlink("f", "l", dir_fd=inner)
    os.link("f", "g", src_dir_fd=inner, dst_dir_fd=top)
    os.rename("new", "moved", src_dir_fd=inner, dst_dir_fd=top)
    os.mkfifo("p", dir_fd=inner)
    os.chmod("f", 0o600, dir_fd=inner)
    os.utime("f", ns=(5, 5), dir_fd=inner)
    same(os.readlink("l", dir_fd=inner), "f")
    same(os.stat("g", dir_fd=top).st_nlink, 2)
    same(os.stat("e/f", dir_fd=top).st_mtime_ns, 5)
    os.unlink("p", dir_fd=inner)
    os.rmdir("sub", dir_fd=inner)
    same((names("d"), names("d/e")), (["e", "g", "moved"], ["f", "l"]))
    file_fd = os.open("d/g", os.O_RDONLY)
    fails(errno.ENOTDIR, os.stat, "x", dir_fd=file_fd)
    fails(errno.ENOTDIR, os.mkdir, "x", dir_fd=file_fd)
