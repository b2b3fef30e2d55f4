"""Special files where something is easily forgotten: set-group-ID, whiteouts, and xattrs of what is no regular file."""

from __future__ import annotations

import errno
import os
import socket
import stat

from tests.mounted.checking import (
    CHOWN,
    DEVICES,
    STRANGERS,
    UNION,
    beside,
    check,
    elsewhere,
    exists,
    fails,
    names,
    same,
    write,
)
from tests.mounted.libc import RENAME_WHITEOUT, renameat2

_NULL = os.makedev(1, 3)
_WHITEOUT = os.makedev(0, 0)


@check("d/", CHOWN)
def every_kind_below_a_set_group_id_directory() -> None:
    """inode(7): files of every kind take the group of a set-group-ID directory, sockets and fifos included."""
    os.chown("d", 0, 4321)
    os.chmod("d", 0o2777)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("d/s")
    os.mkfifo("d/p")
    os.symlink("x", "d/l")
    write("d/f", b"x")
    os.link("d/f", "d/g")
    write("outside", b"x")
    os.rename("outside", "d/moved")
    got = {name: os.lstat(f"d/{name}").st_gid for name in names("d")}
    same(got, {"s": 4321, "p": 4321, "l": 4321, "f": 4321, "g": 4321, "moved": 0})


@check("d/", DEVICES)
def devices_below_a_set_group_id_directory() -> None:
    """inode(7), mknod(2): so do device nodes; none of them gets the bit itself."""
    os.chown("d", 0, 4321)
    os.chmod("d", 0o2777)
    os.mknod("d/c", stat.S_IFCHR | 0o640, _NULL)
    os.mknod("d/b", stat.S_IFBLK | 0o640, os.makedev(7, 200))
    for name in ("d/c", "d/b"):
        same((os.lstat(name).st_gid, os.lstat(name).st_mode & 0o7777), (4321, 0o640), name)


@check("f=1 d/g=2", UNION)
def whiteouts_are_not_made_by_hand() -> None:
    """mknod(2): a character device 0:0, which Linux lets everybody make, is EPERM here, as on the kernel's overlay.

    On a branch it is the mark that hides what is below, so it can neither be kept nor shown.
    """
    for name in ("new", "d/new"):
        fails(errno.EPERM, os.mknod, name, stat.S_IFCHR | 0o600, _WHITEOUT)
        assert not exists(name)
    for name in ("f", "d", "d/g"):
        fails(errno.EEXIST, os.mknod, name, stat.S_IFCHR | 0o600, _WHITEOUT)
    os.unlink("f")
    fails(errno.EPERM, os.mknod, "f", stat.S_IFCHR | 0o600, _WHITEOUT)
    same((names(), names("d")), (["d"], ["g"]))
    write("f", b"again")


@whiteouts_are_not_made_by_hand.then
def whiteouts_are_not_made_by_hand_after_a_remount(_state: object) -> None:
    same((names(), names("d")), (["d", "f"], ["g"]))


@check("f=1 d/g=2 d/h=3", UNION)
def renames_leave_no_whiteout_by_hand() -> None:
    """renameat2(2): EINVAL for RENAME_WHITEOUT, which the filesystem does not support; nothing happens."""
    for old, new in (("f", "new"), ("f", "d/g"), ("d", "e"), ("d/g", "d/h")):
        fails(errno.EINVAL, renameat2, old, new, RENAME_WHITEOUT)
    same((names(), names("d")), (["d", "f"], ["g", "h"]))


@check("d/:777 d/f=1", UNION, CHOWN, STRANGERS)
def whiteouts_are_not_made_by_users() -> None:
    """The same for a user without privileges."""
    os.chmod(".", 0o777)
    os.chmod("d", 0o777)
    fails(errno.EPERM, elsewhere, os.mknod, "d/new", stat.S_IFCHR | 0o600, _WHITEOUT, uid=1000)
    fails(errno.EINVAL, elsewhere, renameat2, "d/f", "d/g", RENAME_WHITEOUT, uid=1000)
    same(names("d"), ["f"])


def _special_with_attributes() -> None:
    write("f", b"x")
    os.mkdir("d")
    os.symlink("f", "l")
    os.symlink("nowhere", "dangling")
    os.mkfifo("p")
    os.mknod("c", stat.S_IFCHR | 0o600, _NULL)
    for name in ("f", "d", "l", "dangling", "p", "c"):
        os.setxattr(name, "trusted.colour", b"green", follow_symlinks=False)
        os.setxattr(name, "security.label", b"secret", follow_symlinks=False)


@check("", DEVICES, prepare=_special_with_attributes)
def trusted_and_security_attributes_of_everything() -> None:
    """xattr(7): trusted and security attributes are for files of every kind, symbolic links themselves included."""
    for name in ("f", "d", "l", "dangling", "p", "c"):
        same(sorted(os.listxattr(name, follow_symlinks=False)), ["security.label", "trusted.colour"], name)
        os.setxattr(name, "trusted.size", b"x" * 500, follow_symlinks=False)
        os.setxattr(name, "trusted.colour", b"blue", os.XATTR_REPLACE, follow_symlinks=False)
        fails(errno.EEXIST, os.setxattr, name, "trusted.colour", b"", os.XATTR_CREATE, follow_symlinks=False)
        fails(errno.ENODATA, os.setxattr, name, "trusted.no", b"", os.XATTR_REPLACE, follow_symlinks=False)
        fails(errno.ENODATA, os.getxattr, name, "trusted.no", follow_symlinks=False)
        fails(errno.ENODATA, os.removexattr, name, "security.no", follow_symlinks=False)
        os.removexattr(name, "security.label", follow_symlinks=False)
        same(os.getxattr(name, "trusted.colour", follow_symlinks=False), b"blue")
        same(os.getxattr(name, "trusted.size", follow_symlinks=False), b"x" * 500)
        same(sorted(os.listxattr(name, follow_symlinks=False)), ["trusted.colour", "trusted.size"], name)
    same(os.readlink("l"), "f")
    same(os.stat("c").st_rdev, _NULL)


@trusted_and_security_attributes_of_everything.then
def trusted_and_security_attributes_after_a_remount(_state: object) -> None:
    for name in ("f", "d", "l", "dangling", "p", "c"):
        same(os.getxattr(name, "trusted.colour", follow_symlinks=False), b"blue", name)
        os.rename(name, f"{name}2")
        same(sorted(os.listxattr(f"{name}2", follow_symlinks=False)), ["trusted.colour", "trusted.size"], name)


def _shown_to_all() -> set[str]:
    """btrfs lists trusted attributes to everybody; nobody is to rely on that."""
    write(beside("f"), b"x")
    os.setxattr(beside("f"), "trusted.x", b"1")
    return set(elsewhere(os.listxattr, beside("f"), uid=1000))


@check("f=1", DEVICES, STRANGERS)
def trusted_attributes_are_roots() -> None:
    """xattr(7): without CAP_SYS_ADMIN trusted attributes are neither seen nor set; security ones are seen by all."""
    os.setxattr("f", "trusted.x", b"1")
    os.setxattr("f", "security.x", b"2")
    os.chmod("f", 0o666)
    os.chmod(".", 0o777)
    same(set(elsewhere(os.listxattr, "f", uid=1000)) - _shown_to_all(), {"security.x"})
    fails(errno.ENODATA, elsewhere, os.getxattr, "f", "trusted.x", uid=1000)
    fails(errno.EPERM, elsewhere, os.setxattr, "f", "trusted.x", b"3", uid=1000)
    fails(errno.EPERM, elsewhere, os.removexattr, "f", "trusted.x", uid=1000)
    same(elsewhere(os.getxattr, "f", "security.x", uid=1000), b"2")
    fails(errno.EPERM, elsewhere, os.setxattr, "f", "security.x", b"3", uid=1000)
    same((os.getxattr("f", "trusted.x"), os.getxattr("f", "security.x")), (b"1", b"2"))


@check("d/:1777 d/f=1 d/e/", CHOWN, STRANGERS)
def user_attributes_of_sticky_directories() -> None:
    """xattr(7): user attributes of a sticky directory are for its owner; of others, for who may write them."""
    os.chmod(".", 0o777)
    for name, mode in (("d", 0o1777), ("d/e", 0o777), ("d/f", 0o666)):
        os.chmod(name, mode)
    fails(errno.EPERM, elsewhere, os.setxattr, "d", "user.x", b"1", uid=1000)
    elsewhere(os.setxattr, "d/e", "user.x", b"1", uid=1000)
    elsewhere(os.setxattr, "d/f", "user.x", b"1", uid=1000)
    os.setxattr("d", "user.x", b"1")
    same(elsewhere(os.getxattr, "d", "user.x", uid=1000), b"1")


def _back_into_the_tree() -> None:
    """Links by their absolute path, to what the tree shows once it is mounted."""
    here = os.getcwd()
    merged = os.path.join(os.path.dirname(os.path.dirname(here)), "merged", os.path.basename(here))
    for name in ("f", "d", "l2", "nothing"):
        os.symlink(os.path.join(merged, name), f"to-{name}")


@check("f=hello d/g=1 l2->f", prepare=_back_into_the_tree)
def links_that_lead_back_into_the_tree() -> None:
    """lchown(2), utimensat(2), lsetxattr(2) ... of a link act on the link: nobody waits for himself."""
    for name in ("to-f", "to-d", "to-l2", "to-nothing"):
        before = os.readlink(name)
        os.utime(name, ns=(7, 8), follow_symlinks=False)
        os.lchown(name, os.getuid(), os.getgid())
        same(os.listxattr(name, follow_symlinks=False), [])
        fails(errno.EPERM, os.setxattr, name, "user.x", b"1", follow_symlinks=False)
        fails((errno.EPERM, errno.ENODATA), os.removexattr, name, "user.x", follow_symlinks=False)
        os.link(name, f"{name}.hard", follow_symlinks=False)
        os.rename(name, f"{name}.moved")
        same((os.readlink(f"{name}.moved"), os.lstat(f"{name}.moved").st_mtime_ns), (before, 8))
        same(os.lstat(f"{name}.hard").st_ino, os.lstat(f"{name}.moved").st_ino)
        os.unlink(f"{name}.hard")
    same(os.stat("to-f.moved").st_size, 5)
    same(names("to-d.moved"), ["g"])
    os.setxattr("to-f.moved", "user.x", b"1")
    same(os.getxattr("f", "user.x"), b"1")
    fails(errno.ENOENT, os.setxattr, "to-nothing.moved", "user.x", b"1")
