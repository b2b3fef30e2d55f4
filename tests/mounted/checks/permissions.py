"""Access rights: path_resolution(7), permissions; credentials(7). Other users are forked processes."""

from __future__ import annotations

import errno
import os

from tests.mounted.checking import CHOWN, STRANGERS, check, elsewhere, exists, fails, names, opened, read, same, write


@check("f:600=secret d/:700 d/g=1 e/:755 e/h:644=open", CHOWN, STRANGERS)
def strangers_get_what_the_mode_gives() -> None:
    """path_resolution(7): owner, group and other bits decide; search permission on every directory (EACCES)."""
    os.chmod(".", 0o755)
    fails(errno.EACCES, elsewhere, read, "f", uid=1000)
    fails(errno.EACCES, elsewhere, write, "f", b"x", 0, uid=1000)
    fails(errno.EACCES, elsewhere, names, "d", uid=1000)
    fails(errno.EACCES, elsewhere, read, "d/g", uid=1000)
    fails(errno.EACCES, elsewhere, os.stat, "d/g", uid=1000)
    same(elsewhere(read, "e/h", uid=1000), b"open")
    same(elsewhere(names, "e", uid=1000), ["h"])
    for refused in (
        lambda: write("e/new", b"x"),
        lambda: write("e/h", b"x", 0),
        lambda: os.unlink("e/h"),
        lambda: os.mkdir("e/new"),
        lambda: os.symlink("x", "e/new"),
        lambda: os.rename("e/h", "e/new"),
        lambda: os.truncate("e/h", 0),
        lambda: os.link("e/h", "e/new"),
        lambda: os.mkfifo("e/new"),
    ):
        fails((errno.EACCES, errno.EPERM), elsewhere, refused, uid=1000)
    for refused in (
        lambda: os.chmod("e/h", 0o777),
        lambda: os.chown("e/h", 1000, 1000),
        lambda: os.utime("e/h", (1, 1)),
    ):
        fails(errno.EPERM, elsewhere, refused, uid=1000)
    same(read("e/h"), b"open")
    same(names("e"), ["h"])


@check("f=shared", CHOWN, STRANGERS)
def groups_count() -> None:
    """credentials(7): the group bits count for members of any of their groups; the owner bits for the owner only."""
    os.chown("f", 1000, 3000)
    os.chmod("f", 0o040)
    fails(errno.EACCES, elsewhere, read, "f", uid=1000)
    fails(errno.EACCES, elsewhere, read, "f", uid=2000)
    same(elsewhere(read, "f", uid=2000, groups=(3000,)), b"shared")
    same(elsewhere(read, "f", uid=3000), b"shared")


@check("d/f=1", CHOWN, STRANGERS)
def search_without_list_and_list_without_search() -> None:
    """path_resolution(7): x on a directory is for what is in it, r is for the names."""
    os.chmod("d", 0o711)
    same(elsewhere(read, "d/f", uid=1000), b"1")
    fails(errno.EACCES, elsewhere, names, "d", uid=1000)
    os.chmod("d", 0o744)
    same(elsewhere(names, "d", uid=1000), ["f"])
    fails(errno.EACCES, elsewhere, read, "d/f", uid=1000)
    fails(errno.EACCES, elsewhere, os.chdir, "d", uid=1000)


@check("f:644=1", CHOWN, STRANGERS)
def rights_are_checked_at_open() -> None:
    """open(2): rights are checked when a file is opened; later changes of the mode do not close descriptors."""
    os.chown("f", 1000, 1000)

    def hold_on() -> bytes:
        with opened("f", os.O_RDWR) as fd:
            os.chmod("f", 0)
            os.pwrite(fd, b"2", 0)
            fails(errno.EACCES, os.open, "f", os.O_RDONLY)
            return os.pread(fd, 10, 0)

    same(elsewhere(hold_on, uid=1000), b"2")


@check("f:444=1 d/:555 d/g=1")
def own_read_only_things() -> None:
    """open(2): EACCES for the owner too when the mode says so, unless it is root; chmod opens it again."""
    if os.getuid() == 0:
        write("f", b"2", 0)
        write("d/new", b"2")
        same(read("f"), b"2")
        return
    fails(errno.EACCES, os.open, "f", os.O_WRONLY)
    fails(errno.EACCES, os.open, "d/new", os.O_WRONLY | os.O_CREAT)
    fails(errno.EACCES, os.unlink, "d/g")
    os.chmod("d", 0o755)
    os.unlink("d/g")
    os.chmod("f", 0o644)
    write("f", b"2", 0)


def _use_mode_zero() -> None:
    os.rename("f", "g")
    os.chmod("g", 0o600)
    same(read("g"), b"hidden")
    os.rename("d", "e")
    os.chmod("e", 0o700)
    same(read("e/g"), b"below")
    os.unlink("e/g")
    os.rmdir("e")
    assert not exists("d")


@check("f:000=hidden d/:000 d/g=below")
def mode_zero() -> None:
    """chmod(2), unlink(2): what nobody may read can still be changed back, renamed and removed by its owner."""
    _use_mode_zero()


@check()
def mode_zero_of_new_things() -> None:
    """As above for what was just made."""
    write("f", b"hidden")
    os.mkdir("d")
    write("d/g", b"below")
    os.chmod("f", 0)
    os.chmod("d", 0)
    _use_mode_zero()


@check("d/:777 d/f:666=1", CHOWN, STRANGERS)
def strangers_change_what_they_may() -> None:
    """open(2): a stranger with permission changes a file of root's for the first time; it stays root's."""
    os.chmod("d", 0o777)
    elsewhere(write, "d/f", b"by another", 0, uid=1000)
    same(read("d/f"), b"by another")
    same(os.stat("d/f").st_uid, 0)
    elsewhere(os.rename, "d/f", "d/g", uid=1000)
    elsewhere(os.unlink, "d/g", uid=1000)
    same(names("d"), [])
