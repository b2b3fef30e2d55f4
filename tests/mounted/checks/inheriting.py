"""What new objects take from default ACLs (acl(5), object creation), kind by kind and way by way."""

from __future__ import annotations

import errno
import os
import stat

from tests.mounted.checking import CHOWN, DEVICES, check, fails, opened, same, write
from tests.mounted.checks.acls import ACCESS, DEFAULT, get, put
from tests.mounted.libc import link_fd

_ENTRIES = "user::rwx,user:1234:rwx,group::r-x,mask::rwx,other::--x"


def _mode(name: str) -> int:
    return stat.S_IMODE(os.lstat(name).st_mode)


def _directory(name: str = "d") -> None:
    os.mkdir(name)
    put(name, _ENTRIES, DEFAULT)


@check("", CHOWN)
def every_kind_inherits() -> None:
    """acl(5): files, fifos, sockets and regular files by mknod take the default ACL as their own; links take none."""
    import socket

    _directory()
    os.umask(0)
    write("d/f", b"x", mode=0o666)
    os.mkfifo("d/p", 0o666)
    os.mknod("d/n", stat.S_IFREG | 0o640)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("d/s")
    os.symlink("f", "d/l")
    for name, mask, mode in (("f", "rw-", 0o660), ("p", "rw-", 0o660), ("n", "r--", 0o640), ("s", "rwx", 0o771)):
        assert f"mask::{mask}" in get(f"d/{name}"), (name, get(f"d/{name}"))
        same(_mode(f"d/{name}"), mode, name)
        fails(errno.ENODATA, os.getxattr, f"d/{name}", DEFAULT)
    same(os.listxattr("d/l", follow_symlinks=False), [])


@check("", DEVICES)
def devices_inherit() -> None:
    """acl(5): so do device nodes."""
    _directory()
    os.umask(0)
    os.mknod("d/c", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    same(get("d/c"), {"user::rw-", "user:1234:rwx", "group::r-x", "mask::---", "other::---"})


@check("")
def directories_pass_it_on() -> None:
    """acl(5): a directory takes the default ACL as its own and as its default, however deep; a moved one keeps its."""
    _directory()
    os.umask(0)
    os.mkdir("d/e", 0o755)
    os.mkdir("d/e/g", 0o700)
    write("d/e/g/f", b"x", mode=0o600)
    same(get("d/e/g", DEFAULT), get("d", DEFAULT))
    assert "mask::---" in get("d/e/g/f")
    os.mkdir("plain")
    os.rename("plain", "d/moved")
    fails(errno.ENODATA, os.getxattr, "d/moved", DEFAULT)
    os.removexattr("d", DEFAULT)
    os.mkdir("d/late", 0o755)
    fails(errno.ENODATA, os.getxattr, "d/late", DEFAULT)
    same(get("d/e", DEFAULT), get("d/e/g", DEFAULT))


@check("")
def names_that_were_taken_before() -> None:
    """acl(5): what is made in the place of something removed or replaced inherits as anything new does."""
    _directory()
    os.umask(0)
    for _ in range(2):
        write("d/f", b"x", mode=0o666)
        os.mkdir("d/e", 0o777)
        assert "user:1234:rwx" in get("d/f")
        assert "user:1234:rwx" in get("d/e", DEFAULT)
        os.unlink("d/f")
        os.rmdir("d/e")


@check("")
def links_and_moves_inherit_nothing() -> None:
    """acl(5): link(2) and rename(2) make no new object: what has no ACL gets none."""
    _directory()
    write("f", b"x", mode=0o644)
    os.link("f", "d/f")
    os.rename("f", "d/g")
    same(os.stat("d/g").st_nlink, 2)
    fails(errno.ENODATA, os.getxattr, "d/g", ACCESS)
    same(_mode("d/f"), 0o644)


@check("")
def unnamed_files_inherit() -> None:
    """open(2), O_TMPFILE: an unnamed file inherits from the directory that it was opened in, not from the one it is
    linked to."""
    _directory()
    os.umask(0)
    with opened("d", os.O_TMPFILE | os.O_WRONLY, 0o640) as fd:
        link_fd(fd, "f")
    same(get("f"), {"user::rw-", "user:1234:rwx", "group::r-x", "mask::r--", "other::---"})
