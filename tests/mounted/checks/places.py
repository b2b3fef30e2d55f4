"""The current directory, `..` and the root of a process when directories are moved or removed: chdir(2), getcwd(2),
chroot(2)."""

from __future__ import annotations

import errno
import os

from tests.mounted.checking import CHOWN, check, elsewhere, fails, names, opened, read, same, write
from tests.mounted.libc import RENAME_EXCHANGE, dir_stream, renameat2


@check("a/b/c/d/f=1 x/y/")
def parents_follow_every_move() -> None:
    """path_resolution(7): `..` of a directory is the one that it is in now, for who is in it and who has it open."""
    os.chdir("a/b/c/d")
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.getcwd()))))
    with opened("..") as c:
        for old, new in (("a/b/c", "x/y/c"), ("x/y", "a/y"), ("a", "x/a"), ("x/a/y/c", "c")):
            os.rename(f"{top}/{old}", f"{top}/{new}")
            same(os.stat("..").st_ino, os.fstat(c).st_ino)
            same(os.stat("../..").st_ino, os.stat("..", dir_fd=c).st_ino)
            here = os.getcwd()
            same(os.stat(here).st_ino, os.stat(".").st_ino, here)
            same(os.stat(f"{here}/../..").st_ino, os.stat("../..").st_ino, here)
            same(read("f"), b"1")
            with dir_stream("..") as stream:
                numbers = {entry.name: entry.ino for entry in stream}
            same(numbers[b".."], os.stat("../..").st_ino)
    same(os.getcwd(), f"{top}/c/d")


@check("a/b/f=1 c/d/g=2")
def parents_follow_an_exchange() -> None:
    """renameat2(2), RENAME_EXCHANGE: two directories that change places change parents."""
    with opened("a/b") as b, opened("c/d") as d:
        renameat2("a/b", "c/d", RENAME_EXCHANGE)
        same(os.stat("..", dir_fd=b).st_ino, os.stat("c").st_ino)
        same(os.stat("..", dir_fd=d).st_ino, os.stat("a").st_ino)
        same((names("a/b"), names("c/d")), (["g"], ["f"]))
        renameat2("a", "c/d", RENAME_EXCHANGE)
        same(os.stat("..", dir_fd=b).st_ino, os.stat(".").st_ino)
        same(read("c/d/b/g"), b"2")
    same((names("a"), names("c/d")), (["f"], ["b"]))


@check("a/b/c/ other/")
def a_removed_current_directory() -> None:
    """rmdir(2), chdir(2): a removed directory is still left by `..`, and nothing else can be found or made in it."""
    os.chdir("a/b/c")
    with opened(".") as here, opened("../..") as a:
        os.rmdir("../c")
        os.rmdir("../../b")
        fails(errno.ENOENT, os.getcwd)
        for refused in (
            lambda: os.open("f", os.O_RDWR | os.O_CREAT),
            lambda: os.mkdir("d"),
            lambda: os.symlink("x", "l"),
            lambda: os.mkfifo("p"),
            lambda: os.stat("f"),
            lambda: os.rename("../../../other", "moved"),
            lambda: os.mkdir("d", dir_fd=here),
        ):
            fails(errno.ENOENT, refused)
        same(os.listdir("."), [])
        assert os.fstat(here).st_nlink in (0, 1)
        os.mkdir("b", dir_fd=a)
        same(os.listdir("."), [], "a new directory of the name of a removed one is another one")
        os.fchdir(a)
    same(names("."), ["b"])


@check("a/b/f=1")
def a_renamed_current_directory_is_named_anew() -> None:
    """getcwd(2), proc(5): the name of the current directory is the one that it has now."""
    os.chdir("a/b")
    top = os.path.dirname(os.path.dirname(os.getcwd()))
    os.rename("../../a", "../../z")
    same(os.getcwd(), f"{top}/z/b")
    same(os.readlink("/proc/self/cwd"), f"{top}/z/b")
    write("new", b"2")
    same(read(f"{top}/z/b/new"), b"2")


@check("root/etc/f=inside root/etc/up->../../.. root/abs->/etc/f f=outside", CHOWN)
def a_changed_root() -> None:
    """chroot(2): nothing leads above the root: neither `..` nor symbolic links, which begin at it."""

    def inside() -> tuple[object, ...]:
        os.chroot("root")
        os.chdir("/")
        return (
            sorted(os.listdir("/")),
            read("/etc/f"),
            read("/../../../etc/f"),
            os.path.samefile("/etc/up", "/"),
            os.stat("/abs").st_size,
            os.getcwd(),
        )

    same(elsewhere(inside), (["abs", "etc"], b"inside", b"inside", True, 6, "/"))


@check("root/d/f=1", CHOWN)
def a_changed_root_that_moves() -> None:
    """chroot(2), rename(2): a root directory that is renamed or removed stays the root of who is in it."""
    outside = os.open(".", os.O_RDONLY)

    def inside() -> list[object]:
        os.chroot("root")
        os.chdir("/d")
        os.rename("root", "moved", src_dir_fd=outside, dst_dir_fd=outside)
        told: list[object] = [read("/d/f"), os.getcwd(), os.path.samefile("/..", "/")]
        write("/new", b"2")
        told.append(sorted(os.listdir("/")))
        os.unlink("/new")
        os.unlink("f")
        os.chdir("/")
        os.rmdir("d")
        os.rmdir("moved", dir_fd=outside)
        told.append(os.listdir("/"))
        fails(errno.ENOENT, os.mkdir, "/d")
        return told

    same(elsewhere(inside), [b"1", "/d", True, ["d", "new"], []])
    same(names(), [])
