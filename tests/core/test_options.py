"""Branches that cannot make a union, and unions without an upper: what is refused and how it is said."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.children import as_user, in_child
from tests.core.conftest import MakeStack, needs_root
from tests.core.native import Native
from tests.core.snapshots import merged, snapshot
from tests.core.stack import Stack
from tests.core.trees import tree
from tests.support.timing import limit
from unionfs.core.attrs import ROOT, AttrChange, Caller
from unionfs.core.options import OptionError, Options
from unionfs.core.union import Union


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Directories l, m, u, w and a file f."""
    return tree(tmp_path / "t", "l/a=1 m/ u/ w/ f=1 u/in/ l/in/x")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no lowers": ({"lowers": ()}, "lower"),
    "missing lower": ({"lowers": ("none",)}, "none"),
    "a lower that is a file": ({"lowers": ("f",)}, "f"),
    "missing upper": ({"upper": "none"}, "none"),
    "an upper that is a file": ({"upper": "f"}, "f"),
    "missing work": ({"work": "none"}, "none"),
    "a work that is a file": ({"work": "f"}, "f"),
    "upper without work": ({"work": None}, "work"),
    "work without upper": ({"upper": None}, "upper"),
    "work inside upper": ({"work": "u/in"}, "overlap"),
    "upper inside work": ({"upper": "w/in"}, ""),
    "work is upper": ({"work": "u"}, "overlap"),
    "lower is upper": ({"lowers": ("u",)}, "upper"),
    "lower inside upper": ({"lowers": ("l", "u/in")}, "upper"),
    "upper inside lower": ({"upper": "l/in"}, "lower"),
    "work inside lower": ({"work": "l/in"}, "lower"),
    "unknown whiteout format": ({"whiteout": "other"}, "other"),
    "unknown durability": ({"durability": "other"}, "other"),
}


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD)
def test_refused(change: dict[str, Any], said: str, here: Path) -> None:
    """OptionError names what is wrong; nothing is made anywhere."""
    before = snapshot_of(here)
    with pytest.raises(OptionError) as caught:
        Union(Options(**_paths(here, {"lowers": ("l", "m"), "upper": "u", "work": "w", **change})))
    assert said in str(caught.value)
    assert isinstance(caught.value, OSError)
    assert caught.value.errno
    assert not str(caught.value).startswith("[Errno")
    assert snapshot_of(here) == before


def _paths(here: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The options with their paths below `here`."""
    full = dict(options, lowers=tuple(str(here / lower) for lower in options["lowers"]))
    return full | {key: str(here / options[key]) for key in ("upper", "work") if options[key] is not None}


def snapshot_of(here: Path) -> object:
    return snapshot(Native(here))


def test_a_symlink_to_a_directory_is_a_directory(here: Path) -> None:
    (here / "link").symlink_to("l")
    union = Union(Options(lowers=(str(here / "link"),), upper=str(here / "u"), work=str(here / "w")))
    assert union.lookup(ROOT, b"a").attrs.size == 1
    union.close()


def test_overlap_through_a_symlink_is_seen(here: Path) -> None:
    (here / "link").symlink_to("u")
    with pytest.raises(OptionError):
        Union(Options(lowers=(str(here / "link/in"),), upper=str(here / "u"), work=str(here / "w")))


def test_the_same_lower_twice_is_no_harm(here: Path) -> None:
    union = Union(Options(lowers=(str(here / "l"), str(here / "l"))))
    assert {entry.name for entry in union.readdir(ROOT, 2)} == {b"a", b"in"}
    union.close()


@needs_root
class TestOtherFilesystems:
    """With a second filesystem at hand."""

    @pytest.fixture
    def other(self, here: Path) -> Iterator[Path]:
        path = here / "other"
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", path], check=True, timeout=limit(30))
        yield path
        subprocess.run(["umount", "-l", path], check=True, timeout=limit(30))

    def test_work_on_another_filesystem(self, here: Path, other: Path) -> None:
        (other / "w").mkdir()
        with pytest.raises(OptionError) as caught:
            Union(Options(lowers=(str(here / "l"),), upper=str(here / "u"), work=str(other / "w")))
        assert "filesystem" in str(caught.value)
        assert caught.value.errno == errno.EXDEV

    def test_a_read_only_upper(self, here: Path, other: Path) -> None:
        for name in ("u", "w"):
            (other / name).mkdir()
        subprocess.run(["mount", "-o", "remount,ro", other], check=True, timeout=limit(30))
        with pytest.raises(OptionError) as caught:
            Union(Options(lowers=(str(here / "l"),), upper=str(other / "u"), work=str(other / "w")))
        assert caught.value.errno == errno.EROFS

    def test_lowers_on_several_filesystems(self, here: Path, other: Path) -> None:
        """Numbers do not meet, and last."""
        tree(other / "l", " ".join(f"f{n}" for n in range(50)))
        tree(here / "k", " ".join(f"g{n}" for n in range(50)))
        inos: list[set[int]] = []
        for _ in range(2):
            union = Union(
                Options(lowers=(str(here / "k"), str(other / "l")), upper=str(here / "u"), work=str(here / "w"))
            )
            inos.append({entry.ino for entry in union.readdir(ROOT, 2)})
            union.close()
        assert len(inos[0]) == 101
        assert inos[0] == inos[1]

    def test_what_is_mounted_inside_a_lower_is_not_entered(self, here: Path, other: Path) -> None:
        (other / "secret").write_text("x")
        union = Union(Options(lowers=(str(here),)))
        mounted = union.lookup(ROOT, b"other")
        assert stat.S_ISDIR(mounted.attrs.mode)
        assert [entry.name for entry in union.readdir(mounted.nodeid, 2)] == []
        with pytest.raises(FileNotFoundError):
            union.lookup(mounted.nodeid, b"secret")
        union.close()


def test_hidden_places_show_as_empty_directories(here: Path) -> None:
    stack_lower, upper = here, here / "u"
    options = Options(
        lowers=(str(stack_lower),),
        upper=str(upper),
        work=str(here / "w"),
        hidden=(str(here / "u"), str(here / "w"), str(here / "l/in")),
    )
    union = Union(options)
    for path in ((b"u",), (b"w",), (b"l", b"in")):
        node = ROOT
        for name in path:
            node = union.lookup(node, name).nodeid
        assert [entry.name for entry in union.readdir(node, 2)] == []
    a = union.lookup(union.lookup(ROOT, b"l").nodeid, b"a").nodeid
    union.write(a, 0, b"2")
    assert (upper / "l/a").read_bytes() == b"2"
    assert (here / "l/a").read_bytes() == b"1"
    union.close()


CHANGES = {
    "write": lambda u: u.write("f", 0, b"x"),
    "truncate": lambda u: u.truncate("f", 0),
    "chmod": lambda u: u.chmod("f", 0o600),
    "chmod of a directory": lambda u: u.chmod("d", 0o700),
    "utime": lambda u: u.utime("f", 1, 2),
    "setxattr": lambda u: u.setxattr("f", b"user.k", b"v"),
    "removexattr": lambda u: u.removexattr("f", b"user.k"),
    "fallocate": lambda u: u.fallocate("f", 0, 0, 10),
    "copy_file_range": lambda u: u.copy_file_range("f", 0, "f", 10, 1),
    "create": lambda u: u.create("new"),
    "mkdir": lambda u: u.mkdir("d/new"),
    "symlink": lambda u: u.symlink("new", b"x"),
    "mknod": lambda u: u.mknod("new", stat.S_IFIFO | 0o600),
    "link": lambda u: u.link("f", "new"),
    "tmpfile": lambda u: u.tmpfile("d"),
    "unlink": lambda u: u.unlink("f"),
    "rmdir": lambda u: u.rmdir("e"),
    "rename": lambda u: u.rename("f", "g"),
    "rename of a directory": lambda u: u.rename("d", "g"),
    "exchange": lambda u: u.rename("d", "f", 2),
    "write_fd": lambda u: u.union.write_fd(u.node("f")),
    "copyup_begin": lambda u: u.union.copyup_begin(u.node("big")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_without_an_upper_every_change_is_erofs(change: str, make: MakeStack) -> None:
    stack = make("f=1{user.k=v} d/a e/", "d/b big=x*300000", upper=None)
    before = snapshot(stack.u)
    with pytest.raises(OSError) as caught:
        CHANGES[change](stack.u)
    assert caught.value.errno == errno.EROFS
    assert snapshot(stack.u) == before


def test_without_an_upper_statfs_and_sync_work(make: MakeStack) -> None:
    stack = make("f", upper=None)
    assert stack.union.statfs().namemax == 255
    stack.union.syncfs()
    f = stack.union.lookup(ROOT, b"f").nodeid
    stack.union.fsync(f, False)
    stack.union.forget(f)


@needs_root
class TestUnreadable:
    """An ordinary user over directories that are not his."""

    def test_an_unreadable_lower(self, here: Path) -> None:
        (here / "l").chmod(0)
        _open_up(here)

        def run() -> str:
            with pytest.raises(OptionError) as caught:
                Union(Options(lowers=(str(here / "l"),)))
            return str(caught.value)

        assert str(here / "l") in str(as_user(65534, 65534, run))

    def test_an_unreadable_directory_in_a_lower(self, here: Path) -> None:
        (here / "l/in").chmod(0)
        _open_up(here)

        def run() -> tuple[int | None, list[bytes]]:
            union = Union(Options(lowers=(str(here / "l"),)))
            node = union.lookup(ROOT, b"in").nodeid
            try:
                list(union.readdir(node, 2))
                code = None
            except OSError as exc:
                code = exc.errno
            union.close()
            union = Union(Options(lowers=(str(here / "l"),), skip_unreadable=True))
            node = union.lookup(ROOT, b"in").nodeid
            names = [entry.name for entry in union.readdir(node, 2)]
            union.close()
            return code, names

        assert as_user(65534, 65534, run) == (errno.EACCES, [])

    def test_a_work_that_cannot_be_written(self, here: Path) -> None:
        _open_up(here)
        (here / "u").chmod(0o777)

        def run() -> str:
            with pytest.raises(OptionError) as caught:
                Union(Options(lowers=(str(here / "l"),), upper=str(here / "u"), work=str(here / "w")))
            return str(caught.value)

        assert str(here / "w") in str(as_user(65534, 65534, run))

    def test_an_upper_that_cannot_be_written(self, here: Path) -> None:
        _open_up(here)
        (here / "w").chmod(0o777)

        def run() -> str:
            with pytest.raises(OptionError) as caught:
                Union(Options(lowers=(str(here / "l"),), upper=str(here / "u"), work=str(here / "w")))
            return str(caught.value)

        assert str(here / "u") in str(as_user(65534, 65534, run))


def _open_up(path: Path) -> None:
    for parent in [path, *path.parents][:5]:
        if os.stat(parent).st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(0o755)


class TestTwoAtOnce:
    """Two unions on one upper both work: container engines do that (the second to compare a running container)."""

    def test_both_open_and_neither_sweeps_the_other(self, tmp_path: Path) -> None:
        stack = Stack(tmp_path / "s", "f=1 g=2")
        f = stack.union.lookup(ROOT, b"f").nodeid
        stack.union.unlink(ROOT, b"f")
        second = Union(stack.options)
        assert {entry.name for entry in second.readdir(ROOT, 2)} == {b"g"}
        second.forget(second.mknod(ROOT, b"new", stat.S_IFREG | 0o644, 0, Caller(os.geteuid(), os.getegid())).nodeid)
        assert stack.union.read(f, 0, 9) == b"1"
        stack.union.write(f, 0, b"2")
        second.close()
        assert stack.union.read(f, 0, 9) == b"2"
        stack.union.setattr(ROOT, AttrChange(mode=0o711))
        stack.union.forget(f)
        assert merged(stack.remount()) == "g=2 new"
        stack.finish()

    def test_what_a_dead_one_left_is_swept(self, tmp_path: Path) -> None:
        stack = Stack(tmp_path / "s", "f=1 g/x=2")

        def die() -> None:
            union = stack.union
            f = union.lookup(ROOT, b"f").nodeid
            union.write(f, 0, b"22")
            union.unlink(ROOT, b"f")
            os._exit(1)

        assert in_child(die).status == 1
        assert merged(stack.u) == "g/x=2"
        stack.finish()
