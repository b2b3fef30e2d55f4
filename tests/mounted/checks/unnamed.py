"""Files without a name: open(2), O_TMPFILE, and linkat(2), which gives them one."""

from __future__ import annotations

import errno
import os
import stat

from tests.mounted.checking import CHOWN, check, exists, fails, names, opened, read, same, write
from tests.mounted.libc import RENAME_EXCHANGE, link_fd, renameat2

_UNNAMED = os.O_TMPFILE | os.O_RDWR


@check("d/f=1 d/e/")
def refusals() -> None:
    """open(2), O_TMPFILE: EINVAL without write access, ENOTDIR below a file, ENOENT for nothing; linkat(2): EEXIST."""
    fails(errno.EINVAL, os.open, "d", os.O_TMPFILE | os.O_RDONLY)
    fails(errno.ENOTDIR, os.open, "d/f", _UNNAMED)
    fails(errno.ENOENT, os.open, "nothing", _UNNAMED)
    with opened("d", _UNNAMED) as fd:
        for taken in ("d/f", "d/e"):
            fails(errno.EEXIST, link_fd, fd, taken)
        fails(errno.ENOENT, link_fd, fd, "nothing/x")
        fails(errno.ENAMETOOLONG, link_fd, fd, "x" * 256)
        same(os.fstat(fd).st_nlink, 0)
    same(names("d"), ["e", "f"])


@check("d/old=1 other/")
def named_at_last() -> dict[str, int]:
    """linkat(2): the name may be in any directory, may be one that was removed, and may be followed by others."""
    with opened("d", _UNNAMED, 0o640) as fd:
        os.write(fd, b"content")
        os.setxattr(fd, "user.x", b"1")
        os.unlink("d/old")
        link_fd(fd, "d/old")
        link_fd(fd, "other/second")
        same(os.fstat(fd).st_nlink, 2)
        number = os.fstat(fd).st_ino
        os.write(fd, b" and more")
        same(read("d/old"), b"content and more")
    same({os.stat(name).st_ino for name in ("d/old", "other/second")}, {number})
    same(os.getxattr("d/old", "user.x"), b"1")
    with opened("d", _UNNAMED) as fd:
        os.write(fd, b"swapped")
        link_fd(fd, "d/new")
        renameat2("d/new", "d/old", RENAME_EXCHANGE)
        os.unlink("d/new")
        same(os.fstat(fd).st_nlink, 1)
    same((read("d/old"), read("other/second")), (b"swapped", b"content and more"))
    return {"number": number}


@named_at_last.then
def named_at_last_after_a_remount(kept: dict[str, int]) -> None:
    same((names("d"), names("other")), (["old"], ["second"]))
    same((os.stat("other/second").st_ino, os.stat("other/second").st_nlink), (kept["number"], 1))


@check("d/")
def many_at_once() -> None:
    """open(2), O_TMPFILE: each is a file of its own, and none is ever seen in a listing."""
    fds = [os.open("d", _UNNAMED) for _ in range(20)]
    for number, fd in enumerate(fds):
        os.pwrite(fd, b"%d" % number, 0)
    same(len({os.fstat(fd).st_ino for fd in fds}), 20)
    for number, fd in enumerate(fds):
        same(os.pread(fd, 10, 0), b"%d" % number)
        with opened(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND) as again:
            os.write(again, b"!")
        same(os.pread(fd, 10, 0), b"%d!" % number)
    same(names("d"), [])
    os.rmdir("d")
    for fd in fds:
        os.ftruncate(fd, 100)
        same(os.fstat(fd).st_size, 100)
        os.close(fd)


@check("d/:2777", CHOWN)
def what_they_inherit() -> None:
    """open(2), O_TMPFILE: owner, group of a set-group-ID directory, and mode less umask, as for a file with a name."""
    os.chown("d", 0, 4321)
    os.chmod("d", 0o2777)
    os.umask(0o027)
    with opened("d", _UNNAMED, 0o666) as fd:
        status = os.fstat(fd)
        same((status.st_gid, stat.S_IMODE(status.st_mode)), (4321, 0o640))
        link_fd(fd, "d/f")
    same((os.stat("d/f").st_gid, stat.S_IMODE(os.stat("d/f").st_mode)), (4321, 0o640))
    write("d/g", b"x", mode=0o666)
    same(stat.S_IMODE(os.stat("d/g").st_mode), 0o640)
    assert exists("d/f")
