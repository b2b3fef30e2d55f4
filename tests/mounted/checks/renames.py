"""rename(2) and renameat2(2): every kind of object over every kind of object, files and directories, old and new."""

from __future__ import annotations

import errno
import os
import stat

from tests.mounted.checking import CHOWN, STRANGERS, check, elsewhere, exists, fails, names, opened, read, same, write
from tests.mounted.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

_SOURCES = ("file", "dir", "full", "link", "fifo")
_WIDE = 100
_TARGETS = ("missing", "file", "dir", "full", "link", "fifo")


def _make_object(kind: str, name: str) -> None:
    if kind == "file":
        write(name, kind.encode())
    elif kind in ("dir", "full"):
        os.mkdir(name)
        if kind == "full":
            write(f"{name}/inside", b"x")
    elif kind == "link":
        os.symlink("target", name)
    elif kind == "fifo":
        os.mkfifo(name)


def _make_pairs() -> None:
    for source in _SOURCES:
        for target in _TARGETS:
            _make_object(source, f"{source}-{target}-source")
            _make_object(target, f"{source}-{target}-target")


def _want(source: str, target: str) -> int:
    """What rename(2) says of these kinds: 0 if it succeeds."""
    source_is_dir, target_is_dir = source in ("dir", "full"), target in ("dir", "full")
    if target == "missing":
        return 0
    if source_is_dir and not target_is_dir:
        return errno.ENOTDIR
    if target_is_dir and not source_is_dir:
        return errno.EISDIR
    return errno.ENOTEMPTY if target == "full" else 0


def _identity(name: str) -> tuple[int, int]:
    status = os.lstat(name)
    return stat.S_IFMT(status.st_mode), status.st_ino


def _rename_all_pairs() -> None:
    for source in _SOURCES:
        for target in _TARGETS:
            pair = f"{source}-{target}"
            old, new = f"{pair}-source", f"{pair}-target"
            before = _identity(old)
            victim = _identity(new) if target != "missing" else None
            want = _want(source, target)
            if want == errno.ENOTEMPTY:
                fails((errno.ENOTEMPTY, errno.EEXIST), os.rename, old, new)
            elif want:
                fails(want, os.rename, old, new)
            else:
                os.rename(old, new)
            if want:
                same(_identity(old), before, f"{pair}: the source after a refusal")
                same(_identity(new), victim, f"{pair}: the target after a refusal")
            else:
                same(_identity(new), before, f"{pair}: the target")
                assert not exists(old), f"{pair}: the source is still there"
                if source in ("dir", "full"):
                    same(names(new), ["inside"] if source == "full" else [], pair)


@check(prepare=_make_pairs)
def every_kind_over_every_kind() -> None:
    """rename(2): ENOTDIR for a directory over something else, EISDIR the other way, ENOTEMPTY over a full directory."""
    _rename_all_pairs()


@check()
def every_new_kind_over_every_new_kind() -> None:
    """As above with objects that were just made."""
    _make_pairs()
    _rename_all_pairs()


@check(prepare=_make_pairs)
def every_old_kind_over_every_new_kind() -> None:
    """As above with sources that were there and targets made in the place of something removed."""
    for source in _SOURCES:
        for target in _TARGETS:
            name = f"{source}-{target}-target"
            if target == "full":
                os.unlink(f"{name}/inside")
            if target in ("dir", "full"):
                os.rmdir(name)
            elif target != "missing":
                os.unlink(name)
            _make_object(target, name)
    _rename_all_pairs()


@check("d/f=deep d/e/g=deeper d/l->f d/p| d/e/h==d/f d/empty/")
def a_directory_moves_with_everything_below() -> dict[str, int]:
    """rename(2): a directory takes everything below along; all of it can be used and changed under the new name."""
    numbers = {name: os.lstat(f"d/{name}").st_ino for name in (".", "f", "e", "e/g", "l", "p", "empty")}
    os.rename("d", "moved")
    assert not exists("d")
    same(names("moved"), ["e", "empty", "f", "l", "p"])
    for name, number in numbers.items():
        same(os.lstat(f"moved/{name}").st_ino, number, name)
    same(read("moved/e/g"), b"deeper")
    write("moved/e/g", b"changed")
    write("moved/e/new", b"new")
    os.unlink("moved/f")
    same(read("moved/e/h"), b"deep", "another name of the file removed")
    os.mkdir("moved/empty/sub")
    os.rename("moved/e", "moved/empty/sub/e")
    same(names("moved/empty/sub/e"), ["g", "h", "new"])
    return numbers


@a_directory_moves_with_everything_below.then
def a_moved_directory_after_a_remount(numbers: dict[str, int]) -> None:
    assert not exists("d")
    same(names("moved"), ["empty", "l", "p"])
    same(names("moved/empty/sub/e"), ["g", "h", "new"])
    same(read("moved/empty/sub/e/g"), b"changed")
    same(read("moved/empty/sub/e/h"), b"deep")
    same(os.stat("moved/empty/sub/e").st_ino, numbers["e"])
    same(os.stat("moved/empty/sub/e/g").st_ino, numbers["e/g"])
    os.rename("moved/empty/sub", "back")
    same(names("back/e"), ["g", "h", "new"])


@check("d/f=1 d/e/g=2")
def a_new_directory_in_the_old_place() -> None:
    """rename(2), mkdir(2): a directory made where another was moved away is empty."""
    os.rename("d", "moved")
    os.mkdir("d")
    same(names("d"), [])
    write("d/f", b"new")
    same(read("moved/f"), b"1")
    os.mkdir("d/e")
    same(names("d/e"), [])
    same(names("moved/e"), ["g"])
    os.rename("moved", "d2")
    os.rename("d", "moved")
    os.rename("d2", "d")
    same(read("d/f"), b"1")
    same(read("moved/f"), b"new")


@a_new_directory_in_the_old_place.then
def a_new_directory_in_the_old_place_after_a_remount(_state: object) -> None:
    same(names("d"), ["e", "f"])
    same(names("d/e"), ["g"])
    same(read("d/f"), b"1")
    same(read("moved/f"), b"new")
    same(names("moved/e"), [])


@check("a/b/c/f=1 x/y/")
def directories_moved_again_and_again() -> None:
    """rename(2): chains of moves, each level moved, end where they should."""
    os.rename("a/b/c", "x/y/c")
    os.rename("a/b", "x/y/c/b")
    os.rename("x/y", "a/y")
    os.rename("a", "z")
    same(names("z"), ["y"])
    same(names("z/y/c"), ["b", "f"])
    same(read("z/y/c/f"), b"1")
    os.rename("z/y/c/f", "f")
    same(names("z/y/c"), ["b"])
    same(names("x"), [])


@directories_moved_again_and_again.then
def directories_moved_again_and_again_after_a_remount(_state: object) -> None:
    same(names("."), ["f", "x", "z"])
    same(names("z/y/c"), ["b"])
    same(names("z/y/c/b"), [])
    same(read("f"), b"1")


@check("d/e/f=1 d/g=2 l->d")
def not_into_itself() -> None:
    """rename(2): EINVAL for a directory into its own subdirectory; ENOTEMPTY or EINVAL the other way round."""
    fails(errno.EINVAL, os.rename, "d", "d/new")
    fails(errno.EINVAL, os.rename, "d", "d/e/new")
    fails(errno.EINVAL, os.rename, "d", "d/e")
    fails(errno.EINVAL, os.rename, "d", "l/new")
    fails(errno.ENOTEMPTY, os.rename, "d/e", "d")
    fails(errno.EINVAL, renameat2, "d", "d/e", RENAME_EXCHANGE)
    fails(errno.EINVAL, renameat2, "d/e", "d", RENAME_EXCHANGE)
    same(names("d"), ["e", "g"])


@check("d/f=1 f=2")
def rename_refusals() -> None:
    """rename(2): ENOENT, ENOTDIR, EBUSY or EINVAL for . and .., EINVAL for flags that exclude each other."""
    fails(errno.ENOENT, os.rename, "nothing", "new")
    fails(errno.ENOENT, os.rename, "f", "nothing/new")
    fails(errno.ENOTDIR, os.rename, "f/x", "new")
    fails(errno.ENOTDIR, os.rename, "d", "f/new")
    fails(errno.ENOTDIR, os.rename, "f", "new/")
    for dots in ("d/.", "d/.."):
        fails((errno.EBUSY, errno.EINVAL), os.rename, dots, "new")
        fails((errno.EBUSY, errno.EINVAL, errno.ENOTEMPTY, errno.EEXIST), os.rename, "d", dots)
    fails(errno.EINVAL, renameat2, "f", "d", RENAME_EXCHANGE | RENAME_NOREPLACE)
    fails(errno.EINVAL, renameat2, "f", "new", 1 << 20)
    same(names(), ["d", "f"])


@check("f=1 g==f h=3")
def onto_itself() -> None:
    """rename(2): if old and new are names of one file, nothing happens and both stay."""
    os.rename("f", "f")
    os.rename("f", "g")
    same(names(), ["f", "g", "h"])
    same(os.stat("f").st_nlink, 2)
    os.rename("h", "g")
    same(names(), ["f", "g"])
    same(read("g"), b"3")
    same(read("f"), b"1")
    same(os.stat("f").st_nlink, 1)


@check("f=new g=old")
def over_an_open_file() -> None:
    """rename(2): the replaced file lives on for those who have it open, without a name."""
    with opened("g", os.O_RDWR) as fd:
        number = os.fstat(fd).st_ino
        os.rename("f", "g")
        same(os.pread(fd, 100, 0), b"old")
        same(os.fstat(fd).st_nlink, 0)
        same(os.fstat(fd).st_ino, number)
        os.pwrite(fd, b"OLD AND MORE", 0)
        same(os.pread(fd, 100, 0), b"OLD AND MORE")
        same(read("g"), b"new")
        assert os.stat("g").st_ino != number
    same(names(), ["g"])


@check("d/ e/ f=1")
def over_an_open_directory() -> None:
    """rename(2): an empty directory that is replaced stays usable for those who have it open; it is gone and empty."""
    with opened("e") as fd:
        os.rename("d", "e")
        same(os.listdir(fd), [])
        fails(errno.ENOENT, os.open, "new", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
    same(names(), ["e", "f"])


@check("f=1 g=2 d/a=3 e/b=4 l->x")
def exchange() -> None:
    """renameat2(2), RENAME_EXCHANGE: swaps two names atomically, of any kinds; both must exist (ENOENT)."""
    numbers = {name: os.lstat(name).st_ino for name in ("f", "g", "d", "e", "l")}
    renameat2("f", "g", RENAME_EXCHANGE)
    same((read("f"), read("g")), (b"2", b"1"))
    renameat2("d", "e", RENAME_EXCHANGE)
    same((names("d"), names("e")), (["b"], ["a"]))
    renameat2("d", "f", RENAME_EXCHANGE)
    same(names("f"), ["b"])
    same(read("d"), b"2")
    renameat2("l", "e", RENAME_EXCHANGE)
    same(os.readlink("e"), "x")
    same(names("l"), ["a"])
    got = {name: os.lstat(name).st_ino for name in ("f", "g", "d", "e", "l")}
    want = {"f": numbers["e"], "g": numbers["f"], "d": numbers["g"], "e": numbers["l"], "l": numbers["d"]}
    same(got, want)
    fails(errno.ENOENT, renameat2, "f", "nothing", RENAME_EXCHANGE)
    fails(errno.ENOENT, renameat2, "nothing", "f", RENAME_EXCHANGE)


@exchange.then
def exchange_after_a_remount(_state: object) -> None:
    same(names("."), ["d", "e", "f", "g", "l"])
    same((names("f"), names("l"), read("d"), read("g")), (["b"], ["a"], b"2", b"1"))
    same(os.readlink("e"), "x")
    write("f/new", b"x")
    same(names("f"), ["b", "new"])


@check("d/f=1 d/sub/g=2 e/f=3")
def exchange_between_directories() -> None:
    """renameat2(2), RENAME_EXCHANGE: also between different directories, a file with a directory above another."""
    renameat2("d/f", "e/f", RENAME_EXCHANGE)
    same((read("d/f"), read("e/f")), (b"3", b"1"))
    renameat2("d/sub", "e/f", RENAME_EXCHANGE)
    same(read("d/sub"), b"1")
    same(names("e/f"), ["g"])
    same(read("e/f/g"), b"2")


@check("f=1 g=2 d/ l->nowhere")
def noreplace() -> None:
    """renameat2(2), RENAME_NOREPLACE: EEXIST if the target exists, whatever it is."""
    for name in ("g", "d", "l", "f"):
        fails(errno.EEXIST, renameat2, "f", name, RENAME_NOREPLACE)
    renameat2("f", "new", RENAME_NOREPLACE)
    same(read("new"), b"1")
    os.unlink("g")
    renameat2("new", "g", RENAME_NOREPLACE)
    same(names(), ["d", "g", "l"])
    os.rmdir("d")
    renameat2("g", "d", RENAME_NOREPLACE)
    same(read("d"), b"1")


@check("d/f=1 d/e/g=2")
def a_moved_directory_keeps_its_descriptors() -> None:
    """rename(2): a descriptor, or a current directory, in a moved directory goes along."""
    with opened("d") as fd:
        os.rename("d", "moved")
        same(sorted(os.listdir(fd)), ["e", "f"])
        inner = os.open("new", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
        os.close(inner)
        same(os.stat("e/g", dir_fd=fd).st_size, 1)
    same(names("moved"), ["e", "f", "new"])
    os.chdir("moved/e")
    os.rename("../../moved", "../../again")
    same(os.path.basename(os.path.dirname(os.getcwd())), "again")
    same(read("g"), b"2")
    same(names(".."), ["e", "f", "new"])


@check("a/f=1 b/ c/d/e/")
def the_parent_changes_with_the_move() -> None:
    """rename(2): `..` of a moved directory is its new parent."""
    for new in ("b/a", "c/d/a", "a"):
        os.rename(next(name for name in ("a", "b/a", "c/d/a") if exists(name)), new)
        same(os.stat(f"{new}/..").st_ino, os.stat(os.path.dirname(new) or ".").st_ino, new)
        same(read(f"{new}/f"), b"1")


@check("d/:700 e/:700", CHOWN, STRANGERS)
def moving_needs_both_directories() -> None:
    """rename(2): EACCES without write permission on either directory, and to move a directory one cannot write."""
    os.chmod(".", 0o755)
    for name in ("d", "e"):
        os.chown(name, 1000, 1000)
    os.chmod("e", 0o755)
    elsewhere(write, "d/f", b"x", uid=1000)
    elsewhere(os.mkdir, "d/sub", uid=1000)
    elsewhere(os.rename, "d/f", "e/f", uid=1000)
    fails(errno.EACCES, elsewhere, os.rename, "e/f", "f", uid=1000)
    fails(errno.EACCES, elsewhere, os.rename, "e/f", "e/g", uid=2000)
    os.chown("d/sub", 0, 0)
    os.chmod("d/sub", 0o755)
    fails(errno.EACCES, elsewhere, os.rename, "d/sub", "e/sub", uid=1000)
    elsewhere(os.rename, "d/sub", "d/sub2", uid=1000)


@check("d/f=1 d/g=2 d/h=3")
def replacing_one_after_another() -> None:
    """rename(2): a name can be replaced over and over, and removed at last."""
    for number in range(30):
        write("d/new", b"%d" % number)
        os.rename("d/new", "d/f")
        same(read("d/f"), b"%d" % number)
        same(names("d"), ["f", "g", "h"])
    os.rename("d/f", "d/g")
    os.rename("d/g", "d/h")
    same(names("d"), ["h"])
    os.unlink("d/h")
    same(names("d"), [])
    os.rmdir("d")


@replacing_one_after_another.then
def replacing_one_after_another_after_a_remount(_state: object) -> None:
    same(names("."), [])


def _wide() -> None:
    for number in range(_WIDE):
        os.makedirs(f"wide/{number:03}/sub")
        write(f"wide/{number:03}/sub/f", b"%d" % number)


@check(prepare=_wide)
def a_wide_tree_moves_at_once() -> None:
    """rename(2): moving a directory of many costs one call, and everything is there."""
    os.rename("wide", "moved")
    same(len(names("moved")), _WIDE)
    for number in (0, 50, _WIDE - 1):
        same(read(f"moved/{number:03}/sub/f"), b"%d" % number)
    os.rename("moved/050", "out")
    same(len(names("moved")), _WIDE - 1)
    same(read("out/sub/f"), b"50")
