"""Owners that the union translates: ranges of ids shown as others, and one id for all."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from tests.core.trees import tree
from unionfs.core.attrs import ROOT, AttrChange, Caller
from unionfs.core.options import Options
from unionfs.core.owners import IdTranslation, OwnerTranslation, parse_ranges
from unionfs.core.union import Union
from unionfs.id_ranges import OVERFLOW, IdRange

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: giving files away")
KEEP_ID = IdTranslation(parse_ranges(":0:1:1001:1001:0:1:1002:1002:64535"))


@pytest.mark.parametrize(
    ("stored", "shown"), [(0, 1), (1000, 1001), (1001, 0), (1002, 1002), (65536, 65536), (65537, OVERFLOW)]
)
def test_ranges_both_ways(stored: int, shown: int) -> None:
    """The mapping of podman's --userns=keep-id."""
    assert KEEP_ID.shown(stored) == shown
    if shown != OVERFLOW:
        assert KEEP_ID.stored(shown) == stored


def test_without_ranges_nothing_changes_and_with_one_for_all_everything() -> None:
    for number in (0, 5, 1 << 31):
        assert (IdTranslation().shown(number), IdTranslation().stored(number)) == (number, number)
        assert (IdTranslation(all_as=7).shown(number), IdTranslation(all_as=7).stored(number)) == (7, 7)


@pytest.mark.parametrize("text", ["", ":", "0:1", "0:1:0", "0:-1:5", "a:b:c", "0:1:5:7", "0:4294967295:2"])
def test_what_are_no_ranges(text: str) -> None:
    with pytest.raises(ValueError, match=r"three|range|not numbers"):
        parse_ranges(text)


def test_ranges_are_read_with_empty_parts_passed_over() -> None:
    assert parse_ranges(":0:10:100::100:10000:2000:") == (IdRange(10, 0, 100), IdRange(10000, 100, 2000))


def union_with(tmp_path: Path, owners: OwnerTranslation) -> Union:
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    options = Options((str(tmp_path / "lower"),), str(tmp_path / "upper"), str(tmp_path / "work"), owners=owners)
    return Union(options)


def owner(path: Path) -> tuple[int, int]:
    st = os.lstat(path)
    return st.st_uid, st.st_gid


@NEEDS_ROOT
def test_ranges_in_a_union(tmp_path: Path) -> None:
    """What is copied up keeps the stored ids; what is made or given away gets them."""
    tree(tmp_path / "lower", "f=1:0644,100000,200005 stranger=2:0644,7,7")
    ids = OwnerTranslation(IdTranslation((IdRange(0, 100000, 1000),)), IdTranslation((IdRange(0, 200000, 1000),)))
    union = union_with(tmp_path, ids)
    entry = union.lookup(ROOT, b"f")
    assert (entry.attrs.uid, entry.attrs.gid) == (0, 5)
    stranger = union.lookup(ROOT, b"stranger").attrs
    assert (stranger.uid, stranger.gid) == (OVERFLOW, OVERFLOW)
    union.setattr(entry.nodeid, AttrChange(mode=0o600))
    assert owner(tmp_path / "upper/f") == (100000, 200005)
    changed = union.setattr(entry.nodeid, AttrChange(uid=3))
    assert (changed.uid, changed.gid) == (3, 5)
    assert owner(tmp_path / "upper/f") == (100003, 200005)
    caller = Caller(1, 2)
    for made, name in (
        (union.mknod(ROOT, b"file", 0o100644, 0, caller), "file"),
        (union.mkdir(ROOT, b"dir", 0o755, caller), "dir"),
        (union.symlink(ROOT, b"link", b"x", caller), "link"),
    ):
        assert (made.attrs.uid, made.attrs.gid) == (1, 2)
        assert owner(tmp_path / "upper" / name) == (100001, 200002)
    union.setattr(entry.nodeid, AttrChange(uid=5000))
    assert owner(tmp_path / "upper/f") == (OVERFLOW, 200005)
    union.close()


def test_one_user_for_all(tmp_path: Path) -> None:
    """Everything is shown as one user's, and giving it away succeeds without effect where it is not allowed."""
    tree(tmp_path / "lower", "f=1 d/g=2")
    me, mine = os.geteuid(), os.getegid()
    union = union_with(tmp_path, OwnerTranslation(IdTranslation(all_as=0), IdTranslation(all_as=0)))
    entry = union.lookup(ROOT, b"f")
    assert (entry.attrs.uid, entry.attrs.gid) == (0, 0)
    changed = union.setattr(entry.nodeid, AttrChange(uid=33, gid=33))
    assert (changed.uid, changed.gid) == (0, 0)
    assert owner(tmp_path / "upper/f") == (me, mine)
    made = union.mknod(ROOT, b"new", 0o100644, 0, Caller(33, 33))
    assert (made.attrs.uid, made.attrs.gid) == (0, 0)
    assert owner(tmp_path / "upper/new") == (me, mine)
    union.close()


@NEEDS_ROOT
def test_without_a_translation_chown_may_be_refused(tmp_path: Path) -> None:
    tree(tmp_path / "lower", "f=1")
    union = union_with(tmp_path, OwnerTranslation())
    entry = union.lookup(ROOT, b"f")
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            union.setattr(entry.nodeid, AttrChange(uid=33))
    finally:
        os.seteuid(0)
    union.close()


def test_a_translation_survives_being_pickled() -> None:
    """A container's daemon gets it so from a parent of mounts."""
    ranges = IdTranslation(parse_ranges("0:100000:65536"))
    for one in (OwnerTranslation(), OwnerTranslation(IdTranslation(all_as=0), ranges)):
        assert pickle.loads(pickle.dumps(one)) == one
