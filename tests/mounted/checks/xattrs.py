"""Extended attributes (xattr(7), setxattr(2), getxattr(2), listxattr(2), removexattr(2)), capabilities(7) of files."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from tests.mounted.checking import CHOWN, STRANGERS, beside, check, elsewhere, fails, opened, read, same, write

_libc = ctypes.CDLL(None, use_errno=True)
_PING = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
"""cap_net_raw+ep in the layout of <linux/capability.h>, VFS_CAP_REVISION_2 with the effective bit."""


def _get_into(name: str, attribute: str, size: int) -> int:
    buffer = ctypes.create_string_buffer(max(size, 1))
    got = int(_libc.getxattr(name.encode(), attribute.encode(), buffer, ctypes.c_size_t(size)))
    if got < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return got


def _list_into(name: str, size: int) -> int:
    buffer = ctypes.create_string_buffer(max(size, 1))
    got = int(_libc.listxattr(name.encode(), buffer, ctypes.c_size_t(size)))
    if got < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return got


def _with_attributes() -> None:
    for name in ("f", "d"):
        if name == "f":
            with open("f", "wb") as file:
                file.write(b"hello")
        else:
            os.mkdir("d")
        os.setxattr(name, "user.colour", b"green")
        os.setxattr(name, "user.empty", b"")


@check(prepare=_with_attributes)
def attributes_are_listed_and_read() -> None:
    """listxattr(2), getxattr(2): names and values, empty values too; ENODATA for what is not there."""
    for name in ("f", "d"):
        same(sorted(os.listxattr(name)), ["user.colour", "user.empty"])
        same(os.getxattr(name, "user.colour"), b"green")
        same(os.getxattr(name, "user.empty"), b"")
        fails(errno.ENODATA, os.getxattr, name, "user.nothing")
        fails(errno.ENODATA, os.removexattr, name, "user.nothing")
    same(os.stat("f").st_size, 5)


@check(prepare=_with_attributes)
def attributes_are_set_and_removed() -> None:
    """setxattr(2), removexattr(2): binary values, replacing, removing; others are left alone."""
    for name in ("f", "d"):
        os.setxattr(name, "user.binary", bytes(range(256)))
        os.setxattr(name, "user.colour", b"blue and longer than before")
        os.removexattr(name, "user.empty")
        same(sorted(os.listxattr(name)), ["user.binary", "user.colour"])
        same(os.getxattr(name, "user.binary"), bytes(range(256)))
        same(os.getxattr(name, "user.colour"), b"blue and longer than before")
        fails(errno.ENODATA, os.getxattr, name, "user.empty")
    same(read("f"), b"hello")


@check(prepare=_with_attributes)
def create_and_replace() -> None:
    """setxattr(2): XATTR_CREATE fails with EEXIST if it exists, XATTR_REPLACE with ENODATA if not."""
    fails(errno.EEXIST, os.setxattr, "f", "user.colour", b"x", os.XATTR_CREATE)
    fails(errno.ENODATA, os.setxattr, "f", "user.new", b"x", os.XATTR_REPLACE)
    same(os.getxattr("f", "user.colour"), b"green")
    os.setxattr("f", "user.colour", b"red", os.XATTR_REPLACE)
    os.setxattr("f", "user.new", b"x", os.XATTR_CREATE)
    same((os.getxattr("f", "user.colour"), os.getxattr("f", "user.new")), (b"red", b"x"))


@check(prepare=_with_attributes)
def sizes_and_short_buffers() -> None:
    """getxattr(2), listxattr(2): size 0 asks for the length, ERANGE for a buffer that is too small."""
    same(_get_into("f", "user.colour", 0), 5)
    same(_get_into("f", "user.colour", 5), 5)
    same(_get_into("f", "user.colour", 4096), 5)
    fails(errno.ERANGE, _get_into, "f", "user.colour", 4)
    same(_get_into("f", "user.empty", 0), 0)
    size = _list_into("f", 0)
    same(size, len(b"user.colour\0user.empty\0"))
    same(_list_into("f", size), size)
    fails(errno.ERANGE, _list_into, "f", size - 1)


@check("f=hello")
def large_values() -> None:
    """xattr(7): values up to 64 KiB (E2BIG above), or what the filesystem below can hold (ENOSPC); never a part."""
    write(beside("f"), b"hello")
    for size in (1000, 3000, 4000, 30_000, 65_536):
        value = b"v" * size
        want = _outcome(os.setxattr, beside("f"), "user.large", value)
        same(_outcome(os.setxattr, "f", "user.large", value), want, f"{size} bytes, beside the plain directory")
        if want is None:
            same(os.getxattr("f", "user.large"), value)
    fails(errno.E2BIG, os.setxattr, "f", "user.large", bytes(65_537))
    same(len(os.getxattr("f", "user.large")), len(os.getxattr(beside("f"), "user.large")))


def _outcome(call: object, *args: object) -> int | None:
    assert callable(call)
    try:
        call(*args)
    except OSError as failure:
        return failure.errno
    return None


@check("f=hello")
def names_of_attributes() -> None:
    """xattr(7): names up to 255 bytes, any bytes but NUL; ERANGE above, EOPNOTSUPP for a class that does not exist."""
    longest = "user." + "n" * 250
    os.setxattr("f", longest, b"1")
    same(os.listxattr("f"), [longest])
    fails(errno.ERANGE, os.setxattr, "f", longest + "n", b"1")
    os.setxattr(b"f", b"user.\xff\xfe", b"2")
    same(os.getxattr(b"f", b"user.\xff\xfe"), b"2")
    fails(errno.EOPNOTSUPP, os.setxattr, "f", "nonsense.name", b"1")
    fails((errno.EINVAL, errno.EOPNOTSUPP), os.setxattr, "f", "user.", b"1")


@check("f=hello")
def many_attributes() -> None:
    """listxattr(2): lists all of them."""
    for number in range(60):
        os.setxattr("f", f"user.attribute{number:02}", b"%d" % number)
    same(sorted(os.listxattr("f")), [f"user.attribute{number:02}" for number in range(60)])
    same(os.getxattr("f", "user.attribute59"), b"59")


@check("f=hello l->f dangling->nowhere p|")
def user_attributes_are_for_files_and_directories() -> None:
    """xattr(7): user attributes are for files and directories only (EPERM); calls follow links unless l*."""
    os.setxattr("l", "user.through", b"1")
    same(os.getxattr("f", "user.through"), b"1")
    fails(errno.EPERM, os.setxattr, "l", "user.own", b"1", 0, follow_symlinks=False)
    fails(errno.EPERM, os.setxattr, "p", "user.own", b"1")
    fails(errno.ENOENT, os.setxattr, "dangling", "user.x", b"1")
    fails(errno.ENOENT, os.getxattr, "dangling", "user.x")
    same(os.listxattr("l", follow_symlinks=False), [])
    same(os.listxattr("dangling", follow_symlinks=False), [])


@check(prepare=_with_attributes)
def attributes_through_descriptors() -> None:
    """fsetxattr(2), fgetxattr(2), flistxattr(2): as by name, also for a file without one."""
    with opened("f", os.O_RDWR) as fd:
        os.setxattr(fd, "user.fd", b"1")
        os.unlink("f")
        same(os.getxattr(fd, "user.fd"), b"1")
        os.setxattr(fd, "user.after", b"2")
        same(sorted(os.listxattr(fd)), ["user.after", "user.colour", "user.empty", "user.fd"])
        os.removexattr(fd, "user.fd")
        fails(errno.ENODATA, os.getxattr, fd, "user.fd")


@check(prepare=_with_attributes)
def attributes_stay_with_the_file() -> None:
    """rename(2), link(2), chmod(2), write(2): none of them touches extended attributes."""
    os.rename("f", "g")
    os.link("g", "h")
    write("h", b"changed")
    os.chmod("h", 0o600)
    for name in ("g", "h"):
        same(os.getxattr(name, "user.colour"), b"green")
    os.rename("d", "e")
    same(os.getxattr("e", "user.colour"), b"green")


@check("f=hello", CHOWN, STRANGERS)
def attributes_need_permission() -> None:
    """xattr(7): user attributes are read and written under the file's permissions (EACCES)."""
    os.setxattr("f", "user.x", b"1")
    os.chmod("f", 0o644)
    same(elsewhere(os.getxattr, "f", "user.x", uid=1000), b"1")
    fails(errno.EACCES, elsewhere, os.setxattr, "f", "user.x", b"2", uid=1000)
    fails(errno.EACCES, elsewhere, os.removexattr, "f", "user.x", uid=1000)
    os.chmod("f", 0o600)
    fails(errno.EACCES, elsewhere, os.getxattr, "f", "user.x", uid=1000)


def _capable_file() -> None:
    with open("f", "wb") as file:
        file.write(b"program")
    os.chmod("f", 0o755)
    os.setxattr("f", "security.capability", _PING)


@check("", CHOWN, prepare=_capable_file)
def capabilities_are_kept() -> None:
    """capabilities(7), file capabilities: kept over rename, link, chmod; gone after a write or a change of owner."""
    same(os.getxattr("f", "security.capability"), _PING)
    os.chmod("f", 0o700)
    os.rename("f", "g")
    os.link("g", "h")
    same(os.getxattr("h", "security.capability"), _PING)
    write("h", b"x", os.O_APPEND)
    fails(errno.ENODATA, os.getxattr, "g", "security.capability")
    os.setxattr("g", "security.capability", _PING)
    os.chown("g", 1000, 1000)
    fails(errno.ENODATA, os.getxattr, "h", "security.capability")


@check("", CHOWN, prepare=_capable_file)
def capabilities_fall_on_the_first_write() -> None:
    """capabilities(7): a write clears security.capability, also when it is the first change of the file ever made."""
    with opened("f", os.O_WRONLY) as fd:
        os.pwrite(fd, b"P", 0)
    fails(errno.ENODATA, os.getxattr, "f", "security.capability")
    same(read("f"), b"Program")


@check("", CHOWN, prepare=_capable_file)
def capabilities_fall_on_truncate() -> None:
    """capabilities(7): so does truncate(2)."""
    os.truncate("f", 3)
    fails(errno.ENODATA, os.getxattr, "f", "security.capability")
