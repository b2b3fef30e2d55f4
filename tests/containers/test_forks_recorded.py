"""Records of forks: after concurrent commands, after a store was moved; and commands that do not change them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.containers.fork_world import World, copy
from unionfs.changes import journal as journals
from unionfs.changes import merging
from unionfs.containers import branches, diff, forks, freeze, merge
from unionfs.containers.errors import ContainerError
from unionfs.containers.merge import OURS, ConflictError
from unionfs.containers.remove import remove
from unionfs.containers.store import ContainerStore

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the containers of root need no user namespace")

_BASE = ("/d", "+d/x=x", "+f=f", "/g", "+g/1=1", "+h=h")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_commands_at_once_wait_for_each_other(world: World) -> None:
    """Two merges wait while branches are changed: none is lost from the record."""
    world.make("a", *_BASE)
    for name in ("b", "c"):
        world.fork("a", name)
        world.edit(name, f"+{name}=1")
    with world.store.changing(world.find("a")) as held:
        children = [_started(lambda name=name: merge.merge(world.find(name), world.find("a"))) for name in ("b", "c")]  # type: ignore[misc]
        world.store.set_lowers(held, (_added_branch(world), *held.config.rootfs.lowers))
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    shown = world.shown("a")
    assert (shown["b"], shown["c"], "of the branch" in shown) == (("file", 0o644, "1"), ("file", 0o644, "1"), True)
    assert [one.name for one in world.store.list()] == ["a"]


def _started(body: Callable[[], object]) -> int:
    if (child := os.fork()) == 0:
        status = 1
        try:
            body()
            status = 0
        finally:
            os._exit(status)
    return child


def _added_branch(world: World) -> str:
    added = world.top / "added"
    added.mkdir()
    (added / "of the branch").write_text("1")
    return str(added)


def test_a_branch_that_was_added_to_a_fork(world: World) -> None:
    """Shared, it would let the changes of the parent below count as unchanged: its files are copied."""
    world.make("a", *_BASE)
    world.edit("a", "+f=a")
    world.fork("a", "b")
    world.edit("b", "+g/1=b")
    freeze.freeze(world.find("b"))
    branches.add(world.find("b"), _added_branch(world), None, force=False)
    done = merge.merge(world.find("b"), world.find("a"))
    assert done.copied
    assert [os.fsdecode(change.path) for change in merging.own(diff.changes_of(world.find("a")).changes)] == [
        "/f",
        "/g/1",
        "/of the branch",
    ]


def test_a_list_of_changes_is_valid_for_the_branches_that_it_was_made_with(world: World) -> None:
    world.make("a", *_BASE)
    world.edit("a", "+f=a")
    world.fork("a", "b")
    world.edit("b", "+h=b")
    one = world.find("a")
    found = diff.changes_of(one)
    diff.save_list(one, found)
    assert diff.saved_list(one) == found
    new = world.store.set_lowers(one, (_added_branch(world), *one.config.rootfs.lowers))
    assert diff.saved_list(new) is None
    world.store.set_lowers(one, one.config.rootfs.lowers)
    merge.merge(world.find("b"), world.find("a"))
    assert diff.saved_list(world.find("a")) is None


def test_a_store_that_is_reached_by_a_link_or_moved(world: World) -> None:
    world.make("a", *_BASE)
    world.edit("a", "+f=a")
    link = world.top / "link"
    link.symlink_to(world.store.root)
    linked = ContainerStore(str(link))
    forks.fork(linked.find("a"), "b")
    copy(world.plain("a"), world.plain("b"))
    remove(world.store, world.find("a"))
    world.check("b")
    moved = world.top / "moved"
    os.rename(world.store.root, moved)
    world.store = ContainerStore(str(moved))
    world.check("b")
    assert [change.kind for change in diff.changes_of(world.find("b")).changes] == ["C"]


def test_a_merge_into_a_fork_of_the_fork(world: World) -> None:
    world.make("a", *_BASE)
    for name, new in (("a", "b"), ("b", "c"), ("c", "d"), ("b", "e")):
        world.fork(name, new)
    world.edit("b", "+f=b")
    merge.merge(world.find("b"), world.find("d"))
    rows = [(row.container.name, row.depth) for row in forks.tree(world.store.root)]
    assert rows == [("a", 0), ("c", 1), ("d", 2), ("e", 3)]


def test_dry_runs_and_partly_applied_containers_change_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run; and commands on a container whose changes are partly applied."""
    world.make("a", *_BASE)
    world.fork("a", "b")
    world.edit("a", "+f=a")
    world.edit("b", "+f=b", "+d/x=b")
    before = [(one.config.rootfs.lowers, os.listdir(one.upper)) for one in world.store.list()]
    with pytest.raises(ConflictError):
        merge.merge(world.find("b"), world.find("a"), dry_run=True)
    done = merge.merge(world.find("b"), world.find("a"), choice=OURS, dry_run=True)
    assert [change.path for change in done.changes] == [b"/d/x"]
    monkeypatch.setattr(journals, "is_begun", lambda path: path == world.find("a").journal)
    for command in (
        lambda: freeze.freeze(world.find("a")),
        lambda: forks.fork(world.find("a")),
        lambda: merge.merge(world.find("b"), world.find("a")),
    ):
        with pytest.raises(ContainerError, match="already applied"):
            command()
    assert [(one.config.rootfs.lowers, os.listdir(one.upper)) for one in world.store.list()] == before
    assert [one.status for one in world.store.list()] == ["created", "created"]


def test_mountpoints_in_the_branches_are_no_changes(world: World) -> None:
    world.make("a", *_BASE)
    for name, path in (("a", "m"), ("b", "n")):
        if name == "b":
            world.fork("a", "b")
        world.edit(name, f"/{path}")
        with Path(world.find(name).directory, "mountpoints").open("ab") as file:
            file.write(f"/{path}\0".encode())
        assert diff.changes_of(world.find(name)).changes == []
    world.edit("b", "+f=b")
    assert not merge.merge(world.find("b"), world.find("a")).copied
    assert [change.path for change in diff.changes_of(world.find("a")).changes] == [b"/f"]
