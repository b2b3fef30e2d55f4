"""The far ends: deep paths, strange names, many lowers, few descriptors."""

from __future__ import annotations

import errno
import os
import resource
import stat
import sys
from pathlib import Path

import pytest

from tests.core.conftest import MakeStack
from tests.core.snapshots import merged, snapshot
from tests.core.stack import Stack, Whiteout
from tests.core.union_driver import UnionDriver
from tests.support import process
from tests.support.users import CHECKOUT
from unionfs.core.attrs import ROOT, Caller
from unionfs.core.union import Union

ME = Caller(os.geteuid(), os.getegid())
LEVEL = b"level-" + b"x" * 200
DEPTH = 60  # 60 * 207 bytes are three times PATH_MAX


def dig(root: Path, depth: int) -> int:
    """A chain of directories on the host, made without ever naming a long path; the descriptor of the deepest."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir(LEVEL, dir_fd=fd)
        below = os.open(LEVEL, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    return fd


def descend(union: Union, depth: int) -> list[int]:
    nodes = [ROOT]
    for _ in range(depth):
        nodes.append(union.lookup(nodes[-1], LEVEL).nodeid)
    return nodes


class TestDeeperThanPathMax:
    """path_resolution(7) limits the length of one path, not the depth of a tree."""

    def prepare(self, tmp_path: Path, whiteout: Whiteout) -> Stack:
        (tmp_path / "s/lower0").mkdir(parents=True)
        fd = dig(tmp_path / "s/lower0", DEPTH)
        for name in (b"a", b"b", b"c"):
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
        os.mkdir(b"d", dir_fd=fd)
        os.close(fd)
        return Stack(tmp_path / "s", "", whiteout=whiteout)

    def test_every_verb_at_the_bottom(self, tmp_path: Path, whiteout: Whiteout) -> None:
        stack = self.prepare(tmp_path, whiteout)
        union = stack.union
        nodes = descend(union, DEPTH)
        bottom = nodes[-1]
        a = union.lookup(bottom, b"a").nodeid
        assert union.write(a, 0, b"data") == 4
        union.unlink(bottom, b"b")
        union.rename(bottom, b"c", bottom, b"C")
        union.rename(bottom, b"d", bottom, b"D")
        nodes += [
            a,
            union.mknod(bottom, b"new", stat.S_IFREG | 0o644, 0, ME).nodeid,
            union.mkdir(bottom, b"newd", 0o755, ME).nodeid,
        ]
        nodes += [union.link(a, bottom, b"linked").nodeid, union.symlink(bottom, b"l", b"x", ME).nodeid]
        self.forget(union, nodes)
        union = stack.remount().union
        nodes = descend(union, DEPTH)
        assert {entry.name for entry in union.readdir(nodes[-1], 2)} == {
            b"a",
            b"C",
            b"D",
            b"new",
            b"newd",
            b"linked",
            b"l",
        }
        a = union.lookup(nodes[-1], b"linked").nodeid
        assert union.read(a, 0, 9) == b"data"
        self.forget(union, [*nodes, a])
        stack.finish()

    def test_renaming_the_top_of_it(self, tmp_path: Path, whiteout: Whiteout) -> None:
        stack = self.prepare(tmp_path, whiteout)
        union = stack.union
        nodes = descend(union, DEPTH)
        union.rename(ROOT, LEVEL, ROOT, b"short")
        a = union.lookup(nodes[-1], b"a").nodeid
        union.write(a, 0, b"1")
        self.forget(union, [*nodes, a])
        union = stack.remount().union
        nodes = [union.lookup(ROOT, b"short").nodeid]
        for _ in range(DEPTH - 1):
            nodes.append(union.lookup(nodes[-1], LEVEL).nodeid)
        assert {entry.name for entry in union.readdir(nodes[-1], 2)} == {b"a", b"b", b"c", b"d"}
        self.forget(union, nodes)
        stack.finish()

    def test_renaming_the_bottom_of_it_to_the_top(self, tmp_path: Path, whiteout: Whiteout) -> None:
        """The redirect has to name a place whose path is longer than a path, or an attribute, can be."""
        stack = self.prepare(tmp_path, whiteout)
        union = stack.union
        nodes = descend(union, DEPTH)
        union.rename(nodes[-2], LEVEL, ROOT, b"up")
        self.forget(union, nodes)
        union = stack.remount().union
        up = union.lookup(ROOT, b"up").nodeid
        assert {entry.name for entry in union.readdir(up, 2)} == {b"a", b"b", b"c", b"d"}
        self.forget(union, [up])
        nodes = descend(union, DEPTH - 1)
        assert list(union.readdir(nodes[-1], 2)) == []
        self.forget(union, nodes)
        stack.finish()

    def test_removing_all_of_it(self, tmp_path: Path, whiteout: Whiteout) -> None:
        stack = self.prepare(tmp_path, whiteout)
        union = stack.union
        nodes = descend(union, DEPTH)
        for name in (b"a", b"b", b"c"):
            union.unlink(nodes[-1], name)
        union.rmdir(nodes[-1], b"d")
        for node in reversed(nodes[:-1]):
            union.rmdir(node, LEVEL)
        self.forget(union, nodes)
        assert merged(stack.remount()) == ""
        stack.finish()

    @staticmethod
    def forget(union: Union, nodes: list[int]) -> None:
        for node in nodes:
            union.forget(node)


def test_two_thousand_levels(tmp_path: Path) -> None:
    """Deeper than Python's own stack would allow, made and removed through the union."""
    assert sys.getrecursionlimit() <= 2000
    stack = Stack(tmp_path / "s", "")
    union = stack.union
    nodes = [ROOT]
    for _ in range(2000):
        nodes.append(union.mkdir(nodes[-1], b"d", 0o755, ME).nodeid)
    file = union.mknod(nodes[-1], b"f", stat.S_IFREG | 0o600, 0, ME).nodeid
    union.forget(file)
    for node in nodes:
        union.forget(node)
    union = stack.remount().union
    nodes = [ROOT]
    for _ in range(2000):
        nodes.append(union.lookup(nodes[-1], b"d").nodeid)
    union.rename(ROOT, b"d", ROOT, b"e")
    union.unlink(nodes[-1], b"f")
    names = [b"e"] + [b"d"] * 1999
    for parent, name in reversed(list(zip(nodes[:-1], names, strict=True))):
        union.rmdir(parent, name)
    for node in nodes:
        union.forget(node)
    stack.finish()


STRANGE = [
    b"\xff\xfe",
    b"new\nline",
    b"\x01",
    b"sp ace",
    b"'\"\\",
    b"\xe2\x82\xac",
    b"-rf",
    b"..x",
    b"...",
    b"a" * 255,
    b".w",
    b".wh",
    b",wh.x",
]


@pytest.mark.parametrize("name", STRANGE)
def test_strange_names(name: bytes, make: MakeStack) -> None:
    quoted = "".join(f"\\x{byte:02x}" for byte in name)
    stack = make(f"{quoted}/f=1 g=2")
    stack.u.write(name + b"/f", 0, b"3")
    stack.u.rename("g", name + b"/" + name)
    stack.u.link(name + b"/f", name + b"/" + name[:1] + b"L")
    stack.u.unlink(name + b"/f")
    stack.u.rename(name, b"moved")
    found = snapshot(stack.remount())
    assert set(found) == {b"", b"moved", b"moved/" + name, b"moved/" + name[:1] + b"L"}
    stack.u.rename(b"moved/" + name, name)
    stack.u.unlink(name)
    assert set(stack.remount().names("")) == {b"moved"}


@pytest.mark.parametrize("count", [128, 500])
def test_many_lowers(count: int, make: MakeStack) -> None:
    """Each has a file of its own, one that all have, and a part of a directory; one hides its neighbour's file."""
    lowers = [f"own{n} all={n} d/part{n} {f'.wh.own{n + 1}' if n % 10 == 0 else ''}" for n in range(count)]
    stack = make(*lowers)
    assert stack.u.read("all") == b"0"
    hidden = {n + 1 for n in range(0, count - 1, 10)}
    assert set(stack.u.names("")) == {b"own%d" % n for n in range(count) if n not in hidden} | {b"all", b"d"}
    assert set(stack.u.names("d")) == {b"part%d" % n for n in range(count)}
    last = f"own{count - 1}"
    stack.u.write(f"d/part{count - 1}", 0, b"x")
    stack.u.rename("d", "e")
    stack.u.unlink("all")
    stack.remount()
    assert set(stack.u.names("e")) == {b"part%d" % n for n in range(count)}
    assert stack.u.read(f"e/part{count - 1}") == b"x"
    assert stack.u.exists(last) == (count - 1 not in hidden)
    assert not stack.u.exists("all")


def test_few_descriptors(tmp_path: Path) -> None:
    """More directories and files known than descriptors allowed: they are a cache (DESIGN.md, section 2). In a process
    of its own, which has no descriptors of other tests."""
    script = f"from tests.core import test_limits as own; own.use_few_descriptors(own.Path({str(tmp_path / 's')!r}))"
    process.run([sys.executable, "-c", script], cwd=CHECKOUT)


def use_few_descriptors(base: Path) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    stack = Stack(
        base,
        " ".join(f"d{i}/e{i}/f{i}={i}" for i in range(300)),
        upper=" ".join(f"u{i}/f={i}" for i in range(300)),
        caching=True,
    )
    u: UnionDriver = stack.u
    for i in range(300):
        assert u.read(f"d{i}/e{i}/f{i}") == b"%d" % i
        u.write(f"d{i}/e{i}/f{i}", 0, b"X")
        u.rename(f"u{i}/f", f"d{i}/g")
    for i in reversed(range(300)):
        assert u.read(f"d{i}/e{i}/f{i}")[:1] == b"X"
        assert set(u.names(f"d{i}")) == {b"e%d" % i, b"g"}
    stack.finish()


def test_forgotten_directories_are_closed(tmp_path: Path) -> None:
    """Left to the cache, a descriptor stays open until the cache is full, and holds the space of what was removed."""
    stack = Stack(tmp_path / "s", " ".join(f"d{i}/f" for i in range(50)), upper=" ".join(f"u{i}/f" for i in range(50)))
    union, before = stack.union, len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for name in (*(b"d%d" % i for i in range(50)), *(b"u%d" % i for i in range(50))):
            nodeid = union.lookup(ROOT, name).nodeid
            child = union.lookup(nodeid, b"f").nodeid
            assert len(os.listdir("/proc/self/fd")) > before
            union.forget(child, 1)
            union.forget(nodeid, 1)
        assert len(os.listdir("/proc/self/fd")) == before
    stack.finish()


def link_to_the_limit(directory: Path) -> int:
    """Give `f` as many names as it may have (ext4: 65000, EMLINK); how many that are."""
    where = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for count in range(1, 70_000):
            os.link("f", f"l{count}", src_dir_fd=where, dst_dir_fd=where)
    except OSError as failure:
        if failure.errno != errno.EMLINK:
            raise
        return os.stat("f", dir_fd=where).st_nlink
    finally:
        os.close(where)
    pytest.skip("the filesystem has no limit within reach")


def test_as_many_links_as_the_filesystem_allows(tmp_path: Path) -> None:
    """link(2): EMLINK; nothing is left of the attempt, and one name less makes room for another."""
    stack = Stack(tmp_path / "s", "low=1", upper="d/f=1")
    assert stack.upper is not None
    count = link_to_the_limit(stack.upper / "d")
    union = stack.union
    d = union.lookup(ROOT, b"d").nodeid
    f = union.lookup(d, b"f").nodeid
    assert union.getattr(f).nlink == count
    for parent in (ROOT, d):
        with pytest.raises(OSError) as failed:
            union.link(f, parent, b"more")
        assert failed.value.errno == errno.EMLINK
        with pytest.raises(FileNotFoundError):
            union.lookup(parent, b"more")
    union.rename(d, b"l1", ROOT, b"moved")
    union.unlink(ROOT, b"moved")
    assert union.link(f, ROOT, b"more").attrs.nlink == count
    union.unlink(d, b"l2")
    assert union.getattr(f).nlink == count - 1
    for nodeid in (f, f, d):
        union.forget(nodeid)
    stack.finish()


def test_a_lower_file_with_as_many_links(tmp_path: Path) -> None:
    """The copy has one name and the union's own link to it; the others show through."""
    stack = Stack(tmp_path / "s", "d/f=1")
    count = link_to_the_limit(stack.lowers[0] / "d")
    union = stack.union
    d = union.lookup(ROOT, b"d").nodeid
    f = union.lookup(d, b"f").nodeid
    assert union.getattr(f).nlink == count
    union.write(f, 0, b"2")
    assert union.getattr(f).nlink == count
    assert union.lookup(d, b"l77").nodeid == f
    assert union.read(f, 0, 10) == b"2"
    union.unlink(d, b"l78")
    assert union.getattr(f).nlink == count - 1
    for nodeid in (f, f, d):
        union.forget(nodeid)
    stack.close()
