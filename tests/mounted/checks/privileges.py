"""Which changes by which users clear set-id bits and file capabilities (inode(7), capabilities(7))."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from functools import partial

from tests.mounted.checking import (
    CHOWN,
    STRANGERS,
    beside,
    check,
    elsewhere,
    exists,
    fails,
    names,
    opened,
    read,
    same,
    write,
)
from tests.mounted.libc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, RENAME_EXCHANGE, fallocate, renameat2

_PING = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
"""cap_net_raw+ep in the layout of <linux/capability.h>, VFS_CAP_REVISION_2 with the effective bit."""

_SIZE = 8192


def _mode(name: str) -> int:
    return stat.S_IMODE(os.lstat(name).st_mode)


def _powerful(name: str, uid: int = 1000, mode: int = 0o6777) -> None:
    """A file with set-id bits and capabilities, which everybody may write."""
    write(name, b"c" * _SIZE)
    os.chown(name, uid, uid)
    os.chmod(name, mode)
    os.setxattr(name, "security.capability", _PING)


def _has_capabilities(name: str) -> bool:
    return "security.capability" in os.listxattr(name)


def _by_sendfile(name: str) -> None:
    with opened("source") as source, opened(name, os.O_WRONLY) as out:
        same(os.sendfile(out, source, 0, 100), 100)


def _by_splice(name: str) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x" * 100)
    with opened(name, os.O_WRONLY) as out:
        same(os.splice(reader, out, 100), 100)


def _by_copy_range(name: str) -> None:
    with opened("source") as source, opened(name, os.O_WRONLY) as out:
        same(os.copy_file_range(source, out, 100), 100)


def _by_direct_write(name: str) -> None:
    import mmap

    with opened(name, os.O_WRONLY | os.O_DIRECT) as fd:
        same(os.pwritev(fd, [mmap.mmap(-1, 4096)], 0), 4096)


def _by_vector(name: str) -> None:
    with opened(name, os.O_WRONLY) as fd:
        os.pwritev(fd, [b"a", b"b"], 10)


def _by_fallocate(name: str) -> None:
    with opened(name, os.O_WRONLY) as fd:
        fallocate(fd, 0, 0, 20_000)


def _by_punching(name: str) -> None:
    with opened(name, os.O_WRONLY) as fd:
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096)


def _falls(change: Callable[[str], object], about: str) -> None:
    """By a stranger everything falls; by root, who has CAP_FSETID outside of user namespaces, the capabilities only."""
    native = beside("privileged")
    _powerful(native)
    _by_vector(native)
    for who, left in ((2000, 0o777), (None, _mode(native))):
        _powerful("f")
        elsewhere(change, "f", uid=who)
        assert not _has_capabilities("f"), f"{about} by {who}: capabilities are left"
        same(_mode("f"), left, f"{about} by {who}")
        _powerful("f", mode=0o2767)
        elsewhere(change, "f", uid=who)
        same(_mode("f") & stat.S_ISUID, 0)
        os.unlink("f")


@check(f"source~{_SIZE}", CHOWN, STRANGERS)
def every_write_takes_them() -> None:
    """write(2) and its kin, inode(7), capabilities(7): data from whoever lacks CAP_FSETID clears the set-id bits.

    Capabilities are cleared whoever writes.
    """
    os.chmod(".", 0o777)
    for way in (_by_vector, _by_direct_write, _by_sendfile, _by_splice, _by_copy_range):
        _falls(way, way.__name__)


@check("", CHOWN, STRANGERS)
def truncation_takes_them() -> None:
    """truncate(2), open(2) with O_TRUNC: the same for every change of the size, and for none at all."""
    os.chmod(".", 0o777)
    for about, way in {
        "down": lambda name: os.truncate(name, 10),
        "up": lambda name: os.truncate(name, _SIZE + 10),
        "same": lambda name: os.truncate(name, _SIZE),
        "O_TRUNC": lambda name: os.close(os.open(name, os.O_WRONLY | os.O_TRUNC)),
    }.items():
        _falls(way, about)


@check("", CHOWN, STRANGERS)
def space_takes_them() -> None:
    """fallocate(2) is a change of the content: the same."""
    os.chmod(".", 0o777)
    for way in (_by_fallocate, _by_punching):
        _falls(way, way.__name__)


@check("", CHOWN, STRANGERS)
def reading_takes_nothing() -> None:
    """read(2), open(2), utimensat(2), link(2), rename(2), setxattr(2): neither bits nor capabilities change."""
    os.chmod(".", 0o777)
    _powerful("f")
    for way in (
        read,
        lambda name: os.close(os.open(name, os.O_RDWR)),
        os.utime,
        lambda name: os.setxattr(name, "user.x", b"1"),
        lambda name: os.write(os.open(name, os.O_WRONLY), b""),
    ):
        elsewhere(way, "f", uid=2000)
        same(_mode("f"), 0o6777)
        assert _has_capabilities("f")
    os.link("f", "g")
    os.rename("g", "h")
    same((_mode("h"), _has_capabilities("h")), (0o6777, True))


@check("", CHOWN, STRANGERS)
def chown_takes_them_from_files() -> None:
    """chown(2): whoever calls it, the bits and the capabilities of a file fall; -1 for both ids is a call like any."""
    os.chmod(".", 0o777)
    for about, who, uid, gid in (
        ("root gives it away", None, 1001, 1001),
        ("root changes the owner", None, 1001, -1),
        ("root changes the group", None, -1, 1001),
        ("root changes nothing", None, 1000, 1000),
        ("the owner changes nothing", 1000, 1000, 1000),
        ("the owner leaves both", 1000, -1, -1),
    ):
        _powerful("f")
        elsewhere(os.chown, "f", uid, gid, uid=who)
        same(_mode("f"), 0o777, about)
        assert not _has_capabilities("f"), about
    _powerful("g", mode=0o2767)
    os.chown("g", 1001, 1001)
    same(_mode("g"), 0o2767, "set-group-ID without execution by the group is no privilege")


@check("d/", CHOWN, STRANGERS)
def chown_by_whom() -> None:
    """chown(2): the owner may choose among the groups he is in, others nothing (EPERM); nothing changes if refused."""
    os.chmod(".", 0o777)
    for name in ("f", "d"):
        if name == "f":
            write(name, b"x")
        os.chown(name, 1000, 1000)
        elsewhere(os.chown, name, -1, 3000, uid=1000, groups=(3000,))
        same((os.stat(name).st_uid, os.stat(name).st_gid), (1000, 3000))
        fails(errno.EPERM, elsewhere, os.chown, name, -1, 4000, uid=1000, groups=(3000,))
        fails(errno.EPERM, elsewhere, os.chown, name, 2000, -1, uid=1000)
        fails(errno.EPERM, elsewhere, os.chown, name, -1, 2000, uid=2000)
        fails(errno.EPERM, elsewhere, os.chown, name, 1000, 3000, uid=2000)
        same((os.stat(name).st_uid, os.stat(name).st_gid), (1000, 3000))


@check("", CHOWN)
def capabilities_set_after_a_mapping_was_written() -> None:
    """capabilities(7): a write takes them; a page that was written before and reaches the file later does not."""
    import mmap

    write("f", b"c" * _SIZE)
    with opened("f", os.O_RDWR) as fd, mmap.mmap(fd, _SIZE) as mapped:
        mapped[0:4] = b"page"
        os.setxattr(fd, "security.capability", _PING)
        mapped.flush()
        os.fsync(fd)
    assert _has_capabilities("f")
    same(read("f")[:4], b"page")


@check("", CHOWN, STRANGERS)
def chmod_by_whom() -> None:
    """chmod(2): set-group-ID needs membership in the file's group, else it is dropped in silence; EPERM for others."""
    os.chmod(".", 0o777)
    write("f", b"x")
    os.chown("f", 1000, 3000)
    elsewhere(os.chmod, "f", 0o2755, uid=1000)
    same(_mode("f"), 0o755, "not a member")
    elsewhere(os.chmod, "f", 0o2755, uid=1000, groups=(3000,))
    same(_mode("f"), 0o2755, "a member")
    os.chmod("f", 0o6755)
    same(_mode("f"), 0o6755, "root")
    fails(errno.EPERM, elsewhere, os.chmod, "f", 0o777, uid=2000)
    same(_mode("f"), 0o6755)
    os.mkdir("d")
    os.chown("d", 1000, 3000)
    elsewhere(os.chmod, "d", 0o3777, uid=1000)
    same(_mode("d"), 0o1777)


@check("", CHOWN, STRANGERS)
def new_files_in_a_directory_of_another_group() -> None:
    """inode(7), set-group-ID: who is not in the group that a directory gives cannot make a set-group-ID program."""
    os.mkdir("d")
    os.chown("d", 0, 3000)
    os.chmod("d", 0o2777)
    os.chmod(".", 0o777)

    def make() -> None:
        os.umask(0)
        os.close(os.open("d/f", os.O_WRONLY | os.O_CREAT, 0o2775))
        os.mknod("d/n", stat.S_IFREG | 0o2775)
        os.mkdir("d/e", 0o755)

    elsewhere(make, uid=1000)
    same([_mode(name) for name in ("d/f", "d/n", "d/e")], [0o775, 0o775, 0o2755])
    same({os.stat(f"d/{name}").st_gid for name in ("f", "n", "e")}, {3000})
    os.close(os.open("d/g", os.O_WRONLY | os.O_CREAT, 0o2775))
    same(_mode("d/g"), 0o2755, "root may")


@check("", CHOWN, STRANGERS)
def changes_from_outside_of_the_group() -> None:
    """inode(7): set-group-ID of a file without group execution stays when a member of the group changes the content,
    and goes when another process does (since Linux 6.2 in every filesystem)."""
    os.chmod(".", 0o777)
    write("f", b"x")

    def put() -> None:
        fd = os.open("f", os.O_WRONLY)
        os.pwrite(fd, b"y", 0)
        os.close(fd)

    for change in (put, partial(os.truncate, "f", 5)):
        for groups, want in (((3000,), 0o2666), ((), 0o666)):
            os.chown("f", 1000, 3000)
            os.chmod("f", 0o2666)
            elsewhere(change, uid=2000, groups=groups)
            same(_mode("f"), want, groups)


@check("", CHOWN, STRANGERS)
def an_acl_by_a_stranger_to_the_group() -> None:
    """acl_set_file(3), chmod(2): setting an ACL drops set-group-ID unless its setter is in the file's group."""
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, 7, 0xFFFFFFFF) for tag in (1, 4, 0x20))
    os.chmod(".", 0o777)
    write("f", b"x")
    for groups, want in (((), 0o777), ((3000,), 0o2777)):
        os.chown("f", 1000, 3000)
        os.chmod("f", 0o2755)
        elsewhere(os.setxattr, "f", "system.posix_acl_access", acl, uid=1000, groups=groups)
        same(_mode("f"), want, groups)


def _make_in_sticky() -> None:
    os.umask(0)
    for name in ("f", "g"):
        write(f"d/{name}", name.encode(), mode=0o666)
    os.mkdir("d/e", 0o777)
    os.symlink("f", "d/l")


@check("d/ out/", CHOWN, STRANGERS)
def sticky_directories_by_whom() -> None:
    """unlink(2), rename(2), inode(7): EPERM in a sticky directory for all but root and the two owners.

    Those of the directory and of the entry. What is replaced and what changes places counts, too; writing does not.
    """
    os.chmod(".", 0o777)
    os.chmod("out", 0o777)
    os.chown("d", 3000, 3000)
    os.chmod("d", 0o1777)
    elsewhere(_make_in_sticky, uid=1000)
    elsewhere(write, "d/mine", b"m", uid=2000)
    for refused in (
        lambda: os.unlink("d/f"),
        lambda: os.unlink("d/l"),
        lambda: os.rmdir("d/e"),
        lambda: os.rename("d/f", "d/x"),
        lambda: os.rename("d/f", "out/f"),
        lambda: os.rename("d/e", "out/e"),
        lambda: os.rename("d/mine", "d/f"),
        lambda: renameat2("d/mine", "d/f", RENAME_EXCHANGE),
        lambda: renameat2("d/f", "d/mine", RENAME_EXCHANGE),
    ):
        fails((errno.EPERM, errno.EACCES), elsewhere, refused, uid=2000)
    same(names("d"), ["e", "f", "g", "l", "mine"])
    elsewhere(write, "d/f", b"by another", 0, uid=2000)
    elsewhere(os.link, "d/f", "d/h", uid=2000)
    elsewhere(os.unlink, "d/h", uid=1000)
    elsewhere(os.unlink, "d/f", uid=3000)
    elsewhere(os.rename, "d/g", "d/mine", uid=3000)
    os.rename("d/e", "out/e")
    os.unlink("d/l")
    same(names("d"), ["mine"])
    same(read("d/mine"), b"g")
    assert exists("out/e")


@check("", CHOWN, STRANGERS)
def opening_by_mode_and_class() -> None:
    """open(2), path_resolution(7): for owner, group and others each flag needs its bits, and no other class's bits."""
    os.chmod(".", 0o777)
    write("f", b"x")
    os.chown("f", 1000, 2000)
    flags = {os.O_RDONLY: 4, os.O_WRONLY: 2, os.O_RDWR: 6, os.O_RDONLY | os.O_TRUNC: 6, os.O_WRONLY | os.O_APPEND: 2}
    for shift, uid in ((6, 1000), (3, 2000), (0, 3000)):
        for bits in range(8):
            os.chmod("f", (bits << shift) | (0o777 & ~(7 << shift)))

            def denied(bits: int = bits) -> list[int]:
                found = []
                for flag, needs in flags.items():
                    try:
                        os.close(os.open("f", flag))
                        allowed = True
                    except PermissionError:
                        allowed = False
                    if allowed != (needs & bits == needs):
                        found.append(flag)
                return found

            same(elsewhere(denied, uid=uid), [], f"bits {bits} for user {uid}")
