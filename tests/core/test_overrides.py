"""Owners, modes and types stored in attributes: the union shows what a plain directory with them shows."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

import pytest

from tests.core.acl import ACCESS, DEFAULT, acl
from tests.core.conftest import MakeStack, needs_root
from tests.core.differential import Pair, steps
from tests.core.snapshots import merged
from unionfs.core.attrs import ROOT, AttrChange, Attrs, Caller
from unionfs.core.options import OptionError, Options
from unionfs.core.owners import IdTranslation, OwnerTranslation
from unionfs.core.union import Union
from unionfs.id_ranges import IdRange
from unionfs.markers import pack_identity, unpack_identity

STAT = "user.containers.override_stat"
OLD = "user.fuseoverlayfs.override_stat"
PRIVILEGED = "security.fuseoverlayfs.override_stat"

SEQUENCES = [
    "create d/new 0640; chmod d/new 4755; write d/new 0 x; link d/new e2; rename d/new e/new; unlink e2; remount",
    "mkdir n 0750; mkdir n/m 0700; chmod n 2775; create n/f 0644; mkdir n/s 0755; rename n d/n; remount; rmdir d/n/s",
    "symlink n target; rename n d/n; link d/n m; readlink m; unlink m; remount; readlink d/n",
    "chmod d/f 0; write d/f 0 abc; chmod d/f 2711; truncate d/f 1; rename d/f g; link g h; chmod h 600; remount",
    "rename d m; create m/x 0600; rename m d; exchange d e; chmod d 0; chmod d 0777; remount; unlink d/g",
    "chown d/f 33 44; chown d 7 8; chown l 5 6; chown p 9 10; link p q; rename l d/l; remount; chmod p 0; readlink d/l",
    "unlink p; unlink l; mknod p 4516 0; mknod d/s 49536 0; remount; rename p d/s; unlink d/f; rmdir e; remount",
    "setxattr d/f user.k v 0; chmod d/f 755; setxattr d user.k w 0; write h1 0 z; unlink h2; remount; listxattr d/f",
]


@pytest.fixture(params=[pytest.param("user"), pytest.param("privileged", marks=needs_root)])
def kind(request: pytest.FixtureRequest) -> str:
    """Both attributes that they may be kept in."""
    return str(request.param)


def _steps(text: str) -> list[tuple[object, ...]]:
    """As `pair.steps`, for verbs whose arguments are numbers or bytes."""
    found: list[tuple[object, ...]] = []
    for step in steps(text):
        verb, *args = step
        if verb in ("create", "mkdir"):
            found.append((verb, args[0], int(str(args[1]), 8)))
        elif verb == "mknod":
            found.append((verb, args[0], *(int(str(arg)) for arg in args[1:])))
        elif verb == "truncate":
            found.append((verb, args[0], int(str(args[1]))))
        elif verb == "setxattr":
            found.append((verb, args[0], str(args[1]).encode(), str(args[2]).encode(), 0))
        else:
            found.append(step)
    return found


@pytest.mark.parametrize("text", SEQUENCES)
def test_sequences(text: str, kind: str, tmp_path: Path) -> None:
    if "chown" in text and os.geteuid() != 0:
        pytest.skip("needs root: the plain directory is given away")
    lowers = ["d/f=1:4751 e/ p<fifo>:0640 l->x h1=1 h2==h1", "d/g=2:0600 e/g=3"]
    pair = Pair(tmp_path, lowers, "d/u=9", overrides=kind)
    for verb, *args in _steps(text):
        pair.do(str(verb), *args)
        pair.check()
    pair.finish()


def noted(path: Path, name: str = STAT) -> str:
    return os.getxattr(path, name, follow_symlinks=False).decode()


@needs_root
def test_what_is_on_disk(make: MakeStack) -> None:
    """Everything is the daemon's, readable for it; devices may be real ones, since root can make them."""
    stack = make("f=1:4751,5,6 d/:0500", overrides="user")
    u = stack.u
    u.create("n", 0o2640)
    u.chown("n", 33, 44)
    u.chmod("n", 0o2640)
    u.chown("d", 7, 8)
    u.chmod("f", 0o4750)
    assert stack.upper is not None
    assert noted(stack.upper / "n") == "33:44:2640:file"
    assert noted(stack.upper / "d") == "7:8:0500:dir"
    assert noted(stack.upper / "f") == "5:6:4750:file"
    for name, mode in (("n", 0o740), ("d", 0o700), ("f", 0o750)):
        st = (stack.upper / name).stat()
        assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (0, 0, mode)
    shown = merged(u)
    u = stack.remount()
    assert merged(u) == shown
    with pytest.raises(OSError) as caught:
        u.getxattr("n", STAT.encode())
    assert caught.value.errno == errno.ENODATA
    assert u.listxattr("n") == []


def test_marks_of_the_root(tmp_path: Path) -> None:
    """As fuse-overlayfs: the first lower that has one gives it; else the root is 0:0:555. An upper's own stays."""
    for lower, shared, wanted in (("7:8:0711:dir", True, "7:8:0711:dir"), ("", True, "0:0:555"), ("", False, None)):
        base = tmp_path / f"{lower}{shared}"
        for name in ("plain", "lower", "upper", "work"):
            (base / name).mkdir(parents=True)
        if lower:
            os.setxattr(base / "lower", OLD, lower.encode())
        lowers = (str(base / "plain"), str(base / "lower"))
        options = Options(lowers, str(base / "upper"), str(base / "work"), overrides="user", overrides_shared=shared)
        Union(options).close()
        assert noted(base / "upper") == (
            wanted or f"{os.geteuid()}:{os.getegid()}:{stat.S_IMODE((base / 'upper').stat().st_mode):04o}:dir"
        )
        os.setxattr(base / "upper", STAT, b"1:2:0700:dir")
        union = Union(options)
        assert union.getattr(ROOT)[1:5] == (0o040700, 2, 1, 2)
        union.close()


def test_layers_of_others_are_read_as_their_roots_say(make: MakeStack) -> None:
    """Each lower by itself: types that stand in for what could not be made, peers' forms, and a plain layer beside."""
    stack = make(
        f"./{{{STAT}=0:0:0755}} c{{{STAT}=3:4:0620:char-5-1}} b{{{STAT}=0:6:0660:block8:1}} "
        f"l=target{{{STAT}=5:6:0777:symlink}} "
        f"p{{{STAT}=1:1:0600:pipe}} s{{{STAT}=1:1:0600:socket}} broken=1{{{STAT}=nonsense}} old=1{{{OLD}=8:-1:100640}}",
        f"plain=1:0604{{{STAT}=9:9:0777}}",
        upper=None,
    )
    u = stack.u
    u_, g_ = os.geteuid(), os.getegid()

    def seen(path: str) -> tuple[int, int, int, int]:
        attrs: Attrs = u.stat(path)
        return attrs.mode, attrs.uid, attrs.gid, attrs.rdev

    assert seen("c") == (stat.S_IFCHR | 0o620, 3, 4, os.makedev(5, 1))
    assert seen("b") == (stat.S_IFBLK | 0o660, 0, 6, os.makedev(8, 1))
    assert seen("p")[:3] == (stat.S_IFIFO | 0o600, 1, 1)
    assert seen("s")[:3] == (stat.S_IFSOCK | 0o600, 1, 1)
    assert seen("l")[:3] == (stat.S_IFLNK | 0o777, 5, 6)
    assert u.readlink("l") == b"target"
    assert seen("broken")[:3] == (stat.S_IFREG | 0o644, u_, g_)
    assert seen("old")[:3] == (stat.S_IFREG | 0o640, 8, 65534)
    assert seen("plain")[:3] == (stat.S_IFREG | 0o604, u_, g_)
    kinds = {entry.name: stat.S_IFMT(entry.kind) for entry in u.union.readdir(ROOT, 0)}
    assert kinds[b"c"] == stat.S_IFCHR
    assert kinds[b"l"] == stat.S_IFLNK
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        u.read("c", 0, 10)


@needs_root
def test_without_overrides_above_what_is_copied_up_becomes_real(make: MakeStack) -> None:
    kept = {"./": "0:0:0755", "c": "3:4:0620:char-5-1", "l=t": "5:6:0777:symlink", "f=1": "7:8:4711"}
    stack = make(" ".join(f"{item}{{{STAT}={value}}}" for item, value in kept.items()))
    for name in ("c", "l", "f"):
        stack.u.utime(name, 1, 2)
    assert stack.upper is not None
    st = (stack.upper / "c").lstat()
    assert (st.st_mode, st.st_uid, st.st_gid, st.st_rdev) == (stat.S_IFCHR | 0o620, 3, 4, os.makedev(5, 1))
    assert (stack.upper / "l").readlink() == Path("t")
    assert (stack.upper / "l").lstat().st_uid == 5
    assert stat.S_IMODE((stack.upper / "f").stat().st_mode) == 0o4711


@needs_root
def test_who_cannot_give_files_away_stands_in_for_them(make: MakeStack) -> None:
    """An upper of somebody with one id: every kind of object is kept, given away, renamed and found again."""
    stack = make("ll->x lp<fifo>", overrides="user")
    assert stack.upper is not None
    stack.union._tree.staging.branch.overrides.stands_in = True  # type: ignore[union-attr]
    u = stack.u
    u.mknod("c", stat.S_IFCHR | 0o620, os.makedev(1, 3))
    u.mknod("s", stat.S_IFSOCK | 0o600)
    u.symlink("l", b"to")
    for number, name in enumerate(("c", "s", "l", "ll", "lp")):
        u.chown(name, 100 + number, 200 + number)
        assert stat.S_ISREG((stack.upper / name).lstat().st_mode)
    u.rename("l", "moved")
    u = stack.remount()
    told = {name: u.stat(name) for name in ("c", "s", "moved", "ll", "lp")}
    assert [(attrs.uid, attrs.gid) for attrs in told.values()] == [(100 + n, 200 + n) for n in range(5)]
    kinds = [stat.S_IFMT(attrs.mode) for attrs in told.values()]
    assert kinds == [stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFLNK, stat.S_IFLNK, stat.S_IFIFO]
    assert (u.readlink("moved"), u.readlink("ll"), told["moved"].size) == (b"to", b"x", 2)


def test_attributes_that_would_mean_something_are_set_aside(make: MakeStack) -> None:
    stack = make("f=1", overrides="user")
    names = [b"user.overlay.opaque", b"security.thing", b"user.fuseoverlayfs.x", b"user.plain", b"security.capability"]
    for name in names:
        stack.u.setxattr("f", name, b"v:" + name)
    u = stack.remount()
    assert sorted(u.listxattr("f")) == sorted(names)
    for name in names:
        assert u.getxattr("f", name) == b"v:" + name
    assert stack.upper is not None
    assert noted(stack.upper / "f", "user.containers.override_user.overlay.opaque") == "v:user.overlay.opaque"
    u.chown("f", -1, -1)
    assert b"security.capability" not in u.listxattr("f")  # given away, if only to whom it belonged: chown(2)
    u.removexattr("f", b"security.thing")
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        u.getxattr("f", b"security.thing")
    for name in (STAT.encode(), b"user.containers.override_security.thing"):
        with pytest.raises(PermissionError):
            u.setxattr("f", name, b"0:0:0")


@pytest.mark.parametrize("caller", [Caller(5, 6), Caller(0, 0)])
def test_acls_and_modes_follow_each_other(caller: Caller, make: MakeStack, kind: str) -> None:
    stack = make("f=1:0644 d/", overrides=kind)
    u = stack.u
    u.setxattr("f", ACCESS, acl("u::rw-,u:7:rwx,g::r--,m::rwx,o::---"))
    assert stat.S_IMODE(u.stat("f").mode) == 0o670
    u.chmod("f", 0o640)
    assert u.getxattr("f", ACCESS) == acl("u::rw-,u:7:rwx,g::r--,m::r--,o::---")
    u.setxattr("f", ACCESS, acl("u::r--,g::r--,o::r--"))
    assert stat.S_IMODE(u.stat("f").mode) == 0o444
    assert u.listxattr("f") == []
    u.setxattr("d", DEFAULT, acl("u::rwx,u:7:rwx,g::r-x,m::rwx,o::---"))
    made = u.union.mknod(u.node("d"), b"n", stat.S_IFREG | 0o666, 0, caller)
    assert (made.attrs.mode, made.attrs.uid, made.attrs.gid) == (stat.S_IFREG | 0o660, caller.uid, caller.gid)
    assert u.getxattr("d/n", ACCESS) == acl("u::rw-,u:7:rwx,g::r-x,m::rw-,o::---")
    u.union.forget(made.nodeid)


def test_ids_in_acls_are_translated(tmp_path: Path) -> None:
    """As owners are, both ways; a mount that shows them as others' must not show ids of the disk in an ACL."""
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/f").write_bytes(b"")
    os.setxattr(tmp_path / "lower/f", ACCESS, acl("u::rw-,u:100007:rwx,g::r--,g:5:r--,m::rwx,o::---"))
    ids = OwnerTranslation(IdTranslation((IdRange(0, 100000, 1000),)), IdTranslation((IdRange(0, 200000, 1000),)))
    branches = ((str(tmp_path / "lower"),), str(tmp_path / "upper"), str(tmp_path / "work"))
    union = Union(Options(*branches, owners=ids, overrides="user"))
    node = union.lookup(ROOT, b"f").nodeid
    assert union.getxattr(node, ACCESS) == acl("u::rw-,u:7:rwx,g::r--,g:65534:r--,m::rwx,o::---")
    union.setxattr(node, ACCESS, acl("u::rw-,u:9:r--,g::r--,g:3:r--,m::rwx,o::---"), 0)
    kept = os.getxattr(tmp_path / "upper/f", "user.containers.override_system.posix_acl_access")
    assert kept == acl("u::rw-,u:100009:r--,g::r--,g:200003:r--,m::rwx,o::---")
    assert union.getxattr(node, ACCESS) == acl("u::rw-,u:9:r--,g::r--,g:3:r--,m::rwx,o::---")
    union.close()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="not one of user, privileged"):
        Options((str(tmp_path),), overrides="both")
    if os.geteuid() != 0:
        for name in ("lower", "upper", "work"):
            (tmp_path / name).mkdir()
        branches = ((str(tmp_path / "lower"),), str(tmp_path / "upper"), str(tmp_path / "work"))
        with pytest.raises(OptionError, match="owners cannot be kept in security"):
            Union(Options(*branches, overrides="privileged"))


@pytest.mark.parametrize(("uid", "gid"), [(0, 0), (33, 44), (65534, 65534), (0, 5), ((1 << 31) - 1, 1)])
def test_identities_fit_a_resource_limit(uid: int, gid: int) -> None:
    assert unpack_identity(pack_identity(uid, gid)) == (uid, gid)
    assert -1 <= pack_identity(uid, gid) < 1 << 63


def test_owners_that_are_kept_and_not_shown(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/f").write_bytes(b"")
    all_root = OwnerTranslation(IdTranslation(all_as=0), IdTranslation(all_as=0))
    branches = ((str(tmp_path / "lower"),), str(tmp_path / "upper"), str(tmp_path / "work"))
    options = Options(*branches, owners=all_root, overrides="user", owners_kept=True)
    union = Union(options)
    node = union.lookup(ROOT, b"f").nodeid
    control = b"security.unionfs.owner"
    union.setxattr(node, control, b"33:-1", 0)
    assert union.getattr(node)[3:5] == (0, 0)
    assert union.getxattr(node, control) == b"33:%d" % os.getegid()
    assert union.setattr(node, AttrChange(uid=0))[3:5] == (0, 0)
    assert union.getxattr(node, control).startswith(b"0:")
    union.setxattr(ROOT, b"security.unionfs.device", b"1:2:0620:block-8-1/dev", 0)
    made = union.lookup(ROOT, b"dev")
    assert (made.attrs.mode, made.attrs.rdev) == (stat.S_IFBLK | 0o620, os.makedev(8, 1))
    assert union.getxattr(made.nodeid, control) == b"1:2"
    for value in (b"", b"1", b"1:2:3", b"x:y"):
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            union.setxattr(node, control, value, 0)
    for value in (b"1:2:0620:char-1-3", b"nonsense/x", b"1:2:0620/x", b"1:2:0620:char-1-3/../x"):
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            union.setxattr(ROOT, b"security.unionfs.device", value, 0)
    with contextlib.suppress(OSError):
        union.setxattr(ROOT, b"security.unionfs.device", b"1:2:0620:char-1-3/f", 0)
    assert stat.S_ISREG(union.getattr(node).mode)
    union.close()


def test_acls_of_symlinks_are_refused_before_copy_up_too(make: MakeStack) -> None:
    """The copy is a file that stands in for the symlink, and could have one."""
    stack = make("l->a", overrides="user")
    for _ in range(2):
        with pytest.raises(OSError, match="not supported") as refused:
            stack.u.setxattr("l", ACCESS, acl("u::rw-,u:7:rwx,g::r--,m::r--,o::---"))
        assert refused.value.errno == errno.EOPNOTSUPP
        stack.u.utime("l", 5, 6)  # copies it up
