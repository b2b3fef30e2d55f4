"""Changes made to the branches from outside, by themselves and mixed with the union's own, with `Union.watch`.

The oracle: a union made anew over the same branches shows what programs must see on the watched one.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.caching_kernel import CachingKernel
from tests.core.trees import tree
from unionfs.core.attrs import ANY_NAME, ROOT, Invalidation
from unionfs.core.options import Options
from unionfs.core.union import Union
from unionfs.syscalls import inotify

NAMES = (b"a", b"b", b"c")


class Scene:
    """Two lowers, an upper, and a believer in their union."""

    def __init__(self, base: Path, top: str = "", low: str = "", upper: str = "") -> None:
        self.top, self.low, self.up = tree(base / "top", top), tree(base / "low", low), tree(base / "up", upper)
        (base / "work").mkdir()
        self.options = Options(
            lowers=(str(self.top), str(self.low)),
            upper=str(self.up),
            work=str(base / "work"),
            durability="volatile",
        )
        self.union = Union(self.options)
        self.base = base
        self.kernel = CachingKernel(self.union)

    def seen(self) -> dict[bytes, tuple[object, ...]]:
        """What programs see once the union has heeded."""
        self.kernel.process_events()
        return self.kernel.walk(also=NAMES)

    def check(self) -> None:
        """Programs see what a new union shows."""
        now = self.seen()
        other = Union(self.options)
        try:
            assert now == CachingKernel(other).walk(also=NAMES)
        finally:
            other.close()

    def news(self) -> list[Invalidation]:
        """What the kernel is told of changes from now on until it has heeded."""
        self.kernel.told.clear()
        self.kernel.process_events()
        return self.kernel.told


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    before = os.umask(0)
    yield tmp_path
    os.umask(before)


def _in_turn(*acts: Callable[[], object]) -> Callable[[], object]:
    return lambda: [act() for act in acts]


def _outside(scene: Scene) -> dict[str, Callable[[], object]]:
    """What is done to the branches of "top: d/x=1 e/f=2; low: d/x=low d/y=3 g=4; upper: u=5 d/z=6", by name."""
    top, low, up = scene.top, scene.low, scene.up
    return {
        "write a lower file": lambda: (low / "g").write_text("longer than before"),
        "write an upper file": lambda: (up / "d/z").write_text("longer than before"),
        "write with the same size": lambda: (low / "g").write_text("5"),
        "chmod": lambda: (low / "g").chmod(0o600),
        "add to a lower": lambda: (low / "d/new").write_text("n"),
        "add to a hidden place": lambda: (low / "d/x2").write_text("n"),
        "add what was missed before": lambda: (top / "a").write_text("n"),
        "remove from a lower": (low / "d/y").unlink,
        "remove, and a lower one shows": (top / "d/x").unlink,
        "cover by an upper file": lambda: (up / "g").write_text("covered"),
        "cover by a file on top": lambda: (top / "g").write_text("covered"),
        "replace by renaming": _in_turn(lambda: (low / "t").write_text("t"), lambda: (low / "t").rename(low / "g")),
        "rename in a lower": lambda: (low / "g").rename(low / "h"),
        "rename a directory": lambda: (low / "d").rename(low / "d2"),
        "rename an upper directory": lambda: (up / "d").rename(up / "d2"),
        "exchange directory and file": _in_turn(
            lambda: shutil.rmtree(low / "d"), lambda: (low / "d").write_text("file")
        ),
        "file becomes directory": _in_turn(
            (low / "g").unlink, (low / "g").mkdir, lambda: (low / "g/h").write_text("1")
        ),
        "whiteout in the upper": lambda: (up / ".wh.g").write_text(""),
        "whiteout in a lower": lambda: (top / "d/.wh.y").write_text(""),
        "whiteout of a directory": lambda: (top / ".wh.d").write_text(""),
        "opaque in the upper": lambda: (up / "d/.wh..wh..opq").write_text(""),
        "opaque in a lower": lambda: (top / "d/.wh..wh..opq").write_text(""),
        "opaque by attribute": lambda: os.setxattr(up / "d", "user.overlay.opaque", b"y"),
        "opaque root": lambda: (up / ".wh..wh..opq").write_text(""),
        "opaque root of a lower": lambda: (top / ".wh..wh..opq").write_text(""),
        "many levels at once": _in_turn(
            lambda: (low / "n/m/o").mkdir(parents=True), lambda: (low / "n/m/o/p").write_text("deep")
        ),
        "a directory appears above": _in_turn(
            (top / "d2").mkdir, (up / "e").mkdir, lambda: (up / "e/k").write_text("1")
        ),
        "remove a tree": lambda: shutil.rmtree(low / "d"),
        "symlink": lambda: os.symlink("g", low / "sym"),
        "hard link": lambda: os.link(low / "g", low / "g2"),
        "truncate": lambda: os.truncate(low / "d/y", 0),
        "times": lambda: os.utime(low / "g", (1, 1)),
    }


@pytest.mark.parametrize("number", range(31))
def test_a_change_from_outside_is_seen(base: Path, number: int) -> None:
    scene = Scene(base, "d/x=1 e/f=2", "d/x=low d/y=3 g=4", "u=5 d/z=6")
    scene.check()
    acts = list(_outside(scene).values())
    acts[number]()
    scene.check()
    scene.union.close()


def test_removed_names_are_invalidated_in_the_kernel(base: Path) -> None:
    scene = Scene(base, "d/x=1", "g=4")
    before = scene.seen()
    directory, gone = scene.kernel.find(b"d"), scene.kernel.find(b"d/x")
    (scene.top / "d/x").unlink()
    news = scene.news()
    assert Invalidation(directory, b"x", gone) in news
    assert Invalidation(directory, b"", data=True) in news
    assert b"/d/x" in before
    assert b"/d/x" not in scene.seen()
    scene.union.close()


def test_our_own_changes_are_no_news(base: Path) -> None:
    layers = "d/x=1 d/y=1 e/f=2 r/s/t=1", "d/x=low g=4 k=1", "u=5 w/z=6"
    scene = Scene(base, *layers)
    scene.seen()
    kernel = scene.kernel
    find = kernel.find
    kernel.write(find(b"d/x"), b"copied up")
    kernel.write(find(b"u"), b"written")
    kernel.chmod(find(b"g"), 0o600)
    kernel.chmod(find(b"e"), 0o700)
    kernel.create(find(b"d"), b"new")
    kernel.write(find(b"d/new"), b"new")
    kernel.mkdir(ROOT, b"dir")
    kernel.create(find(b"dir"), b"in")
    kernel.unlink(find(b"d"), b"y")
    kernel.create(find(b"d"), b"y")
    kernel.rename(find(b"w"), b"z", find(b"dir"), b"z")
    kernel.rename(ROOT, b"r", ROOT, b"q")
    kernel.rename(ROOT, b"k", ROOT, b"u")
    kernel.unlink(find(b"dir"), b"in")
    kernel.unlink(find(b"dir"), b"z")
    kernel.rmdir(ROOT, b"dir")
    scene.union.setxattr(find(b"u"), b"user.a", b"1", 0)
    scene.union.link(find(b"u"), ROOT, b"linked")
    assert scene.news() == []
    scene.check()
    scene.union.close()


def test_five_hundred_files_of_ours_are_no_news(base: Path) -> None:
    scene = Scene(base, "d/x=1")
    scene.seen()
    directory = scene.kernel.find(b"d")
    for number in range(500):
        scene.kernel.create(directory, b"f%d" % number)
        scene.kernel.write(scene.kernel.lookup(directory, b"f%d" % number), b"data")
        if not number % 50:
            assert scene.news() == []
    assert scene.news() == []
    scene.union.close()


def test_a_storm_of_ours_is_no_news(base: Path) -> None:
    """Nor are the times that a directory gets back after each copy-up."""
    scene = Scene(base, " ".join(f"d/f{number}=1" for number in range(40)))
    scene.seen()
    directory = scene.kernel.find(b"d")
    for line in scene.union.readdir(directory, 2):
        scene.kernel.chmod(scene.kernel.lookup(directory, line.name), 0o600)
        assert scene.news() == []
    scene.check()
    scene.union.close()


def test_directories_are_watched_after_their_first_lookup(base: Path) -> None:
    scene = Scene(base, "a/b/c/d=1 b/x=1")
    assert scene.union.watched == (3, 0)
    scene.kernel.find(b"a/b")
    assert scene.union.watched == (5, 0)
    scene.kernel.union.forget(scene.kernel.find(b"a/b"))
    assert scene.union.watched == (4, 0)
    scene.union.close()


def test_after_an_overflow_everything_is_looked_at(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(base, "d/x=1 e/f=2", "d/x=low d/y=3 g=4", "u=5 d/z=6")
    scene.check()
    (scene.low / "d/y").write_text("other")
    (scene.low / "g").unlink()
    (scene.top / "a").write_text("was missing")
    inotify.read(scene.kernel.union._tree.watcher.fd)  # type: ignore[union-attr]
    events = [[inotify.Event(-1, inotify.Q_OVERFLOW, b"")]]
    monkeypatch.setattr(inotify, "read", lambda fd: events.pop() if events else [])
    scene.kernel.process_events()
    assert ANY_NAME in scene.kernel.told
    scene.check()
    scene.union.close()


def test_a_real_overflow(base: Path) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if most > 40_000:
        pytest.skip(f"the queue holds {most} events here: filling it takes too long")
    scene = Scene(base, "d/x=1", "g=4")
    scene.check()
    one, other = os.open(scene.top / "d/x", os.O_WRONLY), os.open(scene.low / "g", os.O_WRONLY)
    for _ in range(most // 2 + 10):  # alternately, else they count as one
        os.write(one, b"a")
        os.write(other, b"a")
    (scene.low / "late").write_text("nobody hears of it")
    scene.check()
    assert ANY_NAME in scene.kernel.told
    for fd in (one, other):
        os.close(fd)
    scene.union.close()


def test_unwatched_directories_are_checked_at_each_request(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = inotify.watch

    def refuse(fd: int, path: str) -> int:
        if os.readlink(path).endswith(("/d", "/d/e")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return watch(fd, path)

    monkeypatch.setattr(inotify, "watch", refuse)
    scene = Scene(base, "d/x=1 d/e/f=2", "d/x=low d/y=3 g=4", "u=5 d/z=6")
    scene.check()
    assert scene.kernel.limits == [errno.ENOSPC]
    assert scene.union.watched == (3, 2)
    (scene.low / "d/y").unlink()
    (scene.top / "d/e/f").write_text("longer")
    (scene.top / "d/e/new").write_text("new")
    shutil.rmtree(scene.up / "d")
    for known in (scene.kernel._names, scene.kernel._attrs, scene.kernel._listings):
        known.clear()  # the kernel believes things for a second only then
    scene.check()
    scene.union.close()


def test_what_was_lost_cannot_lead_to_what_took_its_name(base: Path) -> None:
    scene = Scene(base, "", "", "f=old g=old d/x=old")
    kernel = scene.kernel
    closed, opened, inside = kernel.find(b"f"), kernel.find(b"g"), kernel.find(b"d/x")
    scene.union.write(opened, 0, b"OLD")
    for name in "fg":
        (scene.base / "t").write_text("new")
        (scene.base / "t").rename(scene.up / name)
    shutil.rmtree(scene.up / "d")
    tree(scene.up, "d/x=new")
    kernel.process_events()
    for lost in (closed, inside):
        with pytest.raises(OSError, match=r"Stale|No such"):
            scene.union.read(lost, 0, 10)
        with pytest.raises(OSError, match=r"Stale|No such"):
            scene.union.write(lost, 0, b"WRONG")
    with pytest.raises(OSError, match="Stale"):
        scene.union.setxattr(closed, b"user.a", b"WRONG", 0)
    scene.union.write(opened, 0, b"still")  # its descriptor is open
    assert scene.union.read(opened, 0, 10) == b"still"
    assert scene.union.getattr(opened).nlink == 0
    assert [(scene.up / name).read_text() for name in ("f", "g", "d/x")] == ["new", "new", "new"]
    for nodeid in (closed, opened, inside):
        scene.union.forget(nodeid)
    scene.check()
    scene.union.close()


def _from_outside(scene: Scene, draw: random.Random, parts: list[bytes], other: bytes) -> None:
    branch = os.fsencode(draw.choice((scene.top, scene.low, scene.up)))
    here, there = os.path.join(branch, *parts), os.path.join(branch, other)
    mark = os.path.join(os.path.dirname(here), b".wh." + parts[-1])
    match draw.randrange(10):
        case 0 | 1:
            os.makedirs(os.path.dirname(here), exist_ok=True)
            Path(os.fsdecode(here)).write_text(str(draw.randrange(1000)))
        case 2:
            os.makedirs(here, exist_ok=True)
        case 3:
            shutil.rmtree(here) if os.path.isdir(here) else os.unlink(here)
        case 4:
            os.rename(here, there)
        case 5:
            Path(os.fsdecode(mark)).touch()
        case 6:
            os.unlink(mark)
        case 7:
            Path(os.fsdecode(here), ".wh..wh..opq").touch()
        case 8:
            os.chmod(here, draw.choice((0o600, 0o644, 0o755)))
        case 9:
            os.symlink("target", here)


def _through_the_union(scene: Scene, draw: random.Random, parts: list[bytes]) -> None:
    kernel = scene.kernel
    parent = kernel.find(b"/".join(parts[:-1])) if len(parts) > 1 else ROOT
    nodeid = kernel.lookup(parent, parts[-1]) if parent else 0
    match draw.randrange(7) if parent else -1:
        case 0:
            kernel.create(parent, parts[-1])
        case 1:
            kernel.mkdir(parent, parts[-1])
        case 2:
            kernel.unlink(parent, parts[-1])
        case 3:
            kernel.rename(parent, parts[-1], ROOT, draw.choice(NAMES))
        case 4 | 5 if nodeid:
            kernel.write(nodeid, b"%d" % draw.randrange(1000))
        case 6 if nodeid:
            kernel.link(nodeid, ROOT, draw.choice(NAMES))


def _act(scene: Scene, draw: random.Random) -> None:
    """One random change; one that cannot be made is none."""
    parts = [draw.choice(NAMES) for _ in range(draw.randint(1, 3))]
    other = b"/".join(draw.choice(NAMES) for _ in range(draw.randint(1, 2)))
    with suppress(OSError):
        if draw.random() < 0.65:
            _from_outside(scene, draw, parts, other)
        else:
            _through_the_union(scene, draw, parts)


@settings(max_examples=40)
@given(st.integers(0, 1 << 32))
def test_random_changes_from_both_sides(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    draw = random.Random(seed)
    scene = Scene(tmp_path_factory.mktemp("random"), "a/b=1 b/a=2", "a/b=3 a/c=4 c=5", "b/c=6")
    try:
        for _ in range(12):
            _act(scene, draw)
            if draw.random() < 0.5:
                scene.kernel.process_events()
            if draw.random() < 0.3:
                scene.seen()
        scene.check()
    finally:
        scene.union.close()


@pytest.mark.parametrize("where", ["low/g", "up/u", "low/d", "up/d"])
def test_attributes_from_outside_end_an_empty_list(where: str, base: Path) -> None:
    scene = Scene(base, low="d/y=3 g=4", upper="u=5 d/z=6")
    scene.check()
    branch, name = where.split("/")
    entry = scene.union.lookup(ROOT, name.encode())
    if where == "low/d":  # merged: it shows the attributes of the upper's
        name = "d/y"
        scene.union.forget(entry.nodeid)
        entry = scene.union.lookup(scene.union.lookup(ROOT, b"d").nodeid, b"y")
        scene.union.forget(scene.union.lookup(ROOT, b"d").nodeid, 2)
    assert scene.union.listxattr(entry.nodeid) == []
    os.setxattr(base / branch / name, "user.k", b"v")
    scene.kernel.process_events()
    assert scene.union.listxattr(entry.nodeid) == [b"user.k"]
    assert scene.union.find_xattr(entry.nodeid, b"user.k") == b"v"
    scene.union.forget(entry.nodeid)
