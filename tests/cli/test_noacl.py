"""`-o noacl`, in fuse-overlayfs's place: ACLs are kept and inherited, but the kernel looks at modes alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.layers.registries import need
from tests.mounted.checks import acls
from tests.support.users import User
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = pytest.mark.transport(DEFAULT_TRANSPORT)

_PROGRAMS: Final = ("kernel", "pyfuse3", "fuse-overlayfs")
_USER: Final = 1234
_GROUP: Final = 4321
_ACL: Final = f"user::rw-,user:{_USER}:rw-,group::---,mask::rw-,other::---"

_USE: Final = f"""
import os, sys
def may(uid, gid, name, flags):
    pid = os.fork()
    if not pid:
        os.setgroups([]); os.setgid(gid); os.setuid(uid)
        try:
            os.open(name, flags)
        except PermissionError:
            os._exit(1)
        os._exit(0)
    return not os.waitpid(pid, 0)[1]
def look(name):
    mode = os.stat(name).st_mode & 0o7777
    user, member = may({_USER}, 9999, name, os.O_RDWR), may(9999, {_GROUP}, name, os.O_RDWR)
    acl = os.getxattr(name, "system.posix_acl_access").hex()
    print(name, oct(mode), "user" if user else "-", "member" if member else "-", acl)
os.chdir(sys.argv[1])
os.umask(0)  # which fuse-overlayfs applies even where a default ACL replaces it
acl = bytes.fromhex(sys.argv[2])
print(may(9999, {_GROUP}, "f", os.O_RDONLY))
os.setxattr("f", "system.posix_acl_access", acl)
look("f")
os.chmod("f", 0o640)
look("f")
os.setxattr("d", "system.posix_acl_default", acl)
open("d/n", "w").close()
os.chown("d/n", 0, {_GROUP})
look("d/n")
print(os.listxattr("d"), os.getxattr("d", "system.posix_acl_default") == acl)
os.removexattr("f", "system.posix_acl_access")
print(os.listxattr("f"), oct(os.stat("f").st_mode & 0o7777))
"""


@pytest.mark.parametrize("noacl", [True, False], ids=["noacl", "acl"])
@pytest.mark.parametrize("program", _PROGRAMS)
def test_only_the_mode_counts(program: str, *, noacl: bool, root_user: User, scratch: Path, fuse_device: Path) -> None:
    """The group's bits of a mode are the ACL's mask. Who is named in the ACL does not profit, and the file's group gets
    all that the mask allows."""
    del fuse_device
    made = {name: scratch / name for name in ("low", "up", "work", "mnt")}
    for directory in (*made.values(), made["low"] / "d"):
        directory.mkdir()
    (made["low"] / "f").write_text("1")
    (made["low"] / "f").chmod(0o600)
    os.chown(made["low"] / "f", 0, _GROUP)
    (made["low"] / "d").chmod(0o755)
    if program == "fuse-overlayfs":
        need("fuse-overlayfs")
        command = ["fuse-overlayfs"]
    else:
        command = ["env", f"UNIONFS_TRANSPORT={program}", *root_user.unionfs_cmd]
    options = f"lowerdir={made['low']},upperdir={made['up']},workdir={made['work']},timeout=0,writeback=0"
    root_user.run([*command, "-o", f"{options},noacl" if noacl else options, made["mnt"]])
    acl = acls.encode(_ACL)
    try:
        argv = [sys.executable, "-I", "-S", "-c", _USE, os.fspath(made["mnt"]), acl.hex()]
        said = root_user.run(argv).stdout.splitlines()
    finally:
        root_user.run(["umount", made["mnt"]])
    who = ("-", "member") if noacl else ("user", "-")
    assert [line.split()[:4] for line in said[1:4]] == [
        ["f", "0o660", *who],
        ["f", "0o640", "-", "-"],
        ["d/n", "0o660", *who],
    ]
    kept = [bytes.fromhex(line.split()[4]) for line in said[1:4]]
    assert kept == [acl, acls.encode(_ACL.replace("mask::rw-", "mask::r--")), acl]
    assert (said[0], said[4:]) == ("False", ["['system.posix_acl_default'] True", "[] 0o640"])
