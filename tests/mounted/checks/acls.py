"""POSIX access control lists (acl(5)): effect on access, chmod and creation; kept as system.posix_acl_* (xattr(7))."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import subprocess

from tests.mounted.checking import CHOWN, STRANGERS, MissingError, check, elsewhere, fails, read, same, write

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"
_TAGS = {"user": 0x02, "group": 0x08}
_OWN_TAGS = {"user": 0x01, "group": 0x04, "mask": 0x10, "other": 0x20}
_NOBODY = 0xFFFFFFFF

Acl = set[str]


def encode(text: str) -> bytes:
    """`user::rwx,user:1000:r--,...` in the kernel's layout (<linux/posix_acl_xattr.h>, version 2)."""
    entries = []
    for entry in text.split(","):
        tag, who, perms = entry.split(":")
        bits = sum(bit for letter, bit in zip("rwx", (4, 2, 1), strict=True) if letter in perms)
        kind, number = (_TAGS[tag], int(who)) if who else (_OWN_TAGS[tag], _NOBODY)
        entries.append((kind, bits, number))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in sorted(entries))


def decode(value: bytes) -> Acl:
    """The entries as `encode` takes them."""
    own = {number: tag for tag, number in _OWN_TAGS.items()}
    named = {number: tag for tag, number in _TAGS.items()}
    found = set()
    for kind, bits, number in struct.iter_unpack("<HHI", value[4:]):
        perms = "".join(letter if bits & bit else "-" for letter, bit in zip("rwx", (4, 2, 1), strict=True))
        found.add(f"{named[kind]}:{number}:{perms}" if kind in named else f"{own[kind]}::{perms}")
    return found


def get(name: str, which: str = ACCESS) -> Acl:
    return decode(os.getxattr(name, which))


def put(name: str, text: str, which: str = ACCESS) -> None:
    os.setxattr(name, which, encode(text))


def _mode(name: str) -> int:
    return stat.S_IMODE(os.stat(name).st_mode)


def _prepared() -> None:
    with open("f", "wb") as file:
        file.write(b"hello")
    put("f", f"user::rw-,user:{os.getuid()}:r--,group::r--,mask::r--,other::---")
    os.mkdir("d")
    put("d", f"user::rwx,user:{os.getuid()}:rwx,group::r-x,mask::rwx,other::---", DEFAULT)


@check(prepare=_prepared)
def acls_are_read_and_kept() -> None:
    """acl(5): read as written; a write to the file does not change them."""
    me = os.getuid()
    want = {"user::rw-", f"user:{me}:r--", "group::r--", "mask::r--", "other::---"}
    same(get("f"), want)
    same(_mode("f"), 0o640, "the group bits show the mask")
    write("f", b"more", os.O_APPEND)
    os.rename("f", "g")
    same(get("g"), want)
    same(read("g"), b"hellomore")
    same(get("d", DEFAULT), {"user::rwx", f"user:{me}:rwx", "group::r-x", "mask::rwx", "other::---"})


@check("f=hello d/")
def acls_are_set_and_removed() -> None:
    """acl(5), acl_set_file(3): setting one sets the mode, a minimal one is the mode; removing leaves the mode."""
    me = os.getuid()
    put("f", f"user::rwx,user:{me}:r--,group::r--,mask::rw-,other::--x")
    same(_mode("f"), 0o761)
    same(get("f"), {"user::rwx", f"user:{me}:r--", "group::r--", "mask::rw-", "other::--x"})
    os.removexattr("f", ACCESS)
    fails(errno.ENODATA, os.getxattr, "f", ACCESS)
    put("f", "user::rw-,group::r--,other::---")
    same(_mode("f"), 0o640)
    fails(errno.ENODATA, os.getxattr, "f", ACCESS)
    put("d", "user::rwx,group::r-x,other::r-x", DEFAULT)
    os.removexattr("d", DEFAULT)
    fails(errno.ENODATA, os.getxattr, "d", DEFAULT)
    same(_mode("d"), 0o755)


@check(prepare=_prepared)
def chmod_changes_the_mask() -> None:
    """acl(5), correspondence: with a mask entry chmod(2) of the group bits changes the mask, not the group entry."""
    me = os.getuid()
    os.chmod("f", 0o600)
    same(get("f"), {"user::rw-", f"user:{me}:r--", "group::r--", "mask::---", "other::---"})
    os.chmod("f", 0o775)
    same(get("f"), {"user::rwx", f"user:{me}:r--", "group::r--", "mask::rwx", "other::r-x"})


@check("f=hello d/")
def acl_refusals() -> None:
    """acl_set_file(3): EACCES for a default ACL on a file, EINVAL or EOPNOTSUPP for nonsense; ENODATA for none."""
    fails(errno.EACCES, put, "f", "user::rw-,group::r--,other::---", DEFAULT)
    fails(errno.EOPNOTSUPP, os.setxattr, "f", ACCESS, b"another version")
    fails(errno.EINVAL, os.setxattr, "f", ACCESS, struct.pack("<I", 2) + b"short")
    fails(errno.EINVAL, put, "f", "user::rw-,user:1:r--,group::r--,other::---")
    fails(errno.ENODATA, os.getxattr, "d", DEFAULT)


@check(prepare=_prepared)
def default_acls_are_inherited() -> None:
    """acl(5), object creation: new objects take the default ACL, the mode given limits owner, mask and other."""
    me = os.getuid()
    os.umask(0)
    write("d/f", b"x", mode=0o666)
    same(get("d/f"), {"user::rw-", f"user:{me}:rwx", "group::r-x", "mask::rw-", "other::---"})
    same(_mode("d/f"), 0o660)
    os.mkdir("d/e", 0o777)
    same(get("d/e"), {"user::rwx", f"user:{me}:rwx", "group::r-x", "mask::rwx", "other::---"})
    same(get("d/e", DEFAULT), get("d", DEFAULT))
    os.mkfifo("d/p", 0o666)
    same(_mode("d/p"), 0o660)
    write("d/e/deep", b"x", mode=0o640)
    same(get("d/e/deep"), {"user::rw-", f"user:{me}:rwx", "group::r-x", "mask::r--", "other::---"})


@check(prepare=_prepared)
def default_acls_replace_the_umask() -> None:
    """acl(5), object creation: where there is a default ACL the umask is ignored."""
    me = os.getuid()
    os.umask(0o077)
    write("d/f", b"x", mode=0o664)
    same(get("d/f"), {"user::rw-", f"user:{me}:rwx", "group::r-x", "mask::rw-", "other::---"})
    os.mkdir("d/e", 0o777)
    same(_mode("d/e"), 0o770)


@check("plain/")
def minimal_default_acls_replace_the_umask() -> None:
    """acl(5): a default ACL of three entries decides the mode instead of the umask and leaves no extended ACL."""
    put("plain", "user::rwx,group::rwx,other::---", DEFAULT)
    os.umask(0o077)
    write("plain/f", b"x", mode=0o666)
    same(_mode("plain/f"), 0o660)
    fails(errno.ENODATA, os.getxattr, "plain/f", ACCESS)
    os.mkdir("plain/d", 0o777)
    same(_mode("plain/d"), 0o770)


@check("", CHOWN, STRANGERS)
def acls_decide_access() -> None:
    """acl(5), access check: a named user gets its entry within the mask, others what is left (EACCES)."""
    write("f", b"hello", mode=0o600)
    os.chmod(".", 0o755)
    put("f", "user::rw-,user:1000:r--,user:1001:rw-,group::---,group:3000:r--,mask::r--,other::---")
    same(elsewhere(read, "f", uid=1000), b"hello")
    same(elsewhere(read, "f", uid=1001), b"hello")
    fails(errno.EACCES, elsewhere, write, "f", b"x", 0, uid=1001)
    fails(errno.EACCES, elsewhere, read, "f", uid=1002)
    same(elsewhere(read, "f", uid=1002, groups=(3000,)), b"hello")
    put("f", "user::rw-,user:1000:r--,user:1001:rw-,group::---,group:3000:r--,mask::rw-,other::---")
    elsewhere(write, "f", b"x", 0, uid=1001)
    same(read("f"), b"xello")
    elsewhere(_is_denied, uid=1002)


def _is_denied() -> None:
    assert not os.access("f", os.R_OK)


@check("d/f=1 d/e/")
def acl_tools_agree() -> None:
    """setfacl(1), getfacl(1), cp(1) -a: the tools see and copy what was set."""
    if not shutil.which("setfacl"):
        raise MissingError("setfacl is not installed (Debian package acl)")
    me = os.getuid()
    subprocess.run(["setfacl", "-R", "-m", f"u:{me}:rwX,d:u:{me}:rwX", "d"], check=True)
    shown = subprocess.run(["getfacl", "-cpn", "d/e"], check=True, capture_output=True, text=True).stdout
    assert f"default:user:{me}:rwx" in shown, shown
    subprocess.run(["cp", "-a", "d", "copy"], check=True)
    copied = subprocess.run(["getfacl", "-cpn", "copy/e"], check=True, capture_output=True, text=True).stdout
    same(copied, shown)
    same(get("copy/f"), get("d/f"))
