"""Numbers of forgotten nodes: the same object is met again under the number that it had, another one never."""

from __future__ import annotations

import errno
import os

import pytest

from tests.core.conftest import MakeStack
from unionfs.core.attrs import ROOT, Caller
from unionfs.core.handle_table import HandleTable
from unionfs.core.union import Union

ME = Caller(os.geteuid(), os.getegid())


def number(union: Union, path: bytes) -> int:
    """Look a path up and forget it all again."""
    at, seen = ROOT, []
    for name in path.split(b"/"):
        at = union.lookup(at, name).nodeid
        seen.append(at)
    for nodeid in seen:
        union.forget(nodeid)
    return at


def test_a_forgotten_node_gets_its_number_again(make: MakeStack) -> None:
    union = make("d/e/f=1 g==d/e/f", upper="d/u=2 v=3 w==v").union
    union.keep_handles()
    for path in (b"d/e/f", b"d/e", b"d", b"d/u", b"v"):
        assert number(union, path) == number(union, path)


def test_by_number_alone(make: MakeStack) -> None:
    union = make("d/e/f=1").union
    union.keep_handles()
    f, e, d = number(union, b"d/e/f"), number(union, b"d/e"), number(union, b"d")
    entry = union.lookup_handle(f)
    assert (entry.nodeid, union.read(f, 0, 10)) == (f, b"1")
    assert union.lookup_handle(e, parent=True).nodeid == d
    assert union.lookup_handle(d, parent=True).nodeid == ROOT
    for nodeid in (f, d):
        union.forget(nodeid)
    assert union.node_count == 1


def test_whoever_takes_the_place_gets_another_number(make: MakeStack) -> None:
    union = make("a=1 b=2 d/").union
    union.keep_handles()
    old = {name: number(union, name) for name in (b"a", b"b", b"d")}
    union.rename(ROOT, b"a", ROOT, b"c")
    union.rename(ROOT, b"b", ROOT, b"a")
    union.rmdir(ROOT, b"d")
    made = union.mkdir(ROOT, b"d", 0o755, ME).nodeid
    union.forget(made)
    assert number(union, b"c") == old[b"a"]
    assert number(union, b"a") == old[b"b"]
    assert made != old[b"d"]
    with pytest.raises(OSError) as failure:
        union.lookup_handle(old[b"d"])
    assert failure.value.errno == errno.ESTALE


def test_behind_the_back_of_the_union(make: MakeStack) -> None:
    """What stands in the place is another file: it gets a number of its own, and the handle is stale."""
    stack = make("x", upper="a=1 d/b=2")
    assert stack.upper is not None
    union = stack.union
    union.keep_handles()
    a, b = number(union, b"a"), number(union, b"d/b")
    (stack.upper / "new").write_bytes(b"new")
    (stack.upper / "new").rename(stack.upper / "a")
    (stack.upper / "d").rename(stack.upper / "moved")
    for nodeid in (a, b):
        with pytest.raises(OSError) as failure:
            union.lookup_handle(nodeid)
        assert failure.value.errno == errno.ESTALE
    assert number(union, b"a") != a


def test_removed_but_not_yet_forgotten(make: MakeStack) -> None:
    """The kernel may ask for the number before its FORGET of the removed file has come."""
    union = make("a=1 d/").union
    union.keep_handles()
    a, d = union.lookup(ROOT, b"a").nodeid, union.lookup(ROOT, b"d").nodeid
    union.unlink(ROOT, b"a")
    union.rmdir(ROOT, b"d")
    for nodeid in (a, d):
        with pytest.raises(OSError) as failure:
            union.lookup_handle(nodeid)
        assert failure.value.errno == errno.ESTALE
        union.forget(nodeid)


def test_without_keeping_nothing_is_found(make: MakeStack) -> None:
    union = make("a=1").union
    with pytest.raises(OSError) as failure:
        union.lookup_handle(number(union, b"a"))
    assert failure.value.errno == errno.ESTALE


def test_the_oldest_is_dropped() -> None:
    table = HandleTable(limit=3)
    for nodeid in range(2, 7):
        table.add(nodeid, 1, b"%d" % nodeid, 100 + nodeid)
    assert len(table) == 3
    assert table.find(2) is None
    assert table.take(1, b"2", 102) == 0
    assert table.take(1, b"6", 106) == 6
    assert table.take(1, b"5", 999) == 0, "another object in its place"
    assert len(table) == 1
    table.add(9, 1, b"4", 104)
    found = table.find(9)
    assert found is not None
    assert (len(table), table.find(4), found[:3]) == (1, None, (1, b"4", 104))


@pytest.mark.skipif(os.geteuid() != 0, reason="open_by_handle_at(2) is for root")
@pytest.mark.parametrize("names", [(b"a", b"b", b"c"), (b"u", b"v", b"w")], ids=["lower", "upper"])
def test_by_the_names_that_are_left(make: MakeStack, names: tuple[bytes, ...]) -> None:
    union = make("a=1 b==a c==a", upper="u=1 v==u w==u").union
    union.keep_handles()
    wanted = number(union, names[0])
    assert number(union, names[1]) == wanted
    for name in names[:2]:
        union.unlink(ROOT, name)
        for _ in range(2):
            entry = union.lookup_handle(wanted)
            assert (entry.nodeid, union.read(wanted, 0, 10)) == (wanted, b"1")
            union.forget(wanted)
    union.lookup_handle(wanted)
    union.write(wanted, 0, b"2")
    union.forget(wanted)
    entry = union.lookup(ROOT, names[2])
    assert (entry.nodeid, union.read(wanted, 0, 10)) == (wanted, b"2")
    union.unlink(ROOT, names[2])
    for _ in range(2):
        with pytest.raises(OSError) as failure:
            union.lookup_handle(wanted)
        assert failure.value.errno == errno.ESTALE
        union.forget(wanted)
    assert union.node_count == 1
