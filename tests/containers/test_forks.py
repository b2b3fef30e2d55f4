"""Forks, freezes, merges and removals of containers, in random order, against plain directories; and merges that are
killed at each of their steps."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from tests.containers.fork_world import Plain, World, changed, conflict, copy, look, merged, taken, walk, write
from tests.support import share
from tests.support.small_filesystem import MIB, fill, make_room, small_filesystem
from tests.support.timing import wait_until
from unionfs import Union
from unionfs.containers import branches, forks, freeze, merge
from unionfs.containers.errors import ContainerError
from unionfs.containers.merge import OURS, THEIRS, ConflictError, parent_of
from unionfs.containers.remove import remove
from unionfs.containers.rootfs import union_options
from unionfs.control.branch_client import BranchError
from unionfs.core.attrs import ROOT, AttrChange
from unionfs.core.union import Union as CoreUnion
from unionfs.drivers.names import FUSE
from unionfs.syscalls import files

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the containers of root need no user namespace")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


_BASE = ("/d", "/d/e", "+d/x=x", "+d/y=y", "+d/e/z=z", "+f=f", "/g", "+g/1=1", "+g/2=2", "+h=h")


@pytest.mark.parametrize("seed", range(2))
def test_random_forks_and_merges(world: World, seed: int) -> None:
    chance = random.Random(seed)
    world.make("0", *_BASE)
    before = look(world.base)
    names, count = ["0"], 0
    outcomes = Counter[str]()
    for step in range(60):
        name = chance.choice(names)
        what = chance.choice(("edit", "edit", "fork", "fork", "freeze", "merge", "merge", "drop", "branch"))
        if what == "edit":
            world.edit(name, *_random_edit(chance, look(world.plain(name)), f"{seed}.{step}"))
        elif what == "fork" and len(names) < 6:
            count += 1
            world.fork(name, str(count))
            names.append(str(count))
        elif what == "branch":
            _add_or_remove_branch(world, name, str(step))
        elif what == "freeze":
            freeze.freeze(world.find(name))
        elif what == "drop" and name != "0" and len(names) > 3:
            remove(world.store, world.find(name))
            names.remove(name)
        elif what == "merge" and name != "0":
            into = chance.choice(names)
            if into != name:
                outcomes[_merge(world, chance, name, into)] += 1
                names = [one.name for one in world.store.list()]
        world.check(*names)
    for name in reversed(names):
        remove(world.store, world.find(name))
    assert os.listdir(world.store.containers) == [".lock"]
    assert look(world.base) == before
    assert outcomes["merged"] > 0 < outcomes["refused"]


def _add_or_remove_branch(world: World, name: str, new: str) -> None:
    """Remove the branch that was added to a container, or add one with a file of the root."""
    one = world.find(name)
    added = [Path(lower) for lower in one.config.rootfs.lowers if Path(lower).parent == world.top / "added"]
    if not added:
        there = world.top / "added" / new
        there.mkdir(parents=True)
        (there / f"branch{new}").write_text(new)
        branches.add(one, str(there), None, force=False)
        (world.plain(name) / f"branch{new}").write_text(new)
        return
    try:
        branches.remove(one, str(added[0]), force=False)
    except BranchError as refused:
        assert refused.pointers  # noqa: PT017 - it is refused in some states only
        return
    file = world.plain(name) / f"branch{added[0].name}"
    stays = any(os.path.lexists(os.path.join(lower, file.name)) for lower in world.find(name).config.rootfs.lowers)
    if look(world.plain(name)).get(file.name) == ("file", 0o644, added[0].name) and not stays:
        file.unlink()


def _merge(world: World, chance: random.Random, name: str, into: str) -> str:
    base = _common(world, name, into)
    fork, parent = look(world.plain(name)), look(world.plain(into))
    one, other = world.find(name), world.find(into)
    if not os.listdir(one.upper) and set(one.config.rootfs.lowers) <= set(other.config.rootfs.lowers):
        fork = base  # the parent has all its branches, maybe with one that was added between them
    try:
        merge.merge(one, other, keep=chance.random() < 0.3)
    except ConflictError:
        assert conflict(fork, parent, base)
        if chance.random() < 0.5:
            return "refused"
        merge.merge(world.find(name), world.find(into), choice=THEIRS, keep=chance.random() < 0.3)
        expected = taken(fork, parent, base)
    else:
        assert not conflict(fork, parent, base)
        expected = merged(fork, parent, base)
    assert world.shown(into) == expected
    write(expected, world.plain(into))
    return "merged"


def _common(world: World, *names: str) -> Plain:
    """What two containers have in common: the branches that both have."""
    one, other = (world.find(name).config.rootfs.lowers for name in names)
    common = [lower for at, lower in enumerate(one) if one[at:] == other[len(other) - len(one) + at :]]
    with Union(common) as union:
        return dict(walk(union, ""))


def _random_edit(chance: random.Random, tree: Plain, text: str) -> Iterator[str]:
    for number in range(chance.randint(1, 3)):
        directories = ["", *(f"{path}/" for path, (kind, _, _) in tree.items() if kind == "dir")]
        path = chance.choice(sorted(tree) or [""])
        new = chance.choice(directories) + chance.choice("abcdefgh")
        what = chance.choice(("write", "write", "make", "remove", "rename", "chmod"))
        if what == "write" and tree.get(new, ("file",))[0] == "file":
            yield f"+{new}={text}.{number}"
            tree[new] = ("file", 0, "")
        elif what == "make" and new not in tree:
            yield f"/{new}"
            tree[new] = ("dir", 0, "")
        elif what == "remove" and path:
            yield f"-{path}"
            tree = {there: line for there, line in tree.items() if not (there + "/").startswith(path + "/")}
        elif what == "rename" and path and new not in tree and not (new + "/").startswith(path + "/"):
            yield f"{path}>{new}"
            moved = {there: line for there, line in tree.items() if (there + "/").startswith(path + "/")}
            tree = {there: line for there, line in tree.items() if there not in moved}
            tree |= {new + there[len(path) :]: line for there, line in moved.items()}
        elif what == "chmod" and path:
            yield f"{path}:{chance.choice(('700', '755', '711', '750'))}"


CONFLICTS = (
    # the fork's changes, the parent's, whether they conflict
    (("+f=1",), ("+f=2",), True),
    (("+f=1",), ("+f=1",), False),
    (("+new=1",), ("+new=2",), True),
    (("+new=1",), ("/new", "+new/x=x"), True),
    (("/new", "+new/x=1"), ("/new", "+new/y=2"), False),
    (("/new", "new:700"), ("/new", "new:711"), True),
    (("-f",), ("+f=2",), True),
    (("+f=1",), ("-f",), True),
    (("-f",), ("-f",), False),
    (("-d",), ("+d/x=2",), True),
    (("+d/x=1",), ("-d",), True),
    (("-d",), ("-d",), False),
    (("-d",), ("+d/e/new=2",), True),
    (("-d", "+d=file"), ("+d/x=2",), True),
    (("+d/x=1",), ("-d", "+d=file"), True),
    (("d>moved",), ("+d/x=2",), True),
    (("d>moved",), ("-d",), False),
    (("d>moved",), ("d>other",), False),
    (("f>moved",), ("+f=2",), True),
    (("f>moved",), ("f:600",), True),
    (("f:600",), ("+f=2",), True),
    (("f:600",), ("f:640",), True),
    (("f:600",), ("f:600",), False),
    (("d:700",), ("+d/x=2",), False),
    (("+d/x=1",), ("d:700",), False),
    (("d:700",), ("d:711",), True),
    (("-d", "/d", "+d/n=1"), ("+d/other=2",), False),
    (("-d", "/d", "+d/n=1"), ("+d/x=2",), True),
    (("+d/x=1",), ("+d/y=2",), False),
)


@pytest.mark.parametrize(("fork", "parent", "is_conflict"), CONFLICTS)
def test_what_conflicts(world: World, fork: tuple[str, ...], parent: tuple[str, ...], is_conflict: bool) -> None:
    world.make("a", *_BASE)
    world.fork("a", "b")
    base = look(world.plain("a"))
    world.edit("b", *fork)
    world.edit("a", *parent)
    trees = look(world.plain("b")), look(world.plain("a")), base
    assert conflict(*trees) == is_conflict
    if is_conflict:
        with pytest.raises(ConflictError, match="nothing was changed"):
            merge.merge(world.find("b"), world.find("a"))
        world.check("a", "b")
        merge.merge(world.find("b"), world.find("a"), choice=OURS, keep=True)
        world.check("b")
        shown = world.shown("a")
        for path, line in changed(trees[1], base).items():
            assert shown.get(path) == line
        merge.merge(world.find("b"), world.find("a"), choice=THEIRS)
    else:
        merge.merge(world.find("b"), world.find("a"))
    shown = world.shown("a")
    for path, new in changed(trees[0], base).items():
        assert shown.get(path) == new
    assert [one.name for one in world.store.list()] == ["a"]


def test_some_paths_and_hard_links(world: World) -> None:
    world.make("a", *_BASE, "h&g/link")
    world.fork("a", "b")
    world.edit("b", "+one=1", "one&two", "g/link&three", "+d/x=1", "+d/e/z=1", "+f=1")
    merge.merge(world.find("b"), world.find("a"), paths=[b"/one", b"/two", b"/three", b"/d/e"])
    shown = world.shown("a")
    assert (shown["one"], shown["d/e/z"], shown["d/x"], shown["f"]) == tuple(
        ("file", 0o644, text) for text in ("1", "1", "x", "f")
    )
    one = world.find("a")
    with Union((one.upper, *one.config.rootfs.lowers)) as union:
        assert union.stat("one").st_ino == union.stat("two").st_ino
        assert union.stat("three").st_nlink == 3
    merge.merge(world.find("b"), world.find("a"))
    assert world.shown("a")["f"] == ("file", 0o644, "1")


def test_attributes_of_a_directory_are_made_again_on_top(world: World) -> None:
    """No file is copied because the fork has a directory whose mode the parent has changed, or the same file."""
    world.make("a", *_BASE)
    world.fork("a", "b")
    world.edit("b", "+d/x=1", "+d/new=1", "d/e:711", "+f=2")
    world.edit("a", "d:700", "d/e:711", "+f=2", "+d/y=2")
    expected = merged(look(world.plain("b")), look(world.plain("a")), look(world.base))
    assert not merge.merge(world.find("b"), world.find("a"), keep=True).copied
    assert world.shown("a") == expected
    one, fork = world.find("a"), world.find("b")
    made = one.config.rootfs.lowers[0]
    assert look(Path(made)) == {"d": ("dir", 0o700, "")}
    assert one.config.rootfs.lowers[1] == fork.config.rootfs.lowers[0]
    world.check("b")


def test_a_file_of_both_that_the_fork_s_file_replaces(world: World) -> None:
    """No file is copied, unless the fork has only the attributes of a file: the parent's data would show."""
    world.make("a", *_BASE)
    world.fork("a", "b")
    world.fork("a", "c")
    world.edit("b", "+f=1", "+d/new=1")
    world.edit("c", "+h=2")
    one = world.find("c")
    union = CoreUnion(union_options(one, one.branches, one.directory, FUSE)._replace(metacopy=True))
    found = union.find(ROOT, b"f")
    assert found is not None
    union.setattr(found.nodeid, AttrChange(mode=0o600))
    union.close()
    (world.plain("c") / "f").chmod(0o600)
    world.edit("a", "+f=22", "+h=22", "+d/y=2")
    base = look(world.base)
    expected = taken(look(world.plain("b")), look(world.plain("a")), base)
    assert not merge.merge(world.find("b"), world.find("a"), keep=True, choice=THEIRS).copied
    assert world.shown("a") == expected
    world.check("b")
    expected = taken(look(world.plain("c")), expected, base)
    assert os.listxattr(os.path.join(one.upper, "f"))  # it lacks its data
    merge.merge(world.find("c"), world.find("a"), choice=THEIRS)
    assert world.shown("a") == expected
    assert expected["f"] == ("file", 0o600, "f")


@pytest.mark.parametrize("stays", ["", "keep", "forked"])
def test_files_are_moved_if_the_fork_is_removed(world: World, stays: str) -> None:
    """They keep inode and number of names; copies are made if the fork, or a fork of it, still needs them."""
    world.make("a", *_BASE)
    world.fork("a", "b")
    world.edit("b", "+d/x=1", "+d/new=1", "+one=1", "one&d/two", "h&d/h2", "g>moved")
    with Union(world.find("b").config.rootfs.lowers, upper=world.find("b").upper, work=world.find("b").work) as union:
        union.symlink("nowhere", "d/link")
        union.setxattr("d/new", "user.x", b"1")
    numbers = {name: os.lstat(os.path.join(world.find("b").upper, "d", name)).st_ino for name in ("x", "new", "two")}
    if stays == "forked":
        world.fork("b", "c")
    world.edit("a", "d:700", "+g/1=changed")
    done = merge.merge(world.find("b"), world.find("a"), keep=stays == "keep", choice=THEIRS)
    assert done.copied
    one = world.find("a")
    with Union((one.upper, *one.config.rootfs.lowers)) as union:
        shown = {name: union.lstat(f"d/{name}") for name in ("x", "new", "two", "h2", "link")}
        assert {name: shown[name].st_nlink for name in shown} == {"x": 1, "new": 1, "two": 2, "h2": 2, "link": 1}
        assert shown["two"].st_ino == union.stat("one").st_ino
        assert shown["h2"].st_ino == union.stat("h").st_ino
        assert (union.readlink("d/link"), union.getxattr("d/new", "user.x")) == ("nowhere", b"1")
        assert stat.S_IMODE(union.stat("d").st_mode) == 0o700
        assert sorted(union.listdir("moved")) == ["1", "2"]
    merged_upper = one.config.rootfs.lowers[0]
    moved = {name: os.lstat(os.path.join(merged_upper, "d", name)).st_ino for name in numbers}
    assert [moved[name] == numbers[name] for name in numbers] == [not stays] * len(numbers)
    if stays == "forked":
        remove(world.store, world.find("c"))


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_no_space_in_the_middle_of_a_merge(tmp_path: Path, kind: Literal["tmpfs", "ext4"]) -> None:
    """The disk is full at one step after the other: each time everything stays as it was."""
    with small_filesystem(kind, tmp_path) as small:
        world = World(tmp_path, small / "root")
        world.make("a", *_BASE)
        world.fork("a", "b")
        world.edit("b", "-g", "-f", *(f"+d/{number}={str(number) * MIB}" for number in range(3)))
        world.edit("a", "-f", "+d/y=of the parent")
        expected = merged(look(world.plain("b")), look(world.plain("a")), look(world.base))
        refused = []
        for leave in (0, *(4096 << number for number in range(0, 12, 2)), 3 * MIB):
            fill(small, leave)
            why = _refused(lambda: merge.merge(world.find("b"), world.find("a"), keep=True))
            make_room(small)
            if not why:
                break
            refused.append(why)
            world.check("a", "b")
            assert not os.path.lexists(os.path.join(world.find("a").directory, "merging"))
            assert {one.status for one in world.store.list()} == {"created"}
        assert world.shown("a") == expected
        assert len(refused) > 4
        assert all("No space left on device" in why for why in refused), refused


def test_a_container_that_is_gone(world: World) -> None:
    """Branches stay as long as a fork has them; a fork of a merged fork belongs to what that was merged into."""
    world.make("a", *_BASE)
    world.edit("a", "+f=a")
    world.fork("a", "b")
    world.edit("b", "+f=b")
    world.fork("b", "c")
    world.edit("c", "+f=c")
    remove(world.store, world.find("a"))
    world.check("b", "c")
    with pytest.raises(ContainerError, match="is gone"):
        parent_of(world.find("b"))
    assert [(row.container.name, row.depth, row.changed) for row in forks.tree(world.store.root)] == [
        ("b", 0, {"C": 1}),
        ("c", 1, {"C": 1}),
    ]
    with pytest.raises(ContainerError, match="name taken"):
        world.fork("c", "b")
    with pytest.raises(ContainerError, match="into itself"):
        merge.merge(world.find("c"), world.find("c"))
    world.fork("b", "d")
    merge.merge(world.find("c"), parent_of(world.find("c")))
    assert parent_of(world.find("d")).name == "b"
    world.check("d")
    for name in ("b", "d"):
        forks.drop(world.find(name))
    wait_until(lambda: os.listdir(world.store.containers) == [".lock"], "all is removed")


def _refused(body: Callable[[], object]) -> str:
    """Run `body` in a process of its own. Returns the message of its error, or ""."""
    read_fd, write_fd = os.pipe()
    if (child := os.fork()) == 0:
        try:
            body()
        except (ContainerError, OSError) as error:
            os.write(write_fd, str(error).encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    with open(read_fd) as pipe:
        why = pipe.read()
    os.waitpid(child, 0)
    return why


_STEPS = (
    (os, "rename"),
    (os, "unlink"),
    (os, "rmdir"),
    (os, "mkdir"),
    (files, "renameat2"),
    (os, "link"),
    (os, "setxattr"),
)


def _killed_at(number: int, body: Callable[[], object]) -> bool:
    """Run `body` in a process that is killed before its step of this number. Returns whether it was."""
    if (child := os.fork()) == 0:
        left = number

        def counting(call: Callable[..., object]) -> Callable[..., object]:
            def counted(*arguments: object, **named: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), 9)
                return call(*arguments, **named)

            return counted

        for module, name in _STEPS:
            setattr(module, name, counting(getattr(module, name)))
        try:
            body()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9


@pytest.mark.parametrize("parent", ["+d/y=2", "d:700", "-g"], ids=["shared", "repeated", "copied"])
def test_a_merge_that_is_killed(world: World, parent: str) -> None:
    world.make("a", *_BASE)
    world.fork("a", "b")
    world.edit("b", "+d/x=1", "-g", "f>moved", "+new=1")
    world.edit("a", parent)
    old, fork, base = look(world.plain("a")), look(world.plain("b")), look(world.base)
    new = merged(fork, old, base)
    copy(Path(world.store.root), world.top / "saved")
    seen = []
    for number in range(200):
        if not share.has(number):
            continue
        shutil.rmtree(world.store.root)
        copy(world.top / "saved", Path(world.store.root))
        killed = _killed_at(number, lambda: merge.merge(world.find("b"), world.find("a")))
        seen.append(world.shown("a") == new)
        assert world.shown("a") in (old, new), number
        if "b" in [one.name for one in world.store.list()]:
            assert world.shown("b") == fork, number
            merge.merge(world.find("b"), world.find("a"))
        assert world.shown("a") == new, number
        if not killed:
            break
    assert seen == sorted(seen)
    assert number > 10
    assert True in seen[:-1] or not share.EVERYTHING


def test_a_freeze_that_is_killed(world: World) -> None:
    world.make("a", *_BASE)
    world.edit("a", "+d/x=1", "-g")
    copy(Path(world.store.root), world.top / "saved")
    for number in range(100):
        shutil.rmtree(world.store.root)
        copy(world.top / "saved", Path(world.store.root))
        killed = _killed_at(number, lambda: freeze.freeze(world.find("a")))
        world.check("a")
        world.fork("a", f"b{number}")
        world.check(f"b{number}")
        if not killed:
            break
    assert number > 5
