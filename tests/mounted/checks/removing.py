"""unlink(2), rmdir(2), and what is seen afterwards: of open files, of names used again, of whole trees."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess

from tests.mounted.checking import check, exists, fails, names, opened, read, same, write
from tests.mounted.libc import link_fd


@check("f=hello")
def unlinked_while_open() -> None:
    """unlink(2): the file lives until the last descriptor is closed; reading, writing, fstat, truncate work."""
    with opened("f", os.O_RDWR) as fd:
        number = os.fstat(fd).st_ino
        os.unlink("f")
        fails(errno.ENOENT, os.stat, "f")
        same(names(), [])
        status = os.fstat(fd)
        same((status.st_nlink, status.st_ino, status.st_size), (0, number, 5))
        same(os.pread(fd, 100, 0), b"hello")
        os.pwrite(fd, b"HELLO WORLD", 0)
        same(os.pread(fd, 100, 0), b"HELLO WORLD")
        os.ftruncate(fd, 3)
        same(os.fstat(fd).st_size, 3)
        os.fchmod(fd, 0o600)
        same(stat.S_IMODE(os.fstat(fd).st_mode), 0o600)
        os.fsync(fd)
        write("f", b"another")
        same(os.pread(fd, 100, 0), b"HEL")
        assert os.stat("f").st_ino != number
        with opened(f"/proc/self/fd/{fd}") as again:
            same(os.pread(again, 100, 0), b"HEL")
    same(read("f"), b"another")


@check("f=hello")
def unlinked_while_open_for_reading_only() -> None:
    """unlink(2): the same for a file that was never changed."""
    with opened("f") as fd:
        os.unlink("f")
        same(os.fstat(fd).st_nlink, 0)
        same(os.pread(fd, 100, 0), b"hello")
        same(os.fstat(fd).st_size, 5)


@check()
def new_file_unlinked_while_open() -> None:
    """unlink(2): the same for a file made a moment ago; tempfile of every language does this."""
    with opened("new", os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
        os.write(fd, b"before")
        os.unlink("new")
        os.write(fd, b" after")
        same(os.pread(fd, 100, 0), b"before after")
        same(os.fstat(fd).st_nlink, 0)
    same(names(), [])


@check("f=hello")
def many_files_unlinked_while_open() -> None:
    """unlink(2): many such files at once keep apart."""
    held = []
    for number in range(50):
        fd = os.open(f"n{number}", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"%d" % number)
        os.unlink(f"n{number}")
        held.append(fd)
    for number, fd in enumerate(held):
        same(os.pread(fd, 100, 0), b"%d" % number)
        os.close(fd)
    same(names(), ["f"])


@check("f=hello d/e/ p| l->f")
def unlink_and_rmdir_refusals() -> None:
    """unlink(2): EISDIR for a directory; rmdir(2): ENOTDIR for anything else, ENOTEMPTY if it is not empty; ENOENT."""
    fails(errno.EISDIR, os.unlink, "d")
    fails(errno.ENOTEMPTY, os.rmdir, "d")
    for name in ("f", "p", "l"):
        fails(errno.ENOTDIR, os.rmdir, name)
    fails(errno.ENOENT, os.unlink, "nothing")
    fails(errno.ENOENT, os.rmdir, "nothing")
    fails(errno.ENOTDIR, os.unlink, "f/below")
    os.rmdir("d/e")
    os.rmdir("d")
    for name in ("p", "l", "f"):
        os.unlink(name)
        fails(errno.ENOENT, os.unlink, name)
    same(names(), [])


@unlink_and_rmdir_refusals.then
def removed_things_stay_removed(_state: object) -> None:
    same(names(), [])
    for name in ("f", "d", "p", "l"):
        fails(errno.ENOENT, os.lstat, name)


@check("d/f=1 d/e/g=2 d/e/h/i=3 d/l->f")
def a_directory_made_again_is_empty() -> None:
    """rmdir(2), mkdir(2): a directory with the name of a removed one has nothing of it."""
    shutil.rmtree("d")
    same(names(), [])
    os.mkdir("d")
    same(names("d"), [])
    fails(errno.ENOENT, os.stat, "d/f")
    os.mkdir("d/e")
    same(names("d/e"), [])
    write("d/f", b"new")


@a_directory_made_again_is_empty.then
def a_directory_made_again_is_empty_after_a_remount(_state: object) -> None:
    same(names("d"), ["e", "f"])
    same(names("d/e"), [])
    same(read("d/f"), b"new")


@check("f=1 d/x=1 l->f e/y=2")
def names_change_their_kind() -> None:
    """unlink(2), rmdir(2): a removed name can come back as any kind."""
    os.unlink("f")
    os.mkdir("f")
    write("f/inside", b"x")
    shutil.rmtree("d")
    write("d", b"a file")
    os.unlink("l")
    os.mkdir("l")
    shutil.rmtree("e")
    os.symlink("f", "e")
    same(names("e"), ["inside"])


@names_change_their_kind.then
def names_change_their_kind_after_a_remount(_state: object) -> None:
    same(names("f"), ["inside"])
    same(read("d"), b"a file")
    same(names("l"), [])
    same(os.readlink("e"), "f")
    shutil.rmtree("f")
    os.unlink("d")
    os.rmdir("l")
    os.unlink("e")
    same(names(), [])
    write("f", b"a file again")
    os.mkdir("d")
    same(names("d"), [])


@names_change_their_kind.then
def names_change_their_kind_after_two_remounts(_state: object) -> None:
    same(names(), ["d", "f"])
    same(names("d"), [])
    same(read("f"), b"a file again")


@check("f=1 d/g=2 keep=3")
def removed_and_made_again_many_times() -> None:
    """unlink(2): over and over, the last state counts."""
    for number in range(25):
        os.unlink("f")
        assert not exists("f")
        write("f", b"%d" % number)
        shutil.rmtree("d")
        os.mkdir("d")
        same(names("d"), [])
        write("d/g", b"%d" % number)
    os.unlink("f")
    same(names(), ["d", "keep"])
    same(read("d/g"), b"24")


@removed_and_made_again_many_times.then
def removed_and_made_again_many_times_after_a_remount(_state: object) -> None:
    same(names(), ["d", "keep"])
    same(names("d"), ["g"])
    same(read("d/g"), b"24")


@check("d/e/f=1")
def the_current_directory_is_removed() -> None:
    """rmdir(2): the current directory can be removed; it is empty then, and nothing can be made in it (ENOENT)."""
    os.chdir("d/e")
    os.unlink("f")
    os.rmdir("../e")
    same(names("."), [])
    fails(errno.ENOENT, os.open, "new", os.O_WRONLY | os.O_CREAT)
    fails(errno.ENOENT, os.mkdir, "new")
    fails(errno.ENOENT, os.getcwd)
    assert os.stat(".").st_nlink in (0, 1), os.stat(".").st_nlink
    os.chdir("..")
    same(names("."), [])


@check("d/e/ d/f=1")
def a_removed_directory_stays_open() -> None:
    """rmdir(2): a descriptor of a removed directory can be asked for its attributes."""
    with opened("d/e") as fd:
        number = os.fstat(fd).st_ino
        os.rmdir("d/e")
        same(os.fstat(fd).st_ino, number)
        same(os.listdir(fd), [])
        os.mkdir("d/e")
        assert os.stat("d/e").st_ino != number
        same(os.listdir(fd), [])


def _mixed_tree() -> None:
    for number in range(12):
        os.makedirs(f"tree/{number}/sub/deep")
        for name in range(8):
            write(f"tree/{number}/sub/f{name}", b"old")
        os.symlink("nowhere", f"tree/{number}/l")
        os.link(f"tree/{number}/sub/f0", f"tree/{number}/hard")


@check(prepare=_mixed_tree)
def rm_rf_of_a_mixed_tree() -> None:
    """rm(1) -rf: takes old, changed, moved and new things together; nothing is left, and nothing comes back."""
    for number in range(0, 12, 2):
        write(f"tree/{number}/sub/f1", b"changed")
        write(f"tree/{number}/sub/new", b"new")
        os.mkdir(f"tree/{number}/newdir")
        os.unlink(f"tree/{number}/sub/f2")
        os.rename(f"tree/{number}/sub/f3", f"tree/{number}/newdir/f3")
        os.rename(f"tree/{number + 1}/sub", f"tree/{number}/newdir/sub")
    subprocess.run(["rm", "-rf", "tree"], check=True)
    same(names(), [])
    os.mkdir("tree")
    same(names("tree"), [])


@rm_rf_of_a_mixed_tree.then
def rm_rf_of_a_mixed_tree_after_a_remount(_state: object) -> None:
    same(names(), ["tree"])
    same(names("tree"), [])


@check("d/a=1 d/b=2 d/sub/c=3")
def a_directory_is_empty_only_when_it_looks_so() -> None:
    """rmdir(2): ENOTEMPTY as long as readdir shows something, success as soon as it does not."""
    fails(errno.ENOTEMPTY, os.rmdir, "d")
    os.unlink("d/a")
    fails(errno.ENOTEMPTY, os.rmdir, "d")
    os.unlink("d/b")
    fails(errno.ENOTEMPTY, os.rmdir, "d")
    os.unlink("d/sub/c")
    os.rmdir("d/sub")
    write("d/new", b"x")
    fails(errno.ENOTEMPTY, os.rmdir, "d")
    os.unlink("d/new")
    same(names("d"), [])
    os.rmdir("d")
    fails(errno.ENOENT, os.rmdir, "d")


@check("f=hello g==f")
def link_counts_fall() -> None:
    """unlink(2): st_nlink counts the names that are left, for every name and descriptor, after each removal."""
    with opened("f") as fd:
        same(os.fstat(fd).st_nlink, 2)
        os.unlink("f")
        same(os.fstat(fd).st_nlink, 1)
        same(os.stat("g").st_nlink, 1)
        os.unlink("g")
        same(os.fstat(fd).st_nlink, 0)
        fails(errno.ENOENT, link_fd, fd, "back")


@link_counts_fall.then
def link_counts_fall_after_a_remount(_state: object) -> None:
    same(names(), [])
