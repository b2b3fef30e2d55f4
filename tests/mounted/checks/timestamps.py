"""Which operation moves which time: stat(2), inode(7), and the pages of the operations."""

from __future__ import annotations

import os
from collections.abc import Callable

from tests.mounted.checking import check, clock_moves, opened, read_fd, same, write
from tests.mounted.libc import RENAME_EXCHANGE, renameat2
from tests.mounted.trees import STAMP


def _moved(change: Callable[[], object], name: str) -> str:
    """Which of mtime and ctime of `name` the change moved, as a text of the letters m and c."""
    before = os.lstat(name)
    clock_moves()
    change()
    after = os.lstat(name)
    moved = "m" if after.st_mtime_ns > before.st_mtime_ns else ""
    return moved + ("c" if after.st_ctime_ns > before.st_ctime_ns else "")


@check("d/f=1 d/g=2 d/h=3 d/e/ d/k=4 other/")
def directories_when_entries_change() -> None:
    """inode(7): creating, removing, linking and renaming entries moves mtime and ctime of the directory."""
    changes: dict[str, Callable[[], object]] = {
        "create": lambda: write("d/new", b"x"),
        "mkdir": lambda: os.mkdir("d/newdir"),
        "symlink": lambda: os.symlink("x", "d/newlink"),
        "mkfifo": lambda: os.mkfifo("d/newfifo"),
        "link": lambda: os.link("d/f", "d/f2"),
        "unlink": lambda: os.unlink("d/g"),
        "rmdir": lambda: os.rmdir("d/e"),
        "rename": lambda: os.rename("d/h", "d/h2"),
        "rename over": lambda: os.rename("d/h2", "d/f2"),
        "rename out": lambda: os.rename("d/k", "other/k"),
        "rename in": lambda: os.rename("other/k", "d/k"),
    }
    for name, change in changes.items():
        same(_moved(change, "d"), "mc", name)
    same(_moved(lambda: os.rename("d/k", "other/k"), "other"), "mc", "the directory renamed into")
    same(_moved(lambda: renameat2("d/f", "other/k", RENAME_EXCHANGE), "other"), "mc", "exchange")


@check("d/f=1")
def directories_when_files_change() -> None:
    """inode(7): writing, chmod or utime of a file does not move the times of its directory."""
    for change in (
        lambda: write("d/f", b"xyz"),
        lambda: os.chmod("d/f", 0o600),
        lambda: os.utime("d/f", ns=(1, 1)),
        lambda: os.truncate("d/f", 1),
    ):
        same(_moved(change, "d").replace("c", ""), "")
        same(os.stat("d").st_mtime_ns, STAMP)


@check("f=hello g=hello h=hello")
def files_when_written() -> None:
    """write(2), truncate(2): move mtime and ctime; read(2) does not; opening alone does not."""
    same(_moved(lambda: write("f", b"x", 0), "f"), "mc", "write")
    same(_moved(lambda: write("f", b"x", os.O_APPEND), "f"), "mc", "append")
    same(_moved(lambda: os.truncate("f", 1), "f"), "mc", "truncate")
    same(_moved(lambda: write("g", b""), "g"), "mc", "open with O_TRUNC")
    same(_moved(lambda: os.close(os.open("h", os.O_RDWR)), "h"), "", "open and close")
    same(os.stat("h").st_mtime_ns, STAMP)


@check("f=hello")
def mtime_stays_after_close() -> None:
    """utimensat(2) after write(2): the time set last wins, also when the descriptor is closed later (cp -p, tar)."""
    with opened("f", os.O_WRONLY) as fd:
        os.write(fd, b"data")
        os.utime(fd, ns=(111, 222))
    same(os.stat("f").st_mtime_ns, 222)
    with opened("new", os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, b"data" * 10_000)
        os.utime("new", ns=(333, 444))
    same(os.stat("new").st_mtime_ns, 444)


@check("f=hello")
def attributes_move_ctime_only() -> None:
    """chmod(2), chown(2), setxattr(2), link(2), rename(2): ctime moves, mtime does not."""
    same(_moved(lambda: os.chmod("f", 0o600), "f"), "c", "chmod")
    same(_moved(lambda: os.chown("f", os.getuid(), os.getgid()), "f"), "c", "chown")
    same(_moved(lambda: os.setxattr("f", "user.x", b"1"), "f"), "c", "setxattr")
    same(_moved(lambda: os.removexattr("f", "user.x"), "f"), "c", "removexattr")
    same(_moved(lambda: os.link("f", "f2"), "f"), "c", "link")
    same(_moved(lambda: os.unlink("f2"), "f"), "c", "unlink of another name")
    same(os.stat("f").st_mtime_ns, STAMP)


@check("f=hello")
def the_last_write_wins() -> None:
    """write(2): fstat and stat agree on size and times after each write, before and after close."""
    with opened("f", os.O_WRONLY) as fd:
        for number in range(5):
            os.pwrite(fd, b"x" * 10, number * 10)
            one, two = os.fstat(fd), os.stat("f")
            same((one.st_size, one.st_mtime_ns), (two.st_size, two.st_mtime_ns))
            same(one.st_size, (number + 1) * 10)
        last = os.fstat(fd).st_mtime_ns
    same(os.stat("f").st_mtime_ns, last)


@check("f=hello")
def new_files_carry_the_current_time() -> None:
    """open(2), O_CREAT: all three times are now; a file written later than another is not older (make(1))."""
    write("a", b"x")
    clock_moves()
    write("b", b"x")
    assert os.stat("a").st_mtime_ns < os.stat("b").st_mtime_ns
    assert os.stat("b").st_ctime_ns >= os.stat("b").st_mtime_ns
    clock_moves()
    write("f", b"x", 0)
    assert os.stat("f").st_mtime_ns > os.stat("b").st_mtime_ns


@check("f=hello")
def atime_by_hand() -> None:
    """mount(2), relatime, noatime: reading moves atime forward or not at all, and never mtime or ctime."""
    os.utime("f", ns=(STAMP, STAMP))
    before = os.stat("f")
    with opened("f") as fd:
        read_fd(fd)
    after = os.stat("f")
    assert after.st_atime_ns >= before.st_atime_ns
    same((after.st_mtime_ns, after.st_ctime_ns), (before.st_mtime_ns, before.st_ctime_ns))
    os.utime("f", ns=(42, STAMP))
    same(os.stat("f").st_atime_ns, 42)
