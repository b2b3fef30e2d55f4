"""Which operation moves which time: stat(2), inode(7), and the pages of the operations."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from functools import partial

from tests.mounted.checking import beside, check, clock_moves, opened, read_fd, same, write
from tests.mounted.libc import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    UTIME_OMIT,
    fallocate,
    renameat2,
    utimensat,
)
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


@check("f=hello d/e/ g=1 other/")
def what_is_renamed_moves_its_ctime() -> None:
    """rename(2), inode(7): the ctime of what is renamed moves, its mtime does not."""
    for name in ("f", "d"):
        assert "m" not in _renamed(name, f"other/{name}")
        same(_renamed(f"other/{name}", name), "c", name)
    same(_moved(lambda: renameat2("g", "f", RENAME_EXCHANGE), "d"), "", "a bystander")
    same(os.stat("f").st_mtime_ns, STAMP)


def _renamed(old: str, new: str) -> str:
    before = os.lstat(old)
    clock_moves()
    os.rename(old, new)
    after = os.lstat(new)
    return ("m" if after.st_mtime_ns != before.st_mtime_ns else "") + (
        "c" if after.st_ctime_ns > before.st_ctime_ns else ""
    )


def _refused(call: Callable[[], object]) -> None:
    try:
        call()
    except OSError:
        return
    raise AssertionError("it was not refused")


@check("d/f=1 d/g=2 d/e/x=3 d/l->f d/k/")
def what_is_refused_moves_nothing() -> None:
    """inode(7): a call that fails moves no time of the directory or of the file it was about."""
    for about, call in {
        "mkdir": lambda: os.mkdir("d/e"),
        "create": lambda: os.open("d/f", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        "link": lambda: os.link("d/f", "d/g"),
        "symlink": lambda: os.symlink("x", "d/l"),
        "unlink": lambda: os.unlink("d/e"),
        "rmdir": lambda: os.rmdir("d/e"),
        "rmdir of a file": lambda: os.rmdir("d/f"),
        "rename over a full one": lambda: os.rename("d/k", "d/e"),
        "rename into itself": lambda: os.rename("d/e", "d/e/y"),
        "noreplace": lambda: renameat2("d/f", "d/g", RENAME_NOREPLACE),
        "truncate": lambda: os.truncate("d/f", -1),
        "setxattr": lambda: os.setxattr("d/f", "user.x", b"", os.XATTR_REPLACE),
        "utimensat": lambda: utimensat("d/f", (0, 10**9), (0, 0)),
    }.items():
        for name in ("d", "d/f", "d/g", "d/e"):
            same(_moved(partial(_refused, call), name), "", f"{about}: {name}")


@check("f=hello g=hello h=hello")
def nothing_written_moves_nothing() -> None:
    """write(2): of no bytes, and utimensat(2) with both times omitted, change no time; neither does reading."""
    with opened("f", os.O_RDWR) as fd:
        same(_moved(lambda: os.write(fd, b""), "f"), "", "write of no bytes")
        same(_moved(lambda: os.pread(fd, 10, 0), "f"), "", "read")
        same(_moved(lambda: os.fsync(fd), "f"), "", "fsync")
    same(_moved(lambda: utimensat("g", (0, UTIME_OMIT), (0, UTIME_OMIT)), "g"), "", "both omitted")
    same(_moved(lambda: os.listxattr("g"), "g"), "", "listxattr")
    same(os.stat("f").st_mtime_ns, STAMP)


@check("f=hello g~10000 h~10000")
def every_way_to_write_moves_both() -> None:
    """copy_file_range(2), sendfile(2), pwritev(2), mmap(2) with msync(2): mtime and ctime move as by write(2)."""
    with opened("f", os.O_RDWR) as fd, opened("g") as source:
        same(_moved(lambda: os.copy_file_range(source, fd, 100, 0, 0), "f"), "mc", "copy_file_range")
        same(_moved(lambda: os.sendfile(fd, source, 0, 100), "f"), "mc", "sendfile")
        same(_moved(lambda: os.pwritev(fd, [b"a", b"b"], 0), "f"), "mc", "pwritev")
    with opened("h", os.O_RDWR) as fd:
        shared = mmap.mmap(fd, 10_000)

        def write_and_sync() -> None:
            shared[5000:5005] = b"HELLO"
            shared.flush()

        same(_moved(write_and_sync, "h"), "mc", "a mapping")


@check("f=hello g~10000")
def space_moves_both() -> None:
    """fallocate(2): mtime and ctime move when the size grows and when a hole is punched."""
    with opened("f", os.O_RDWR) as fd:
        same(_moved(lambda: fallocate(fd, 0, 0, 10_000), "f"), "mc", "extend")
    with opened("g", os.O_RDWR) as fd:
        same(_moved(lambda: fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), "g"), "mc", "punch")


def _odd_times() -> None:
    for number, (atime_ns, mtime_ns) in enumerate(_ODD_TIMES):
        write(f"f{number}", b"x")
        os.mkdir(f"d{number}")
        os.symlink("x", f"l{number}")
        for kind in "fdl":
            os.utime(f"{kind}{number}", ns=(atime_ns, mtime_ns), follow_symlinks=False)


_SECOND = 10**9
_ODD_TIMES = (
    ((1 - 2**31) * _SECOND, (1 - 2**31) * _SECOND + 1),
    (-1, -_SECOND - 1),
    (0, 1),
    ((2**31 - 1) * _SECOND + 999_999_999, 2**31 * _SECOND),
    (2**32 * _SECOND + 5, (2**33 + 1) * _SECOND + 7),
)
"""The first whole second of a signed 32-bit time_t, around the epoch, the last second, and what comes after."""


@check(prepare=_odd_times)
def odd_times_survive_changes() -> None:
    """inode(7): times before 1970 and after 2038 stay what they are, to the nanosecond, when something else changes."""
    for number, (atime_ns, mtime_ns) in enumerate(_ODD_TIMES):
        os.chmod(f"f{number}", 0o600)
        os.setxattr(f"d{number}", "user.x", b"1")
        os.rename(f"l{number}", f"m{number}")
        for name in (f"f{number}", f"d{number}", f"m{number}"):
            status = os.lstat(name)
            same(status.st_mtime_ns, mtime_ns, name)
            if name[0] == "f":  # whoever looked at the branch before may have moved that of the others
                same(status.st_atime_ns, atime_ns, name)


@odd_times_survive_changes.then
def odd_times_survive_a_remount(_state: object) -> None:
    for number, (_, mtime_ns) in enumerate(_ODD_TIMES):
        for name in (f"f{number}", f"d{number}", f"m{number}"):
            same(os.lstat(name).st_mtime_ns, mtime_ns, name)


@check("f=hello")
def times_that_no_filesystem_has() -> None:
    """utimensat(2): a time that the filesystem cannot store becomes the nearest that it can; left to it."""
    write(beside("f"), b"x")
    for seconds in (-(2**31) - 1, -(2**40), 2**34, 2**36, 2**55):
        for name in ("f", beside("f")):
            utimensat(name, (seconds, 999_999_999), (seconds, 1))
        ours, plain = os.stat("f"), os.stat(beside("f"))
        same((ours.st_atime_ns, ours.st_mtime_ns), (plain.st_atime_ns, plain.st_mtime_ns), seconds)
