"""A view beside its union, changed at random: what has equal numbers in both listings is equal, with all below it."""

from __future__ import annotations

import os
import stat

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.core.conftest import MakeStack
from tests.core.snapshots import Snapshot, snapshot
from tests.core.stack import Stack
from tests.core.test_against_model import _EXAMPLES, MODEL_SETTINGS, UnionMachine
from tests.core.union_driver import UnionDriver
from unionfs.core.attrs import VIEW, VIEW_MARK, Entry
from unionfs.core.union import Union
from unionfs.core.view import View


class ViewDriver(UnionDriver):
    """Takes the bit off the node ids, as the transport does."""

    def _enter(self, parent: int, name: bytes, entry: Entry) -> int:
        assert entry.nodeid & VIEW
        return super()._enter(parent, name, entry._replace(nodeid=entry.nodeid & ~VIEW))


class Beside:
    """A union, the view of its lowers, and an ordinary read-only union of them."""

    def __init__(self, union: UnionDriver) -> None:
        self.union = union
        self.view = ViewDriver(View(union.union))
        self.ordinary = UnionDriver(Union(union.union.options._replace(upper=None, work=None, overrides="")))

    def close(self) -> None:
        """Close what this has opened."""
        self.ordinary.union.close()

    def equal(self) -> list[bytes]:
        """The paths that a program which compares the union with the view takes to be equal, with all below them, and
        which it does not look at. The walk is that of containers/storage, pkg/archive/changes_linux.go."""
        found: list[bytes] = []
        pending = [b""]
        while pending:
            path = pending.pop()
            ours, theirs = self.union.listing(path), self.view.listing(path)
            assert {name: kind for name, (kind, _) in theirs.items()} == {
                name: kind for name, (kind, _) in self.ordinary.listing(path).items()
            }
            for name in ours.keys() & theirs.keys():
                below = path + b"/" + name if path else name
                if ours[name][1] == theirs[name][1]:
                    found.append(below)
                elif ours[name][0] == theirs[name][0] == stat.S_IFDIR:
                    pending.append(below)
        return sorted(found)

    def check(self) -> None:
        """Entries that podman's rule takes to be equal are equal."""
        for path in self.equal():
            assert _comparable(snapshot(self.union, path)) == _comparable(snapshot(self.ordinary, path)), path
        before = self.view.stat(b"").ino
        assert before ^ VIEW_MARK == self.union.stat(b"").ino


def _comparable(found: Snapshot) -> Snapshot:
    """Without the number of links and which names are one file: names elsewhere may be removed."""
    return {path: snap._replace(nlink=0, group=b"") for path, snap in found.items()}


class ViewMachine(UnionMachine):
    """After each step of the model's, the view is compared with the union; one view serves all steps of a mount."""

    beside: Beside | None = None

    def do(self, verb: str, *args: object) -> None:
        if self.beside is not None and verb in ("remount", "restack"):
            self._leave()
        super().do(verb, *args)
        if self.beside is None or self.beside.union is not self.pair.union:
            self._leave()
            self.beside = Beside(self.pair.union)
        self.beside.check()

    def _leave(self) -> None:
        if self.beside is not None:
            self.beside.close()
            self.beside = None

    def teardown(self) -> None:
        self._leave()
        super().teardown()


def test_what_has_equal_numbers_is_equal() -> None:
    before = os.umask(0)
    try:
        run_state_machine_as_test(ViewMachine, settings=settings(MODEL_SETTINGS, max_examples=_EXAMPLES // 8))
    finally:
        os.umask(before)


@pytest.fixture
def beside(make: MakeStack) -> Beside:
    """Two lowers with a hard link, and nothing in the upper."""
    return _beside(make("d/top=1", "d/x=x d/e/y=y link==d/x f=f g/h=h"))


def _beside(stack: Stack) -> Beside:
    return Beside(stack.u)


def test_everything_is_equal_at_first(beside: Beside) -> None:
    assert beside.equal() == [b"d", b"f", b"g", b"link"]
    beside.close()


@pytest.mark.parametrize(
    ("step", "left"),
    [
        (("write", b"f", 0, b"n"), [b"d", b"g", b"link"]),
        (("chmod", b"g/h", 0o600), [b"d", b"f", b"link"]),
        (("create", b"d/e/new"), [b"d/e/y", b"d/top", b"d/x", b"f", b"g", b"link"]),
        (("unlink", b"d/e/y"), [b"d/top", b"d/x", b"f", b"g", b"link"]),
        (("write", b"link", 0, b"n"), [b"d/e", b"d/top", b"f", b"g"]),
        (("rename", b"d", b"new"), [b"f", b"g", b"link"]),
        (("rename", b"g", b"d/g"), [b"d/e", b"d/top", b"d/x", b"f", b"link"]),
        (("setxattr", b"d/e", b"user.a", b"1"), [b"d/e/y", b"d/top", b"d/x", b"f", b"g", b"link"]),
        (("link", b"f", b"g/f"), [b"d", b"g/h", b"link"]),
    ],
)
def test_a_change_is_seen_at_once(beside: Beside, step: tuple[object, ...], left: list[bytes]) -> None:
    assert beside.equal() == [b"d", b"f", b"g", b"link"]
    verb, *args = step
    getattr(beside.union, str(verb))(*args)
    assert beside.equal() == left
    beside.check()
    beside.close()


def test_a_directory_renamed_onto_the_name_of_another(beside: Beside) -> None:
    """What it has may have the name, and by a hard link the number, of what the lowers have there."""
    beside.union.write(b"d/x", 0, b"changed")
    beside.union.unlink(b"link")
    beside.union.rename(b"d", b"old")
    beside.union.rename(b"g", b"d")
    beside.union.rename(b"d/h", b"d/x")
    assert beside.equal() == [b"f"]
    beside.check()
    beside.close()


def test_the_numbers_of_the_union_stay(beside: Beside) -> None:
    before = beside.union.listing(b"d"), beside.union.stat(b"d/x").ino
    beside.union.write(b"d/x", 0, b"changed")
    assert (beside.union.listing(b"d"), beside.union.stat(b"d/x").ino) == before
    beside.close()


def test_the_view_is_read_only_and_has_no_handles(beside: Beside) -> None:
    for step in (("write", b"f", 0, b"n"), ("create", b"new"), ("unlink", b"f"), ("chmod", b"d", 0o700)):
        with pytest.raises(OSError, match="Read-only file system"):
            getattr(beside.view, step[0])(*step[1:])
    nodeid = beside.view.union.lookup(1, b"f").nodeid & ~VIEW
    with pytest.raises(OSError, match="Stale file handle"):
        beside.view.union.lookup_handle(nodeid)
    beside.view.union.forget(nodeid)
    assert beside.view.read(b"f") == b"f"
    beside.close()


def test_the_view_leaves_no_nodes_in_the_union(beside: Beside) -> None:
    beside.union.create(b"d/e/new")
    known = beside.union.union.node_count
    assert beside.equal()
    assert beside.union.union.node_count == known
    beside.close()
