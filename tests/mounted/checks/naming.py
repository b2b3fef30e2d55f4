"""Names and paths: path_resolution(7), NAME_MAX and PATH_MAX of <limits.h>, names that are not text."""

from __future__ import annotations

import errno
import os
import stat

from tests.mounted.checking import UNION, check, exists, fails, names, read, same, write

_LEVELS = 20
_LEVEL = "L" * 255
"""20 levels of 255 bytes are longer than PATH_MAX (4096)."""


def _longest_names() -> None:
    write("l" * 255, b"long")
    os.mkdir("d" * 255)
    write("d" * 255 + "/" + "f" * 255, b"below")
    os.symlink("t", "s" * 255)


@check(prepare=_longest_names)
def names_of_255_bytes() -> None:
    """path_resolution(7): names may have 255 bytes; all calls take them."""
    name, directory = "l" * 255, "d" * 255
    same(read(name), b"long")
    write(name, b"changed")
    os.rename(name, "m" * 255)
    same(read("m" * 255), b"changed")
    os.link("m" * 255, "n" * 255)
    os.unlink("m" * 255)
    same(names(directory), ["f" * 255])
    write(f"{directory}/{'f' * 255}", b"x")
    os.rename(directory, "e" * 255)
    os.symlink("x" * 255, "y" * 255)
    os.unlink("s" * 255)
    os.mkdir("z" * 255)
    os.mkfifo("p" * 255)
    same([each[0] for each in names()], ["e", "n", "p", "y", "z"])
    os.unlink("e" * 255 + "/" + "f" * 255)
    os.rmdir("e" * 255)
    os.unlink("n" * 255)
    os.setxattr("z" * 255, "user.x", b"1")


@check("f=hello d/")
def longer_names_are_refused() -> None:
    """path_resolution(7): ENAMETOOLONG for a component of more than 255 bytes, in every call."""
    for length in (256, 257, 1023, 1024, 2000):
        name = "x" * length
        fails(errno.ENAMETOOLONG, os.stat, name)
        fails(errno.ENAMETOOLONG, os.open, name, os.O_RDONLY)
        fails(errno.ENAMETOOLONG, os.open, name, os.O_WRONLY | os.O_CREAT)
        fails(errno.ENAMETOOLONG, os.mkdir, name)
        fails(errno.ENAMETOOLONG, os.mkfifo, name)
        fails(errno.ENAMETOOLONG, os.symlink, "x", name)
        fails(errno.ENAMETOOLONG, os.link, "f", name)
        fails(errno.ENAMETOOLONG, os.rename, "f", name)
        fails(errno.ENAMETOOLONG, os.rename, name, "f")
        fails(errno.ENAMETOOLONG, os.unlink, name)
        fails(errno.ENAMETOOLONG, os.rmdir, name)
        fails(errno.ENAMETOOLONG, os.stat, f"{name}/below")
        fails(errno.ENAMETOOLONG, os.stat, f"d/{name}")
    same(names(), ["d", "f"])


@check("f=hello")
def paths_of_4096_bytes_are_refused() -> None:
    """path_resolution(7): ENAMETOOLONG for a path of 4096 bytes or more; 4095 are fine."""
    path = "./" * 2047 + "f"
    same(len(path), 4095)
    same(read(path), b"hello")
    fails(errno.ENAMETOOLONG, os.stat, "/" + path)


_STRANGE = (
    b"\xff\xfe\x80",
    b"new\nline",
    b"tab\t",
    b" ",
    b"-rf",
    b"*?[",
    b"back\\slash",
    b"\x01\x7f",
    "grün".encode(),
    "gru\u0308n".encode(),
    b"latin-\xe9",
    b"...",
    b".hidden",
    b"a:b,c=d",
    b"%41",
    b"UPPER",
    b"upper",
    b"wh.f",
    b".w",
    b".wh",
)


def _strange_names() -> None:
    for name in _STRANGE:
        write(b"old " + name, name)


@check(prepare=_strange_names)
def names_are_bytes() -> None:
    """path_resolution(7): any byte but NUL and the slash; no encoding, no case folding, no normalisation."""
    for name in _STRANGE:
        same(read(b"old " + name), name)
        write(name, b"x" + name)
        same(read(name), b"x" + name)
        os.rename(b"old " + name, b"moved " + name)
        os.mkdir(b"dir " + name)
        os.symlink(name, b"link " + name)
        same(os.readlink(b"link " + name), name)
    want = sorted([*_STRANGE, *(prefix + name for prefix in (b"moved ", b"dir ", b"link ") for name in _STRANGE)])
    same(sorted(os.listdir(b".")), want)
    for name in _STRANGE:
        os.unlink(b"moved " + name)
        os.rmdir(b"dir " + name)
    same(sorted(os.listdir(b".")), sorted([*_STRANGE, *(b"link " + name for name in _STRANGE)]))


def _deep_tree() -> None:
    here = os.open(".", os.O_RDONLY)
    for _ in range(_LEVELS):
        os.mkdir(_LEVEL)
        os.chdir(_LEVEL)
    write("bottom", b"deep below")
    os.fchdir(here)
    os.close(here)


def _descend() -> None:
    for _ in range(_LEVELS):
        os.chdir(_LEVEL)


@check(prepare=_deep_tree)
def paths_deeper_than_path_max() -> None:
    """path_resolution(7), chdir(2): PATH_MAX limits one call's path, not the tree; all of it is reached."""
    top = os.open(".", os.O_RDONLY)
    _descend()
    same(read("bottom"), b"deep below")
    write("bottom", b"changed in the deep")
    os.setxattr("bottom", "user.x", b"1")
    os.rename("bottom", "renamed")
    os.mkdir("d")
    write("d/new", b"new")
    os.link("renamed", "d/link")
    same(names("."), ["d", "renamed"])
    os.chmod("d", 0o700)
    os.fchdir(top)
    _descend()
    same(read("d/link"), b"changed in the deep")
    os.unlink("renamed")
    same(os.stat("d/link").st_nlink, 1)


@paths_deeper_than_path_max.then
def paths_deeper_than_path_max_after_a_remount(_state: object) -> None:
    top = os.open(".", os.O_RDONLY)
    _descend()
    same(names("."), ["d"])
    same(read("d/link"), b"changed in the deep")
    same(read("d/new"), b"new")
    os.fchdir(top)


@check()
def a_deep_tree_is_made_and_removed() -> None:
    """mkdir(2), rmdir(2): the same for a tree that is made now, and removed from its bottom up."""
    _deep_tree()
    top = os.open(".", os.O_RDONLY)
    _descend()
    os.unlink("bottom")
    for _ in range(_LEVELS):
        os.chdir("..")
        os.rmdir(_LEVEL)
    same(os.stat(".").st_ino, os.fstat(top).st_ino)
    same(names(), [])


@check(prepare=_deep_tree)
def a_deep_tree_moves() -> None:
    """rename(2): the top of a deep tree moves, and its bottom is still found."""
    top = os.open(".", os.O_RDONLY)
    os.rename(_LEVEL, "moved")
    os.chdir("moved")
    for _ in range(_LEVELS - 1):
        os.chdir(_LEVEL)
    same(read("bottom"), b"deep below")
    write("bottom", b"x")
    os.fchdir(top)


@check("d/e/f=1 l->d/e")
def dots_and_slashes() -> None:
    """path_resolution(7): . and .., repeated and trailing slashes, .. after a symbolic link."""
    same(read("d/./e/../e//f"), b"1")
    same(os.stat("d/e/").st_ino, os.stat("d/e").st_ino)
    same(os.stat("l/..").st_ino, os.stat("d").st_ino)
    same(os.lstat("l/").st_ino, os.stat("d/e").st_ino)
    fails(errno.ENOTDIR, os.stat, "d/e/f/")
    fails(errno.ENOTDIR, os.stat, "d/e/f/.")
    fails(errno.EISDIR, os.open, "new/", os.O_WRONLY | os.O_CREAT)
    os.mkdir("new/")
    fails((errno.EINVAL, errno.ENOTEMPTY), os.rmdir, "new/.")
    fails((errno.EINVAL, errno.ENOTEMPTY), os.rmdir, "new/..")
    fails(errno.EEXIST, os.mkdir, "new/.")
    os.rmdir("new/")


@check("f=hello d/g=1", UNION)
def reserved_names_are_refused() -> None:
    """A union with AUFS marks keeps `.wh.` names for itself: never shown, never made."""
    for name in (".wh.f", ".wh.new", ".wh..wh..opq", ".wh.", "d/.wh.g", "d/.wh..wh.plnk"):
        for refused in (
            lambda name=name: os.close(os.open(name, os.O_WRONLY | os.O_CREAT)),
            lambda name=name: os.mkdir(name),
            lambda name=name: os.mkfifo(name),
            lambda name=name: os.mknod(name, stat.S_IFREG | 0o600),
            lambda name=name: os.symlink("x", name),
            lambda name=name: os.link("f", name),
            lambda name=name: os.rename("f", name),
        ):
            fails((errno.EPERM, errno.EINVAL), refused)
        fails(errno.ENOENT, os.stat, name)
        fails(errno.ENOENT, os.unlink, name)
        assert not exists(name)
    same(names(), ["d", "f"])
    same(names("d"), ["g"])
    same(read("f"), b"hello")


@check("f=hello")
def long_reserved_looking_names() -> None:
    """Names whose mark would be too long still can be removed and made again (255 bytes and 251 bytes)."""
    for length in (250, 251, 252, 255):
        name = "w" * length
        write(name, b"1")
        os.unlink(name)
        assert not exists(name)
        write(name, b"2")
        same(read(name), b"2")


def _long_names_below() -> None:
    for length in (250, 251, 252, 255):
        write("w" * length, b"old")
        os.mkdir("d" * length)
        write("d" * length + "/f", b"old")


@check(prepare=_long_names_below)
def long_names_are_removed_for_good() -> None:
    """unlink(2), rmdir(2): objects with the longest names go and stay away."""
    for length in (250, 251, 252, 255):
        os.unlink("w" * length)
        os.unlink("d" * length + "/f")
        os.rmdir("d" * length)
    same(names(), [])


@long_names_are_removed_for_good.then
def long_names_are_removed_for_good_after_a_remount(_state: object) -> None:
    same(names(), [])
    for length in (250, 255):
        os.mkdir("w" * length)
        same(names("w" * length), [])
        write("d" * length, b"a file now")
    same(len(names()), 4)
