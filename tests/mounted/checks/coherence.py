"""A file stays one file when it is first changed: for descriptors opened before, for numbers, for names.

On a union the first change of a file from a lower branch copies it up. These checks are what a copy-up must not show.
"""

from __future__ import annotations

import os
import stat
import subprocess

from tests.mounted.checking import CHOWN, check, clock_moves, exists, names, opened, read, read_fd, same, write
from tests.mounted.trees import STAMP, pattern


def _every_way_to_change() -> dict[str, object]:
    return {
        "write": lambda name: write(name, b"X", 0),
        "append": lambda name: write(name, b"X", os.O_APPEND),
        "truncate": lambda name: os.truncate(name, 3),
        "o_trunc": lambda name: os.close(os.open(name, os.O_WRONLY | os.O_TRUNC)),
        "chmod": lambda name: os.chmod(name, 0o600),
        "chown": lambda name: os.chown(name, os.getuid(), os.getgid()),
        "utime": lambda name: os.utime(name, ns=(5, 5)),
        "setxattr": lambda name: os.setxattr(name, "user.x", b"1"),
        "link": lambda name: os.link(name, name + ".link"),
        "rename": lambda name: os.rename(name, name + ".renamed"),
    }


@check("f=hello")
def a_descriptor_opened_before_sees_later_writes() -> None:
    """open(2), POSIX write(): a descriptor opened for reading before the first change sees data written afterwards."""
    with opened("f") as before:
        with opened("f", os.O_WRONLY) as writer:
            os.pwrite(writer, b"HE", 0)
        same(os.pread(before, 100, 0), b"HEllo")
        write("f", b" and more", os.O_APPEND)
        same(read_fd(before), b"HEllo and more")
        same(os.fstat(before).st_size, 14)


@check("f~200000")
def a_descriptor_opened_before_sees_the_whole_file() -> None:
    """As above, for pages which were not read before the change."""
    with opened("f") as before:
        same(os.pread(before, 10, 0), pattern("f", 200_000)[:10])
        with opened("f", os.O_WRONLY) as writer:
            os.pwrite(writer, b"changed", 150_000)
        same(os.pread(before, 7, 150_000), b"changed")
        os.posix_fadvise(before, 0, 0, os.POSIX_FADV_DONTNEED)
        same(os.pread(before, 7, 150_000), b"changed", "after the pages were dropped")
        same(os.pread(before, 10, 100_000), pattern("f", 200_000)[100_000:100_010])


@check(" ".join(f"{way}=hello" for way in _every_way_to_change()))
def st_ino_is_stable() -> dict[str, int]:
    """stat(2), st_ino: identifies the file as long as it lives, whatever is changed first."""
    numbers = {}
    for way, change in _every_way_to_change().items():
        assert callable(change)
        before = os.stat(way).st_ino
        with opened(way) as fd:
            change(way)
            same(os.fstat(fd).st_ino, before, f"{way}: fstat of a descriptor opened before")
            name = way + ".renamed" if way == "rename" else way
            same(os.stat(name).st_ino, before, f"{way}: stat")
            same({e.name: e.inode() for e in os.scandir(".")}[name], before, f"{way}: d_ino")
        numbers[name] = before
    assert len(set(numbers.values())) == len(numbers), numbers
    return numbers


@st_ino_is_stable.then
def st_ino_is_stable_after_a_remount(numbers: dict[str, int]) -> None:
    for name, number in numbers.items():
        same(os.stat(name).st_ino, number, name)


@check("d/a=1 e/b/c=2 only/deep/f=3")
def directories_keep_st_ino() -> dict[str, int]:
    """stat(2), st_ino: a directory keeps its number when something in it, or itself, is changed."""
    before = {name: os.stat(name).st_ino for name in ("d", "e", "e/b", "only", "only/deep")}
    write("d/a", b"x")
    write("e/b/new", b"x")
    os.chmod("only", 0o700)
    os.rename("only/deep", "only/moved")
    before["only/moved"] = before.pop("only/deep")
    for name, number in before.items():
        same(os.stat(name).st_ino, number, name)
    return before


@directories_keep_st_ino.then
def directories_keep_st_ino_after_a_remount(numbers: dict[str, int]) -> None:
    for name, number in numbers.items():
        same(os.stat(name).st_ino, number, name)


@check("d/e/f=hello")
def a_change_below_does_not_touch_the_parents() -> None:
    """inode(7): a directory's mtime and ctime change when its entries change, not when a file below is written."""
    before = {name: os.stat(name) for name in (".", "d", "d/e")}
    clock_moves()
    write("d/e/f", b"changed", 0)
    os.chmod("d/e/f", 0o600)
    for name, status in before.items():
        now = os.stat(name)
        same(now.st_mtime_ns, status.st_mtime_ns, f"mtime of {name}")
        same((now.st_mode, now.st_uid, now.st_gid), (status.st_mode, status.st_uid, status.st_gid), name)


@check("d/:2751 d/e/:1700 d/e/f:4755=hello")
def modes_of_parents_are_kept() -> None:
    """stat(2): nothing about the directories above changes when a file below is changed."""
    write("d/e/f", b"x", os.O_APPEND)
    same(stat.S_IMODE(os.stat("d").st_mode), 0o2751)
    same(stat.S_IMODE(os.stat("d/e").st_mode), 0o1700)


def _with_everything() -> None:
    with open("f", "wb") as file:
        file.write(b"content")
    os.setxattr("f", "user.colour", b"green")
    os.chmod("f", 0o6750)
    os.utime("f", ns=(STAMP + 1, STAMP + 2))
    os.symlink("f", "l")
    os.utime("l", ns=(STAMP + 3, STAMP + 4), follow_symlinks=False)


@check(prepare=_with_everything)
def everything_about_a_file_is_kept() -> None:
    """inode(7): changing one attribute changes no other but ctime."""
    before = os.stat("f")
    os.setxattr("f", "user.other", b"1")
    after = os.stat("f")
    same(stat.S_IMODE(after.st_mode), 0o6750)
    same((after.st_uid, after.st_gid, after.st_size), (before.st_uid, before.st_gid, before.st_size))
    same((after.st_atime_ns, after.st_mtime_ns), (STAMP + 1, STAMP + 2))
    same(os.getxattr("f", "user.colour"), b"green")
    same(read("f"), b"content")
    os.rename("l", "m")
    same(os.lstat("m").st_mtime_ns, STAMP + 4)
    same(os.readlink("m"), "f")


@check(f"f~{5 << 20}")
def a_large_file_is_changed_in_one_place() -> None:
    """write(2): one byte changed in a large file leaves all the others."""
    with opened("f", os.O_RDWR) as fd:
        os.pwrite(fd, b"!", 3_000_000)
    want = bytearray(pattern("f", 5 << 20))
    want[3_000_000] = ord("!")
    assert read("f") == want


@check("f=hello g==f h==f")
def hard_links_stay_one_file() -> dict[str, int]:
    """link(2): all names of a file show a change made through one of them; link count and number stay."""
    number = os.stat("f").st_ino
    write("f", b"HELLO")
    for name in ("f", "g", "h"):
        same(read(name), b"HELLO", name)
        same(os.stat(name).st_ino, number, name)
        same(os.stat(name).st_nlink, 3, name)
    return {"number": number}


@hard_links_stay_one_file.then
def hard_links_stay_one_file_after_a_remount(kept: dict[str, int]) -> None:
    write("g", b"second")
    for name in ("f", "g", "h"):
        same(read(name), b"second", name)
        same(os.stat(name).st_ino, kept["number"], name)
        same(os.stat(name).st_nlink, 3, name)


@check("f=hello g==f d/h==f")
def links_of_a_lower_file_change_apart() -> None:
    """link(2), unlink(2): names of one file come and go one by one; the count says how many there are."""
    with opened("g") as fd:
        os.unlink("f")
        same(os.fstat(fd).st_nlink, 2)
        write("d/h", b"changed")
        same(read("g"), b"changed")
        same(os.pread(fd, 100, 0), b"changed")
        os.link("d/h", "k")
        same(os.stat("g").st_nlink, 3)
        os.rename("g", "d/g2")
        same(os.stat("d/g2").st_ino, os.stat("k").st_ino)
        for name in ("d/g2", "k", "d/h"):
            os.unlink(name)
        same(os.fstat(fd).st_nlink, 0)
        same(os.pread(fd, 100, 0), b"changed")
    assert not exists("f")


@check("f=hello g==f")
def the_name_it_was_opened_by_is_removed() -> None:
    """unlink(2): a descriptor of a file whose name is removed still shares the file with its other names."""
    with opened("f", os.O_RDWR) as fd:
        os.unlink("f")
        same(os.stat("g").st_ino, os.fstat(fd).st_ino)
        write("g", b"through g", 0)
        same(os.pread(fd, 100, 0), b"through g")
        os.pwrite(fd, b"THROUGH fd", 0)
        same(read("g"), b"THROUGH fd")
        same(os.fstat(fd).st_nlink, 1)


@the_name_it_was_opened_by_is_removed.then
def the_name_it_was_opened_by_is_removed_after_a_remount(_state: object) -> None:
    same(names(), ["g"])
    same(read("g"), b"THROUGH fd")
    same(os.stat("g").st_nlink, 1)


@check("f=hello g==f")
def hard_links_seen_through_both_descriptors() -> None:
    """link(2): descriptors of two names of one file see each other's writes, opened before the first change."""
    with opened("f") as one, opened("g") as two:
        write("g", b"first", 0)
        same(os.pread(one, 100, 0), b"first")
        same(os.pread(two, 100, 0), b"first")
        with opened("f", os.O_WRONLY) as writer:
            os.pwrite(writer, b"F", 0)
        same(os.pread(two, 100, 0), b"First")


@check("f=hello")
def copied_while_open_for_reading() -> None:
    """cat(1) of a file that is being appended to: what was read stays read, what comes is found (tail -f)."""
    tail = subprocess.Popen(["tail", "-n", "+1", "-f", "-s", "0.05", "f"], stdout=subprocess.PIPE)
    assert tail.stdout is not None
    same(os.read(tail.stdout.fileno(), 5), b"hello")
    write("f", b" world", os.O_APPEND)
    got = b""
    while len(got) < 6:
        got += os.read(tail.stdout.fileno(), 6)
    tail.kill()
    tail.wait()
    tail.stdout.close()
    same(got, b" world")


@check("f=hello", CHOWN)
def ownership_is_kept() -> None:
    """chown(2): the owner set is the owner shown, and survives later changes by root."""
    os.chown("f", 1234, 2345)
    write("f", b"x", os.O_APPEND)
    status = os.stat("f")
    same((status.st_uid, status.st_gid), (1234, 2345))


@check("d/f=1 d/g/h=2")
def changed_then_listed() -> None:
    """readdir(3): names are listed once, whatever was changed."""
    write("d/f", b"x")
    write("d/new", b"x")
    os.chmod("d/g", 0o700)
    same(names("d"), ["f", "g", "new"])
    same(names("d/g"), ["h"])
