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
from unionfs.core.attrs import ROOT, AttrChange
from unionfs.core.union import Union
from unionfs.syscalls import files

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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The system calls for attributes of users' files on the branches, from now on."""
    calls: list[str] = []

    def listxattr(path: bytes, *, follow_symlinks: bool = True) -> list[str]:
        calls.append("list")
        return listed(path, follow_symlinks=follow_symlinks)

    def find_xattr(target: bytes | int, name: bytes, *, follow: bool = False) -> bytes | None:
        calls.append("get")
        return found(target, name, follow=follow)

    listed, found = os.listxattr, files.find_xattr
    monkeypatch.setattr(os, "listxattr", listxattr)
    monkeypatch.setattr(files, "find_xattr", find_xattr)
    return calls


def _as_cp_does(union: Union, nodeid: int) -> tuple[list[bytes], list[bytes | None]]:
    """What `cp -a` asks about each file: its list, for the size and for the names, then ACLs; and its capability."""
    names = [union.listxattr(nodeid) for _ in range(3)]
    assert names[0] == names[1] == names[2]
    return names[0], [union.find_xattr(nodeid, name) for name in (ACCESS, b"security.capability", b"user.k")]


@pytest.mark.parametrize("path", [b"lf", b"ld", b"uf", b"ud"])
def test_an_empty_list_answers_what_follows(path: bytes, make: MakeStack, asked: list[str]) -> None:
    stack = make("lf=1 ld/", upper="uf=1 ud/")
    node = stack.union.lookup(ROOT, path).nodeid
    asked.clear()
    assert _as_cp_does(stack.union, node) == ([], [None, None, None])
    assert _as_cp_does(stack.union, node) == ([], [None, None, None])
    assert asked == ["list"]
    # Whatever changes it is seen, also before the kernel looks again.
    stack.union.setxattr(node, b"user.k", b"v", 0)
    assert _as_cp_does(stack.union, node) == ([b"user.k"], [None, None, b"v"])
    stack.union.removexattr(node, b"user.k")
    asked.clear()
    assert _as_cp_does(stack.union, node) == ([], [None, None, None])
    assert asked == ["list"]
    stack.union.setattr(node, AttrChange(mode=0o700))  # new attributes for the kernel
    assert _as_cp_does(stack.union, node) == ([], [None, None, None])
    assert asked == ["list"] * 2
    stack.union.forget(node)


def test_a_list_with_names_is_asked_each_time(make: MakeStack, asked: list[str]) -> None:
    stack = make("f=1{user.k=v}")
    node = stack.union.lookup(ROOT, b"f").nodeid
    asked.clear()
    assert _as_cp_does(stack.union, node) == ([b"user.k"], [None, None, b"v"])
    assert asked == ["list"] * 3 + ["get"] * 3
    stack.union.forget(node)


def test_opening_a_lower_file_lists_its_attributes(make: MakeStack, asked: list[str]) -> None:
    """That it has no data elsewhere is seen by the same list. Programs that copy read first."""
    stack = make("f=1")
    node = stack.union.lookup(ROOT, b"f").nodeid
    assert stack.union.read(node, 0, 9) == b"1"
    asked.clear()
    assert _as_cp_does(stack.union, node) == ([], [None, None, None])
    assert asked == []
    stack.union.forget(node)


def test_an_empty_list_is_as_old_as_the_attributes(make: MakeStack) -> None:
    """The kernel looks a name up again when its timeout is over; then changes from outside are seen."""
    stack = make("f=1")
    node = stack.union.lookup(ROOT, b"f").nodeid
    assert stack.union.listxattr(node) == []
    os.setxattr(stack.lowers[0] / "f", "user.k", b"v")
    stack.watch()
    stack.union.lookup(ROOT, b"f")
    assert stack.union.listxattr(node) == [b"user.k"]
    assert stack.union.find_xattr(node, b"user.k") == b"v"
    stack.union.forget(node, 2)
