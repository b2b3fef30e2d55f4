"""Extended attributes: those of users pass through every branch and copy-up, those of unions are never seen."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.core.acl import ACCESS, DEFAULT, acl
from tests.core.conftest import MakeStack, needs_root
from tests.core.differential import Pair
from tests.core.stack import Whiteout

INTERNAL = [
    b"user.overlay.opaque",
    b"user.overlay.redirect",
    b"user.overlay.origin",
    b"user.overlay.metacopy",
    b"user.overlay.whiteout",
    b"user.overlay.impure",
    b"user.fuseoverlayfs.opaque",
    b"user.fuseoverlayfs.origin",
    b"user.unionfs.origin",
]
TRUSTED = [b"trusted.overlay.opaque", b"trusted.overlay.redirect", b"trusted.overlay.origin", b"trusted.overlay.upper"]


@pytest.mark.parametrize("name", [name for name in INTERNAL if name != b"user.overlay.metacopy"])  # see test_lookup.py
@pytest.mark.parametrize("where", ["lower", "upper"])
def test_internal_attributes_are_hidden(name: bytes, where: str, make: MakeStack) -> None:
    _hidden(name, where, make)


@needs_root
@pytest.mark.parametrize("name", TRUSTED)
@pytest.mark.parametrize("where", ["lower", "upper"])
def test_internal_trusted_attributes_are_hidden(name: bytes, where: str, make: MakeStack) -> None:
    _hidden(name, where, make)


def _hidden(name: bytes, where: str, make: MakeStack) -> None:
    mark = f"{{{name.decode()}=z,user.k=v}}"
    text = f"d/{mark} d/f=1{mark}"
    stack = make(text if where == "lower" else "", upper=text if where == "upper" else "")
    for path in ("d", "d/f"):
        for _ in range(2):
            assert stack.u.listxattr(path) == [b"user.k"]
            with pytest.raises(OSError) as caught:
                stack.u.getxattr(path, name)
            assert caught.value.errno == errno.ENODATA
            stack.u.utime(path, 1, 2)  # copied up, and with the core's own marks on it


@pytest.mark.parametrize("name", [*INTERNAL, *TRUSTED])
def test_internal_attributes_cannot_be_set_or_removed(name: bytes, make: MakeStack) -> None:
    stack = make("d/a f", "d/b")
    for path in ("d", "f"):
        with pytest.raises(PermissionError):
            stack.u.setxattr(path, name, b"y")
        with pytest.raises(OSError) as caught:
            stack.u.removexattr(path, name)
        assert caught.value.errno in (errno.EPERM, errno.ENODATA)
    assert set(stack.remount().names("d")) == {b"a", b"b"}


def test_copied_up_files_show_no_origin(make: MakeStack) -> None:
    stack = make("f=1 d/ g=1{user.k=v}")
    for path in ("f", "d", "g"):
        stack.u.chmod(path, 0o700)
        assert stack.u.listxattr(path) == ([b"user.k"] if path == "g" else [])


PATHS = ["lf", "ld", "uf", "ud", "md", "ll"]


@pytest.mark.parametrize("path", PATHS)
def test_verbs_and_flags(path: str, whiteout: Whiteout, tmp_path: Path) -> None:
    """XATTR_CREATE 1 and XATTR_REPLACE 2, missing names, values of any length: as natively."""
    pair = Pair(
        tmp_path, ["lf=1{user.a=0} ld/{user.a=0} md/ ll->x"], "uf=1{user.a=0} ud/{user.a=0} md/{user.a=0}", whiteout
    )
    for name, value, flags in (
        (b"user.a", b"1", 0),
        (b"user.a", b"2", 1),
        (b"user.a", b"3", 2),
        (b"user.b", b"4", 2),
        (b"user.b", b"", 1),
        (b"user.c", b"\0" * 2000, 0),
        (b"user." + b"n" * 250, b"x", 0),
        (b"user." + b"n" * 251, b"x", 0),
        (b"user.", b"x", 0),
        (b"nonsense", b"x", 0),
        (b"user.big", b"x" * 70_000, 0),
        (b"user.x\xff", b"1", 0),
        (b"user.bad", b"", 3),
        (b"system.nope", b"", 0),
    ):
        pair.do("setxattr", path, name, value, flags)
        pair.do("getxattr", path, name)
        pair.do("listxattr", path)
    for name in (b"user.a", b"user.a", b"user.none", b"nonsense"):
        pair.do("removexattr", path, name)
        pair.do("getxattr", path, name)
    pair.check()
    pair.finish()


@pytest.mark.parametrize("path", PATHS)
def test_acls(path: str, whiteout: Whiteout, tmp_path: Path) -> None:
    pair = Pair(tmp_path, ["lf=1:0640 ld/:0750 md/ ll->x"], "uf=1:0640 ud/:0750 md/:0750", whiteout)
    full, minimal = acl("u::rwx,u:7:r--,g::r-x,m::r-x,o::---"), acl("u::rw-,g::r--,o::r--")
    for name in (ACCESS, DEFAULT):
        for value in (full, minimal, b"rubbish", acl("u::rwx,u:7:r--,g::r-x,o::---"), full):
            pair.do("setxattr", path, name, value, 0)
            pair.do("getxattr", path, name)
        pair.do("listxattr", path)
    pair.do("chmod", path, 0o705)
    pair.check()
    for name in (ACCESS, DEFAULT):
        pair.do("removexattr", path, name)
        pair.do("removexattr", path, name)
    pair.finish()


def test_more_attributes_than_one_call_returns_at_first(make: MakeStack) -> None:
    stack = make("f=1 d/")
    names = [b"user.%03d" % number for number in range(60)]
    for name in names:
        stack.u.setxattr("f", name, name)
    assert stack.u.listxattr("f") == names
    assert [stack.u.getxattr("f", name) for name in names] == names


@needs_root
def test_attributes_of_symlinks_and_devices(make: MakeStack) -> None:
    """A symlink is never followed, not even to look at its attributes: it may lead anywhere."""
    stack = make("l->/etc/passwd{trusted.k=v} c<c:1:3>:0600{trusted.k=v}")
    for path in ("l", "c"):
        assert stack.u.listxattr(path) == [b"trusted.k"]
        stack.u.setxattr(path, b"trusted.k", b"w")
        with pytest.raises(PermissionError):
            stack.u.setxattr(path, b"user.k", b"w")
        assert stack.remount().getxattr(path, b"trusted.k") == b"w"
    assert "trusted.k" not in os.listxattr("/etc/passwd")
