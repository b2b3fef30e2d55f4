"""The upper becomes a lower while the union is in use: the shown tree does not change, and the frozen directory never
changes.

Random sequences with freezes run in test_against_model.
"""

from __future__ import annotations

import errno
import gc
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.core.differential import Pair, replay, steps
from tests.core.snapshots import fingerprint, snapshot
from tests.core.stack import Stack
from unionfs import markers
from unionfs.core import frozen_names
from unionfs.core.attrs import ROOT
from unionfs.core.branch import Branch
from unionfs.core.fds import FdCache
from unionfs.core.freeze import Freeze
from unionfs.core.options import OptionError, Options
from unionfs.core.union import Union
from unionfs.syscalls import files


def test_what_is_shown_stays(tmp_path: Path) -> None:
    pair = Pair(tmp_path, ["d/x=1 d/y=2 e/f=3 g=4", "low=5 d/z=6"], "own=7 d/new=8", caching=True)
    for step in steps("write d/x 0 changed; unlink e/f; rename d moved; mkdir d; put d/q 9; chmod g 0600"):
        pair.do(str(step[0]), *step[1:])
    for _ in range(3):
        pair.do("freeze")
        for step in steps(
            "write moved/x 0 again; write own 0 own; unlink g; put g new; rename moved m2; rename m2 moved"
        ):
            pair.do(str(step[0]), *step[1:])
            pair.check()
    assert len(pair.stack.lowers) == 5
    pair.finish()


def test_open_files_go_on(tmp_path: Path) -> None:
    pair = Pair(tmp_path, ["a=lower b=lower"], "c=upper", caching=True)
    for name in (b"a", b"b", b"c"):
        pair.do("open", name)
    pair.do("write", b"a", 0, b"before")
    pair.do("unlink", b"b")
    pair.do("freeze")
    for index in range(3):
        pair.do("on_handle", index, "fstat")
    pair.do("write", b"a", 2, b"after")
    pair.do("unlink", b"c")
    pair.check()
    assert (pair.stack.lowers[0] / "a").read_bytes() == b"before"
    assert (pair.stack.lowers[0] / "c").read_bytes() == b"upper"
    assert (pair.stack.base / "upper" / "a").read_bytes() == b"beafter"
    pair.close_handles()
    pair.finish()


def test_hard_links_stay_one_file(tmp_path: Path) -> None:
    replay(
        tmp_path, ["a=1 d/b==a c==a", "s->a"], "u=2 v==u", "aufs", caching=True,
        steps=steps("write a 0 up; freeze; write c 0 all; freeze; link d/b e; freeze; unlink a; write u 0 x"),
    )  # fmt: skip


def test_a_removed_file_with_other_names_is_waited_for(tmp_path: Path) -> None:
    stack = Stack(tmp_path, "x=1", upper="a=1 b==a", caching=True)
    driver = stack.u
    handle = driver.open(b"a")
    driver.unlink(b"a")
    with pytest.raises(OptionError, match="'a' is removed, in use, and has other names: try again when it is closed"):
        stack.freeze()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lower0", "upper", "work"]
    driver.close(handle)
    stack.freeze()
    assert driver.read(b"b") == b"1"
    stack.finish()


def test_the_next_union_has_what_was_frozen(tmp_path: Path) -> None:
    stack = Stack(tmp_path, "x=1", upper="a=1")
    for number in range(3):
        stack.u.create(b"n%d" % number, 0o644)
        stack.freeze()
    options = Options(lowers=(str(tmp_path / "lower0"),), upper=str(tmp_path / "upper"), work=str(tmp_path / "work"))
    stack.close()
    again = Union(options)
    assert again.options.lowers == tuple(str(tmp_path / name) for name in ("frozen3", "frozen2", "frozen1", "lower0"))
    names = sorted(line.name for line in again.readdir(1, 2))
    assert names == [b"a", b"n0", b"n1", b"n2", b"x"]
    again.close()
    there = tmp_path / "work/frozen"
    links = {path: os.readlink(path) for path in there.iterdir()}
    shutil.rmtree(there)
    there.write_bytes(b"frozen3\0frozen2\0frozen1\0")
    assert "replace it by a directory with the links 00000001, 00000002" in _why_not(options)
    there.unlink()
    there.mkdir()
    for number, name in enumerate(("frozen1", "frozen2", "frozen3"), 1):  # as the error says
        (there / f"{number:08}").symlink_to(name)
    assert {path: os.readlink(path) for path in there.iterdir()} == links
    Union(options).close()
    stack.finish()


def _why_not(options: Options) -> str:
    """Why a union cannot be opened. What it had opened is closed with its objects, which refer to each other."""
    with pytest.raises(OptionError) as refused:
        Union(options)
    why = str(refused.value)
    del refused
    gc.collect()
    return why


def test_only_a_frozen_branch_itself_has_a_record_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "frozen" / "d").mkdir(parents=True)
    (tmp_path / "frozen" / "d" / "f").touch()
    frozen, copy = str(tmp_path / "frozen"), str(tmp_path / "copy")
    assert frozen_names.record(frozen)
    subprocess.run(["cp", "-a", frozen, copy], check=True)
    os.mkdir(os.path.join(copy, "new"))
    assert markers.NAMES_XATTR in os.listxattr(copy)
    with_record = Branch(frozen, FdCache(9), writable=False).root
    assert with_record.lacks(b"new")
    assert with_record.child(b"d").lacks(b"g")
    assert not with_record.child(b"d").lacks(b"f")
    assert Branch(copy, FdCache(9), writable=False).root.recorded is None
    Branch(frozen, FdCache(9), writable=True)  # as an upper it changes
    assert os.listxattr(frozen) == []
    for number in range(1000):
        (tmp_path / "frozen" / str(number)).touch()
    assert not frozen_names.record(frozen)
    assert os.listxattr(frozen) == []


@pytest.mark.parametrize("step", ["renew_index", "add_frozen", "renameat2"])
def test_a_failure_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    stack = Stack(tmp_path, "x=1 y==x s->x", upper="a=1 d/b=2", caching=True)
    stack.u.write(b"x", 0, b"2")
    stack.union.fsync(ROOT, False)  # gives the upper the names of hard links that it lacks, as a freeze does first
    before = fingerprint(tmp_path / "upper")

    def fail(*_args: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner = {"renameat2": files}.get(step, type(stack.union._tree.staging))
    with monkeypatch.context() as patch:
        patch.setattr(files if step == "renameat2" else owner, step, fail)
        assert _errno_of_freezing(stack) == errno.ENOSPC
    assert fingerprint(tmp_path / "upper") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lower0", "upper", "work"]
    assert stack.u.read(b"y") == b"2"
    stack.freeze()
    assert stack.u.read(b"y") == b"2"
    stack.u.write(b"y", 0, b"3")
    assert stack.u.read(b"x") == b"3"
    stack.finish()


def _errno_of_freezing(stack: Stack) -> int | None:
    """The errno with which it fails; the error itself would keep descriptors open."""
    try:
        stack.freeze()
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", ["renew_index", "add_frozen", "renameat2"])
def test_a_death_at_any_step_loses_nothing(tmp_path: Path, step: str, after: bool) -> None:
    """Whoever opens the union again, with the same options as before, sees the same."""
    stack = Stack(tmp_path, "x=1 y==x s->x d/e=3", upper="a=1 d/b=2")
    for number in range(2):
        before = snapshot(stack.u)
        options = stack.options
        stack.close()
        pid = os.fork()
        if pid == 0:
            try:
                _die_at(options, step, number, after=after)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        if number:  # what was begun may be in the list of frozen directories, and is empty then
            assert (tmp_path / "dead1").is_dir()
        assert snapshot(stack.u) == before
        stack.u.write(b"x", 0, b"%d" % number)
        stack.u.create(b"new%d" % number)
        assert stack.u.read(b"y") == b"%d" % number
    stack.close()
    stack.lowers = stack.lowers[-1:]
    stack._before = stack._before[-1:]
    stack.finish()


def _die_at(options: Options, step: str, number: int, *, after: bool) -> None:
    union = Union(options)
    owner: object = files if step == "renameat2" else union._tree.staging
    real = getattr(owner, step)

    def die(*args: object, **named: object) -> object:
        if after:
            real(*args, **named)
        os._exit(7)

    setattr(owner, step, die)
    job = Freeze(union, b"dead%d" % number)
    job.prepare()
    job.commit()


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"n" * 256])
def test_names_that_cannot_be(tmp_path: Path, name: bytes) -> None:
    stack = Stack(tmp_path, "x=1", upper="a=1")
    with pytest.raises(OptionError, match="is no name for a directory"):
        Freeze(stack.union, name)
    stack.finish()


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    stack = Stack(tmp_path, "x=1", upper="a=1")
    job = Freeze(stack.union, b"lower0")
    with pytest.raises(FileExistsError):
        job.prepare()
    job.close()
    assert (tmp_path / "lower0/x").read_bytes() == b"1"
    stack.finish()
