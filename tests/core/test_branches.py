"""Lowers added, removed and moved while a union is in use.

The oracle: a union made anew over the new stack shows what programs must see on the one that has changed.
"""

from __future__ import annotations

import itertools
import os
import random
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.caching_kernel import CachingKernel, Seen
from tests.core.layers_at_random import NAMES, layers
from tests.core.snapshots import fingerprint
from tests.core.stack import litter, open_below
from tests.core.trees import tree
from unionfs.core import branches
from unionfs.core.attrs import ROOT, Invalidation
from unionfs.core.options import OptionError, Options
from unionfs.core.union import Union

ALSO = NAMES[:4]


class Scene:
    """A union of some lowers and an upper, and a kernel that believes what it was told."""

    def __init__(self, base: Path, *lowers: str, upper: str = "", watches: bool = False) -> None:
        self.base = base
        self.layers = [tree(base / f"l{number}", text) for number, text in enumerate(lowers)]
        self.before = {layer: fingerprint(layer) for layer in self.layers}
        self.up, self.work = tree(base / "up", upper), base / "work"
        self.work.mkdir()
        self.union = Union(self.options(self.layers))
        self.branches = dict(zip(self.layers, self.union._tree.lowers.branches, strict=True))
        self.kernel = CachingKernel(self.union, watches=watches)

    def options(self, lowers: Sequence[Path]) -> Options:
        return Options(
            lowers=tuple(map(str, lowers)), upper=str(self.up), work=str(self.work), durability="volatile"
        )  # fmt: skip

    def layer(self, text: str) -> Path:
        """One more directory that can be made a lower."""
        made = tree(self.base / f"l{len(self.before)}", text)
        self.before[made] = fingerprint(made)
        return made

    def begin(self, stack: Sequence[Path]) -> branches.Restack:
        """Begin to make `stack` the lowers, top first."""
        for path in stack:
            if path not in self.branches:
                fd = os.open(path, os.O_PATH)
                try:
                    self.branches[path] = branches.open_lower(self.union, fd, str(path))
                finally:
                    os.close(fd)
        self.layers = list(stack)
        now = [self.branches[path] for path in stack]
        self.branches = {path: branch for path, branch in self.branches.items() if path in stack}
        return branches.Restack(self.union, now, self.kernel.hear)

    def set(self, *stack: Path) -> None:
        change = self.begin(stack)
        while change.work():
            pass

    def check(self) -> Seen:
        """Programs see what a new union shows; directories may keep their inode numbers."""
        now = self.kernel.walk(also=ALSO)
        other = Union(self.options(self.layers))
        try:
            want = CachingKernel(other, watches=False).walk(also=ALSO)
        finally:
            other.close()
        assert _without_dir_inos(now) == _without_dir_inos(want)
        for path, inos in self.listed().items():
            assert inos == {name: self.kernel.attrs(self.kernel.find(path + name)).ino for name in inos}, path
        return now

    def listed(self) -> dict[bytes, dict[bytes, int]]:
        """The inode numbers in the listing of each directory that can be seen."""
        found = {}
        pending = [(ROOT, b"")]
        while pending:
            nodeid, path = pending.pop()
            found[path] = {line.name: line.ino for line in self.union.readdir(nodeid, 2)}
            pending += [
                (self.kernel.lookup(nodeid, line.name), path + line.name + b"/")
                for line in self.union.readdir(nodeid, 2)
                if line.kind == stat.S_IFDIR
            ]
        return found

    def finish(self) -> None:
        for nodeid, count in self.kernel.lookups().items():
            self.union.forget(nodeid, count)
        assert self.union.node_count == 1
        assert self.union._tree.leaving == []
        self.union.close()
        assert open_below(self.base) == [], "descriptors leaked"
        assert litter(self.work) == []
        for layer, before in self.before.items():
            assert fingerprint(layer) == before, f"{layer} was changed"


def _without_dir_inos(seen: Seen) -> Seen:
    is_dir = {path: bool(line) and isinstance(line[0], int) and stat.S_ISDIR(line[0]) for path, line in seen.items()}
    return {path: line[:5] if is_dir[path] else line for path, line in seen.items()}


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    before = os.umask(0)
    yield tmp_path
    os.umask(before)


def test_a_lower_comes_and_goes(base: Path) -> None:
    scene = Scene(base, "d/x=1 d/y=1 e/f=1 g=1", upper="u=5 d/z=6")
    low = scene.layers[0]
    before = scene.check()
    top = scene.layer("d/x=2 d/new=2 d/.wh.y= g=2 e/.wh..wh..opq= e/only=2 n/o/p=2")
    scene.set(top, low)
    seen = scene.check()
    assert seen[b"/d/x"][-1] == b"2"
    assert seen[b"/d/z"][-1] == b"6"
    assert {path for path in seen if path.startswith(b"/e/")} == {b"/e/", b"/e/only"}
    assert b"/d/y" not in seen
    scene.set(low, top)
    assert scene.check()[b"/d/x"][-1] == b"1"
    scene.set(low)
    assert scene.check() == before
    scene.finish()


def test_what_stays_is_not_told_of(base: Path) -> None:
    """Above all no name of what stays: mounts on it would go."""
    scene = Scene(base, "d/x=1 d/y=1 e/f=1 g/h=1", upper="u=5 d/z=6")
    scene.check()
    found = {path: scene.kernel.find(path) for path in (b"d", b"d/x", b"d/y", b"e", b"e/f", b"g", b"g/h", b"u", b"d/z")}
    low = scene.layers[0]
    scene.set(scene.layer("d/x=2 d/new=2"), low)
    told = scene.kernel.told
    assert Invalidation(found[b"d"], b"x", found[b"d/x"]) in told
    assert Invalidation(found[b"d"], b"new") in told
    assert Invalidation(found[b"d"], b"", data=True) in told
    named = {(each.nodeid, each.name) for each in told if each.name}
    assert named == {(found[b"d"], b"x"), (found[b"d"], b"new")}
    assert {each.nodeid for each in told if not each.name} == {ROOT, found[b"d"]}
    for path in (b"d", b"d/y", b"e", b"e/f", b"g", b"g/h", b"u", b"d/z"):
        assert scene.kernel.find(path) == found[path]
    scene.check()
    scene.finish()


def test_open_files_and_directories_go_on(base: Path) -> None:
    scene = Scene(base, "d/e/x=top d/e/w=top", "d/y=low g=low")
    top, low = scene.layers
    scene.check()
    kernel, union = scene.kernel, scene.union
    read, written, here, above = (kernel.find(path) for path in (b"d/e/x", b"d/e/w", b"d/e", b"d"))
    scene.set(low)
    assert not kernel.lookup(above, b"e")
    assert kernel.attrs(above).nlink == 2
    assert union.read(read, 0, 10) == b"top"
    assert union.getattr(read).nlink == 0
    assert union.write(written, 0, b"TOP") == 3
    assert union.read(written, 0, 10) == b"TOP"
    assert [line.name for line in union.readdir(here, 0)] == [b".", b".."]
    with pytest.raises(FileNotFoundError):
        union.lookup(here, b"x")
    assert open_below(top) != []
    scene.check()
    scene.set(top, low)  # once more: other objects
    assert kernel.find(b"d/e/x") != read
    assert union.read(written, 0, 10) == b"TOP"
    assert union.read(kernel.find(b"d/e/w"), 0, 10) == b"top"
    scene.check()
    scene.finish()


def test_a_removed_lower_is_closed_when_nothing_of_it_is_used(base: Path) -> None:
    scene = Scene(base, "x=top y=top", "y=low")
    top, low = scene.layers
    scene.check()
    nodeid = scene.kernel.find(b"x")
    scene.set(low)
    assert scene.union._tree.leaving != []
    assert scene.union.read(nodeid, 0, 9) == b"top"
    scene.kernel.forget(nodeid)
    scene.kernel.forget(next(iter(scene.union._tree.leaving)).users.copy().pop())
    assert scene.union._tree.leaving == []
    assert open_below(top) == []
    scene.check()
    scene.finish()


def test_a_copy_up_under_way_goes_on(base: Path) -> None:
    scene = Scene(base, "big=" + "x" * 64, "keep=1")
    top, low = scene.layers
    with open(top / "big", "ab") as file:
        file.truncate(3 << 20)
    scene.before[top] = fingerprint(top)
    nodeid = scene.kernel.find(b"big")
    job = scene.union.copyup_begin(nodeid)
    scene.set(low)
    is_slow = job is not None  # else the data could be shared at once, before the lower was removed
    if job is not None:
        job.copy()
        scene.union.copyup_commit(job)
        assert scene.union.write(nodeid, 0, b"y") == 1
        del job
    assert scene.union.read(nodeid, 1, 3) == b"xxx"
    assert list(scene.up.iterdir()) == ([] if is_slow else [scene.up / "big"])
    scene.check()
    scene.finish()


def test_a_renamed_directory_shows_what_its_redirect_leads_to(base: Path) -> None:
    scene = Scene(base, "d/x=1 d/sub/y=1", "k=1")
    old, low = scene.layers
    scene.check()
    scene.kernel.rename(ROOT, b"d", ROOT, b"moved")
    scene.check()
    new = scene.layer("d/x=2 d/z=2 moved/no=2")
    scene.set(new, old, low)
    seen = scene.check()
    assert seen[b"/moved/x"][-1] == b"2"
    assert seen[b"/moved/sub/y"][-1] == b"1"
    scene.set(low)
    assert scene.check()[b"/moved/"] == ()
    scene.finish()


def test_directories_that_move_during_the_change_are_taken_over(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "SLICE_S", -1.0)
    for steps in range(60):
        scene = Scene(tree(base / str(steps), ""), "a/x/f=1 a/y=1 b/z=1 c/d/e/f=1")
        low = scene.layers[0]
        scene.check()
        change = scene.begin([scene.layer("a/x/f=2 a/x/n=2 b/m=2 c/d/e/g=2"), low])
        more = True
        for _ in range(steps):
            more = more and change.work()
        find = scene.kernel.find
        scene.kernel.rename(find(b"a"), b"x", find(b"b"), b"x")
        scene.kernel.rename(find(b"c/d"), b"e", ROOT, b"e")
        scene.kernel.mkdir(ROOT, b"new")
        scene.kernel.rename(ROOT, b"b", find(b"new"), b"b")
        while more:
            more = change.work()
        scene.check()
        scene.finish()


def test_hard_links_of_a_lower_stay_one_file(base: Path) -> None:
    scene = Scene(base, "a/x=1 b/y==a/x c==a/x", "b/q=1")
    first, low = scene.layers
    scene.check()
    kernel = scene.kernel
    nodeid = kernel.find(b"a/x")
    assert kernel.find(b"b/y") == nodeid
    top = scene.layer("a/x=2")
    scene.set(top, first, low)
    assert kernel.find(b"b/y") == nodeid
    assert kernel.find(b"a/x") != nodeid
    scene.check()
    kernel.write(nodeid, b"copied")
    assert scene.check()[b"/c"][-1] == b"copied"
    scene.set(top, low)
    scene.check()
    scene.finish()


def test_an_unreadable_lower_is_refused(base: Path) -> None:
    scene = Scene(base, "a=1")
    (base / "file").write_text("")
    fd = os.open(base / "file", os.O_PATH)
    with pytest.raises(OptionError, match="cannot use /some/file as a lower: Not a directory"):
        branches.open_lower(scene.union, fd, "/some/file")
    os.close(fd)
    scene.check()
    scene.finish()


def test_one_large_directory_is_taken_over_in_slices(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"f{number}" for number in range(600)]
    scene = Scene(base, " ".join(f"d/{name}=1" for name in names))
    low = scene.layers[0]
    scene.kernel.walk()
    monkeypatch.setattr(branches, "SLICE_S", -1.0)
    change = scene.begin([scene.layer(" ".join(f"d/{name}=2" for name in names[:300])), low])
    directory, hidden = (scene.kernel.find(path) for path in (b"d", b"d/f299"))
    mixed, told, written = 0, [], False
    while change.work():
        seen = set()
        for name in (b"f0", b"f299"):
            entry = scene.union.lookup(directory, name)
            seen.add(scene.union.read(entry.nodeid, 0, 1))
            scene.union.forget(entry.nodeid)
        mixed += len(seen) > 1
        if seen == {b"2"} and not written:  # by a program that has it open, before the kernel has heard of it
            assert Invalidation(directory, b"f299", hidden) not in scene.kernel.told
            written = scene.union.write(hidden, 0, b"w") == 1
        told.append(len(scene.kernel.told))
    assert written
    assert scene.union.read(hidden, 0, 2) == b"w"
    assert scene.union.getattr(hidden).nlink == 0
    told = [now - before for before, now in itertools.pairwise([0, *told]) if now > before]
    assert told == [1, 1, 256, 44], "two directories at once, and the names that lead elsewhere in slices"
    assert mixed == 0
    scene.kernel.walk()
    scene.check()
    scene.finish()


def _through_the_union(kernel: CachingKernel, draw: random.Random) -> None:
    """One random change by a program; one that cannot be made is none."""
    parts = [draw.choice(ALSO) for _ in range(draw.randint(1, 3))]
    with suppress(OSError):
        parent = kernel.find(b"/".join(parts[:-1])) if len(parts) > 1 else ROOT
        nodeid = kernel.lookup(parent, parts[-1]) if parent else 0
        match draw.randrange(10) if parent else -1:
            case 0:
                kernel.create(parent, parts[-1])
            case 1:
                kernel.mkdir(parent, parts[-1])
            case 2:
                kernel.unlink(parent, parts[-1])
            case 3:
                kernel.rmdir(parent, parts[-1])
            case 4 | 5:
                kernel.rename(parent, parts[-1], ROOT, draw.choice(ALSO))
            case 6 | 7 if nodeid:
                kernel.write(nodeid, b"%d" % draw.randrange(1000))
            case 8 if nodeid:
                kernel.link(nodeid, ROOT, draw.choice(ALSO))
            case 9 if nodeid:
                kernel.chmod(nodeid, draw.choice((0o600, 0o755)))


_EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "2000" if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else "40"))


@settings(max_examples=_EXAMPLES, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(layers(), min_size=2, max_size=5), layers(), st.booleans())
def test_random_stacks(
    tmp_path_factory: pytest.TempPathFactory, seed: int, texts: list[str], upper: str, watches: bool
) -> None:
    before, slice_s = os.umask(0), branches.SLICE_S
    draw = random.Random(seed)
    scene = Scene(tmp_path_factory.mktemp("stacks"), *texts, upper=upper, watches=watches)
    known = list(scene.layers)
    try:
        scene.kernel.walk(also=ALSO)
        for _ in range(4):
            branches.SLICE_S = draw.choice((-1.0, slice_s))  # type: ignore[misc]
            stack = draw.sample(known, draw.randint(1, len(known)))
            change = scene.begin(stack)
            while change.work():
                if draw.random() < 0.3:
                    _through_the_union(scene.kernel, draw)
                if draw.random() < 0.02:
                    scene.kernel.walk(also=ALSO)
            if watches:
                scene.kernel.process_events()
            scene.check()
            for _ in range(3):
                _through_the_union(scene.kernel, draw)
            scene.check()
        scene.finish()
    finally:
        branches.SLICE_S = slice_s  # type: ignore[misc]
        os.umask(before)
