"""Snapshots without gRPC: their life, their directories, and what is left when the process dies at any line of it."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.core.children import KILLED, expect, in_child
from tests.mounted.agent import Agent
from tests.support import share
from unionfs.core.attrs import ROOT
from unionfs.core.options import Options
from unionfs.core.union import Union
from unionfs.snapshotter.store import SnapshotStore
from unionfs.snapshotter.usage import disk_usage
from unionfs.snapshotter.values import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    Kind,
    Mount,
    NotFoundError,
    SnapshotError,
)
from unionfs.trees.remove import remove_path


@contextmanager
def opened(root: Path) -> Iterator[SnapshotStore]:
    store = SnapshotStore(os.fspath(root), "unionfs")
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def root(scratch: Path) -> Path:
    return scratch / "root"


@pytest.fixture
def store(root: Path) -> Iterator[SnapshotStore]:
    with opened(root) as made:
        yield made


def _layer(store: SnapshotStore, name: str, parent: str = "") -> None:
    store.prepare(f"{name}-key", parent, {})
    store.commit(name, f"{name}-key", {})


def _upper(mounts: list[Mount]) -> Path:
    (mount,) = mounts
    if mount.type == "bind":
        return Path(mount.source)
    return Path(next(option for option in mount.options if option.startswith("upperdir="))[9:])


def test_what_is_mounted(store: SnapshotStore, root: Path) -> None:
    base = f"{root}/snapshots"
    assert store.prepare("a", "", {}) == [Mount("bind", f"{base}/1/fs", ("rw", "rbind"))]
    assert store.view("empty", "", {}) == [Mount("bind", f"{base}/2/fs", ("ro", "rbind"))]
    store.commit("one", "a", {})
    assert store.view("v1", "one", {}) == [Mount("bind", f"{base}/1/fs", ("ro", "rbind"))]
    two = Mount(
        "fuse3.unionfs", "overlay", (f"workdir={base}/4/work", f"upperdir={base}/4/fs", f"lowerdir={base}/1/fs")
    )
    assert store.prepare("b", "one", {}) == [two]
    assert store.mounts("b") == [two]
    store.commit("two", "b", {})
    assert store.view("v2", "two", {}) == [
        Mount("fuse3.unionfs", "overlay", (f"lowerdir={base}/4/fs:{base}/1/fs",)),
    ]
    with pytest.raises(FailedPreconditionError):
        store.mounts("two")


def test_mappings_of_owners_are_handed_on(store: SnapshotStore) -> None:
    _layer(store, "one")
    labels = {
        "containerd.io/snapshot/uidmapping": "0:100000:65535,65535:1:1",
        "containerd.io/snapshot/gidmapping": "0:1:1",
    }
    (mount,) = store.prepare("a", "one", labels)
    assert mount.options[-2:] == ("uidmapping=0:100000:65535:65535:1:1", "gidmapping=0:1:1")
    (mount,) = store.view("v", "one", labels)
    assert mount.type == "fuse3.unionfs"


def test_the_root_of_a_new_upper_is_as_the_parents(store: SnapshotStore) -> None:
    below = _upper(store.prepare("a", "", {}))
    below.chmod(0o2711)
    os.setxattr(below, "user.mine", b"1")
    os.setxattr(below, "user.overlay.opaque", b"y")
    os.utime(below, ns=(1, 1_234_567_890_123_456_789))
    store.commit("one", "a", {})
    made = _upper(store.prepare("b", "one", {}))
    assert stat.S_IMODE(made.stat().st_mode) == 0o2711
    assert made.stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert os.listxattr(made) == ["user.mine"]


def test_what_is_refused(store: SnapshotStore) -> None:
    _layer(store, "one")
    store.prepare("a", "one", {})
    store.view("v", "one", {})
    refused: list[tuple[type[SnapshotError], Callable[[], object]]] = [
        (AlreadyExistsError, lambda: store.prepare("a", "one", {})),
        (AlreadyExistsError, lambda: store.view("one", "", {})),
        (NotFoundError, lambda: store.prepare("b", "missing", {})),
        (InvalidArgumentError, lambda: store.prepare("b", "a", {})),
        (InvalidArgumentError, lambda: store.view("b", "v", {})),
        (InvalidArgumentError, lambda: store.prepare("", "", {})),
        (InvalidArgumentError, lambda: store.commit("", "a", {})),
        (NotFoundError, lambda: store.commit("two", "missing", {})),
        (AlreadyExistsError, lambda: store.commit("one", "a", {})),
        (FailedPreconditionError, lambda: store.commit("two", "v", {})),
        (FailedPreconditionError, lambda: store.commit("two", "one", {})),
        (FailedPreconditionError, lambda: store.remove("one")),
        (NotFoundError, lambda: store.remove("missing")),
        (NotFoundError, lambda: store.stat("missing")),
        (NotFoundError, lambda: store.usage("missing")),
        (NotFoundError, lambda: store.mounts("missing")),
        (NotFoundError, lambda: store.update("missing", {}, [])),
        (InvalidArgumentError, lambda: store.update("a", {}, ["parent"])),
        (InvalidArgumentError, lambda: store.update("a", {}, ["labels."])),
        (InvalidArgumentError, lambda: store.walk(["=="])),
    ]
    for kind, attempt in refused:
        with pytest.raises(kind):
            attempt()
    assert [info.name for info in store.walk([])] == ["one", "a", "v"]
    assert len(os.listdir(f"{store.root}/snapshots")) == 3


def test_a_commit_is_a_new_name_with_new_labels(store: SnapshotStore) -> None:
    upper = _upper(store.prepare("a", "", {"old": "1"}))
    (upper / "file").write_bytes(bytes(10_000))
    (upper / "same").hardlink_to(upper / "file")
    before = store.stat("a")
    store.commit("one", "a", {"new": "2"})
    after = store.stat("one")
    assert (after.kind, after.labels, after.parent) == (Kind.COMMITTED, {"new": "2"}, "")
    assert after.created_ns > before.created_ns
    usage = store.usage("one")
    assert usage.inodes == 2
    assert usage == disk_usage(os.fspath(upper))
    assert 10_000 <= usage.size <= 40_000
    with pytest.raises(NotFoundError):
        store.stat("a")


def test_labels_change_one_by_one_or_all(store: SnapshotStore) -> None:
    store.prepare("a", "", {"x": "1", "y": "2", "empty": ""})
    assert store.stat("a").labels == {"x": "1", "y": "2"}
    assert store.update("a", {"y": "3", "z": "4"}, ["labels.y"]).labels == {"x": "1", "y": "3"}
    assert store.update("a", {}, ["labels.x"]).labels == {"y": "3"}
    assert store.update("a", {"q": "5"}, ["labels"]).labels == {"q": "5"}
    changed = store.update("a", {"r": "6", "containerd.io/x.y": "7"}, [])
    assert changed.labels == {"r": "6", "containerd.io/x.y": "7"}
    assert store.update("a", {}, ["labels.containerd.io/x.y"]).labels == {"r": "6"}
    assert changed.updated_ns > changed.created_ns
    assert store.stat("a").labels == {"r": "6"}


def test_names_may_be_anything(store: SnapshotStore) -> None:
    for name in ("../../etc", "ns/1/a b", "'; DROP TABLE snapshot; --", "ü" * 2000, "\n"):
        store.prepare(name, "", {name: name})
        assert store.stat(name).labels == {name: name}
    assert sorted(os.listdir(f"{store.root}/snapshots")) == ["1", "2", "3", "4", "5"]


def test_numbers_are_not_used_twice(store: SnapshotStore) -> None:
    store.prepare("a", "", {})
    store.remove("a")
    assert _upper(store.prepare("b", "", {})).parent.name == "2"


def test_one_process_at_a_time(store: SnapshotStore) -> None:
    with pytest.raises(SnapshotError, match="in use by another snapshotter"):
        SnapshotStore(store.root, "unionfs")


def test_a_path_that_mount_options_cannot_carry_is_refused(scratch: Path) -> None:
    with pytest.raises(SnapshotError, match="','"):
        SnapshotStore(os.fspath(scratch / "a,b"), "unionfs")
    assert not (scratch / "a,b").exists()


def test_orphans_go_and_what_belongs_to_somebody_stays(root: Path) -> None:
    with opened(root) as store:
        store.prepare("a", "", {})
        for name in ("99", "new", "7/fs/deep/er"):
            (root / "snapshots" / name).mkdir(parents=True)
        (root / "snapshots/7/fs/deep/file").write_text("x")
        store.cleanup()
        assert os.listdir(root / "snapshots") == ["1"]
        (root / "snapshots/98").mkdir()
    with opened(root) as store:
        assert os.listdir(root / "snapshots") == ["1"]
        assert store.stat("a").kind is Kind.ACTIVE


def test_a_later_versions_record_is_left_alone(root: Path) -> None:
    import sqlite3

    with opened(root) as store:
        store.prepare("a", "", {})
    connection = sqlite3.connect(root / "snapshots.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(SnapshotError, match="version 99"):
        SnapshotStore(os.fspath(root), "unionfs")
    assert os.listdir(root / "snapshots") == ["1"]


def test_without_its_record_nothing_is_removed(root: Path) -> None:
    with opened(root) as store:
        store.prepare("a", "", {})
    (root / "snapshots.db").unlink()
    with pytest.raises(SnapshotError, match=r"snapshots\.db is missing"):
        SnapshotStore(os.fspath(root), "unionfs")
    assert os.listdir(root / "snapshots") == ["1"]
    (root / "snapshots/1/fs").rmdir()
    (root / "snapshots/1/work").rmdir()
    (root / "snapshots/1").rmdir()
    with opened(root) as store:
        assert store.walk([]) == []


def test_usage_of_trees_of_any_depth(scratch: Path) -> None:
    fd = os.open(scratch, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d" * 100, dir_fd=fd)
        deeper = os.open("d" * 100, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)
    assert disk_usage(os.fspath(scratch)).inodes == 1501


_VERBS: dict[str, Callable[[SnapshotStore], object]] = {
    "prepare": lambda store: store.prepare("new", "one", {"l": "1"}),
    "commit": lambda store: store.commit("new", "a", {"l": "1"}),
    "remove": lambda store: store.remove("a"),
    "update": lambda store: store.update("a", {"l": "1"}, []),
}


@pytest.fixture
def memory(scratch: Path) -> Iterator[Path]:
    """A directory on a filesystem that need not wait for a disk, if there is one."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else scratch) as made:
        yield Path(made)


@pytest.mark.parametrize("verb", _VERBS)
def test_a_call_killed_at_any_line_was_done_or_not(verb: str, memory: Path, small_process: Agent) -> None:
    """A process that dies before a line: the next one finds the old or the new, and no garbage. The lines take turns
    (tests.support.share)."""
    small_process.call(_kill_at_any_line, verb, memory, timeout_s=250)


def _kill_at_any_line(verb: str, memory: Path) -> None:
    line = 0
    outcomes = set()
    with opened(memory / "before") as store:
        _layer(store, "one")
        (_upper(store.prepare("a", "one", {})) / "file").write_text("kept")
        before = store.walk([])
    root = memory / "root"
    while True:
        line += 1
        if not share.has(line):
            continue
        remove_path(os.fspath(root))
        shutil.copytree(memory / "before", root)
        ended = in_child(partial(_killed_at, root, line, _VERBS[verb]))
        if ended.status != KILLED:
            expect(ended)
            break
        with opened(root) as store:
            after = store.walk([])
            outcomes.add("old" if after == before else "new")
            numbers = {int(name) for name in os.listdir(root / "snapshots")}
            assert len(numbers) == len(after)
            for number in numbers:
                assert sorted(os.listdir(root / f"snapshots/{number}")) == ["fs", "work"]
            if after != before:
                assert _difference(before, after) == _EXPECTED[verb]
            elif verb != "remove":
                _VERBS[verb](store)  # and then it can be done
            if verb != "remove":
                assert (root / "snapshots/2/fs/file").read_text() == "kept"
    assert line > 20
    assert outcomes == {"old", "new"} or not share.EVERYTHING


_EXPECTED = {
    "prepare": ([], ["new"]),
    "commit": (["a"], ["new"]),
    "remove": (["a"], []),
    "update": (["a"], ["a"]),
}


def _difference(before: list[Any], after: list[Any]) -> tuple[list[str], list[str]]:
    gone = [info.name for info in before if info not in after]
    come = [info.name for info in after if info not in before]
    return gone, come


def _killed_at(root: Path, line: int, act: Callable[[SnapshotStore], object]) -> None:
    """Do it, but end the process before the n-th line of our code that is run."""
    store = SnapshotStore(os.fspath(root), "unionfs")
    left = line

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if "/unionfs/" not in frame.f_code.co_filename or "/tests/" in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os._exit(KILLED)
        return trace

    sys.settrace(trace)
    act(store)
    sys.settrace(None)


@pytest.mark.parametrize("ended", ["closed", "killed"])
def test_a_committed_snapshot_has_every_name_of_a_hard_link(store: SnapshotStore, ended: str) -> None:
    base = _upper(store.prepare("base-key", "", {}))
    (base / "d").mkdir()
    (base / "g").write_text("old")
    os.link(base / "g", base / "d/f")
    store.commit("base", "base-key", {})
    upper = _upper(store.prepare("next-key", "base", {}))
    options = Options(lowers=(os.fspath(base),), upper=os.fspath(upper), work=os.fspath(upper.parent / "work"))

    def write() -> None:
        union = Union(options)
        entry = union.lookup(ROOT, b"g")
        union.write(entry.nodeid, 0, b"new")
        if ended == "closed":
            union.close()

    expect(in_child(write))
    store.commit("next", "next-key", {})
    assert (upper / "d/f").read_text() == "new"
    assert (upper / "d/f").stat().st_ino == (upper / "g").stat().st_ino
