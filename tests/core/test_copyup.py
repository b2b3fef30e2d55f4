"""Copy-up: the first change of a file changes nothing else of it."""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core.acl import ACCESS, acl
from tests.core.children import expect, in_child
from tests.core.conftest import MakeStack, needs_root
from tests.core.drivers import errno_of
from tests.core.faults import Faults
from tests.core.native import Native
from tests.core.snapshots import differences, inos_of, snapshot
from tests.core.stack import Stack
from tests.core.trees import MTIME_NS, tree
from tests.core.union_driver import UnionDriver
from unionfs.core.attrs import NOW, ROOT, AttrChange
from unionfs.core.copyup import CopyUp
from unionfs.syscalls import files

BLOCK = 4096


# What triggers a copy-up of `f`, each through its own verb.
TRIGGERS: dict[str, Callable[[UnionDriver], object]] = {
    "write": lambda u: u.write("f", 0, b"X"),
    "chmod": lambda u: u.chmod("f", 0o640),
    "utime": lambda u: u.utime("f", 5, 6),
    "truncate": lambda u: u.truncate("f", 2),
    "extend": lambda u: u.truncate("f", 99),
    "setxattr": lambda u: u.setxattr("f", b"user.new", b"1"),
    "removexattr": lambda u: u.removexattr("f", b"user.k"),
    "link": lambda u: u.link("f", "g"),
    "rename": lambda u: u.rename("f", "g"),
    "fallocate": lambda u: u.fallocate("f", 0, 0, 100),
    "open for writing": lambda u: u.union.write_fd(u.union.lookup(ROOT, b"f").nodeid),
}


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_only_the_change_changes(trigger: str, make: MakeStack, tmp_path: Path) -> None:
    """The same verb on a plain file gives the same result in every attribute, and the copy keeps the rest."""
    text = "f=content:0604{user.k=v,user.z=} d/"
    stack = make(text)
    plain = Native(tree(tmp_path / "plain", text))
    stack.u.caching = True
    TRIGGERS[trigger](stack.u)
    if trigger != "open for writing":
        TRIGGERS[trigger](plain)  # type: ignore[arg-type]
        assert differences(snapshot(plain), snapshot(stack.u)) == ""
        stack.u.forget_all()
    else:
        stack.union.forget(stack.union.lookup(ROOT, b"f").nodeid, 2)
    assert stack.upper is not None
    assert len(list(stack.upper.iterdir())) >= 1
    assert "d" not in os.listdir(stack.upper)


@needs_root
@pytest.mark.parametrize(
    "kind", ["=data:4711,5,6", "<fifo>:0621,5,6", "<sock>:0621,5,6", "<c:1:3>:0621,5,6", "->target:,5,6", "/:2751,5,6"]
)
def test_owner_mode_and_kind_are_kept(kind: str, make: MakeStack) -> None:
    stack = make(f"f{kind}@7.000000009")
    before = snapshot(stack.u)
    stack.u.setxattr("f", b"trusted.mark", b"1")
    stack.u.removexattr("f", b"trusted.mark")
    assert stack.upper is not None
    assert os.path.lexists(stack.upper / "f")
    assert differences(before, snapshot(stack.u)) == ""


@needs_root
def test_capabilities_and_acls_are_kept(make: MakeStack) -> None:
    capability = b"\x01\x00\x00\x02\x00\x20\x00\x00" + b"\0" * 12
    rights = acl("u::rwx,u:1234:r--,g::r-x,m::rwx,o::---")
    stack = make("")
    f = stack.lowers[0] / "f"
    f.write_bytes(b"program")
    os.chmod(f, 0o750)
    os.setxattr(f, ACCESS, rights)
    os.setxattr(f, b"security.capability", capability)
    stack.watch()
    stack.u.utime("f", 1, 2)
    assert stack.u.getxattr("f", b"security.capability") == capability
    assert stack.u.getxattr("f", ACCESS) == rights
    assert stack.u.stat("f").mode == stat.S_IFREG | 0o770


@pytest.mark.parametrize("size", [0, 1, BLOCK, 3 * BLOCK + 17, 3 << 20])
def test_data_of_any_size(size: int, make: MakeStack) -> None:
    stack = make("")
    data = bytes(range(256)) * (size // 256 + 1)
    (stack.lowers[0] / "f").write_bytes(data[:size])
    stack.watch()
    stack.u.chmod("f", 0o600)
    assert stack.u.read("f", 0, size + 1) == data[:size]


def test_holes_stay_holes(make: MakeStack) -> None:
    stack = make("")
    with open(stack.lowers[0] / "f", "wb") as file:
        os.pwrite(file.fileno(), b"a" * BLOCK, 10 * BLOCK)
        os.pwrite(file.fileno(), b"b" * 5, 1 << 30)
        os.truncate(file.fileno(), 3 << 30)
    stack.watch()
    want = extents(Native(stack.lowers[0]))
    stack.u.chmod("f", 0o600)
    assert extents(stack.u) == want
    assert stack.upper is not None
    assert (stack.upper / "f").stat().st_blocks * 512 <= 64 * BLOCK
    assert stack.u.read("f", 10 * BLOCK, 3) == b"aaa"
    assert stack.u.read("f", 1 << 30, 9) == b"bbbbb\0\0\0\0"
    assert stack.u.stat("f").size == 3 << 30


def extents(driver: Native | UnionDriver) -> list[tuple[int, int]]:
    """Where the data are, as lseek(2) tells."""
    found: list[tuple[int, int]] = []
    at = 0
    while errno_of(functools.partial(driver.lseek, "f", at, os.SEEK_DATA)) == 0:
        start = driver.lseek("f", at, os.SEEK_DATA)
        at = driver.lseek("f", start, os.SEEK_HOLE)
        found.append((start, at))
    return found


class TestParents:
    """Directories are brought up with the file and keep what they were."""

    def test_parents_come_along_unchanged(self, make: MakeStack) -> None:
        stack = make("d/:0711@5.000000001{user.k=v} d/e/:0700@6 d/e/f=1 d/e/g=2")
        before = snapshot(stack.u)
        stack.u.setattr("d/e/f", AttrChange(atime_ns=3))
        assert stack.upper is not None
        assert (stack.upper / "d/e/f").exists()
        assert not (stack.upper / "d/e/g").exists()
        assert differences(before, snapshot(stack.u)) == ""

    def test_mtimes_of_parents_that_are_up_already(self, make: MakeStack) -> None:
        """Putting the copy in place changes the upper's directory; the user sees no change, so none may show."""
        stack = make("d/a=1 d/b=2", upper="d/@77.000000007 ./@88")
        for name in ("a", "b"):
            stack.u.chmod(f"d/{name}", 0o600)
        assert stack.u.stat("d").mtime_ns == 77_000_000_007
        assert stack.u.stat("").mtime_ns == 88_000_000_000

    def test_a_change_of_the_directory_itself_does_show(self, make: MakeStack) -> None:
        stack = make("d/a=1")
        stack.u.create("d/new")
        assert stack.u.stat("d").mtime_ns > MTIME_NS
        assert stack.u.stat("").mtime_ns == MTIME_NS

    @needs_root
    def test_owner_and_set_id_of_parents(self, make: MakeStack) -> None:
        stack = make("d/:2770,5,6 d/f=1:0644,7,8")
        stack.u.write("d/f", 0, b"2")
        found = snapshot(stack.u)
        assert found[b"d"][1:4] == (0o2770, 5, 6)
        assert found[b"d/f"][1:4] == (0o644, 7, 8)

    def test_opaque_lower_directories_stay_so(self, make: MakeStack) -> None:
        stack = make("d/.wh..wh..opq d/a=1", "d/b=2")
        stack.u.write("d/a", 0, b"3")
        assert set(stack.u.names("d")) == {b"a"}
        assert set(stack.remount().names("d")) == {b"a"}

    def test_whiteouts_of_lowers_stay(self, make: MakeStack) -> None:
        stack = make("d/.wh.b d/a=1", "d/b=2")
        stack.u.write("d/a", 0, b"3")
        assert set(stack.remount().names("d")) == {b"a"}


class TestHardLinks:
    """All names of a lower inode stay one file, whenever each is touched."""

    LOWER = "a=1 b==a d/c==a e=5"

    @pytest.mark.parametrize("caching", [False, True])
    def test_a_write_through_one_name_shows_through_all(self, make: MakeStack, caching: bool) -> None:
        stack = make(self.LOWER, caching=caching)
        stack.u.write("b", 0, b"2")
        for name in ("a", "b", "d/c"):
            assert stack.u.read(name) == b"2"
            assert stack.u.stat(name).nlink == 3
        assert len({stack.u.stat(name).ino for name in ("a", "b", "d/c")}) == 1

    @pytest.mark.parametrize("between", ["nothing", "remount", "forget"])
    def test_the_second_name_is_copied_up_later(self, make: MakeStack, between: str) -> None:
        stack = make(self.LOWER)
        before = stack.u.stat("a").ino
        for name, data in (("a", b"2"), ("d/c", b"3"), ("b", b"4")):
            stack.u.write(name, 0, data)
            if between == "remount":
                stack.remount()
            elif between == "forget":
                stack.u.forget_all()
            assert [stack.u.read(other) for other in ("a", "b", "d/c")] == [data] * 3
        found = {(stack.u.stat(name).ino, stack.u.stat(name).nlink) for name in ("a", "b", "d/c")}
        assert found == {(before, 3)}

    def test_removing_one_name_leaves_the_others(self, make: MakeStack) -> None:
        stack = make(self.LOWER)
        stack.u.unlink("a")
        assert stack.u.stat("b").nlink == 2
        stack.u.write("b", 0, b"9")
        stack.u.unlink("b")
        stack.remount()
        assert stack.u.read("d/c") == b"9"
        assert stack.u.stat("d/c").nlink == 1

    def test_removing_all_names_after_copy_up_frees_the_file(self, make: MakeStack) -> None:
        stack = make(self.LOWER)
        stack.u.write("a", 0, b"9" * 5000)
        for name in ("a", "b", "d/c"):
            stack.u.unlink(name)
        stack.close()
        assert sum(len(files) for _, _, files in os.walk(stack.work)) == 0

    def test_a_name_added_to_a_copied_up_inode(self, make: MakeStack) -> None:
        stack = make(self.LOWER)
        stack.u.link("b", "d/new")
        assert stack.u.stat("a").nlink == 4
        stack.remount()
        stack.u.write("d/new", 0, b"7")
        assert [stack.u.read(name) for name in ("a", "b", "d/c", "d/new")] == [b"7"] * 4

    def test_renaming_one_name(self, make: MakeStack) -> None:
        stack = make(self.LOWER)
        ino = stack.u.stat("a").ino
        stack.u.rename("b", "d/z")
        stack.remount()
        stack.u.write("d/z", 0, b"7")
        assert [stack.u.read(name) for name in ("a", "d/c", "d/z")] == [b"7"] * 3
        assert [stack.u.stat(name).ino for name in ("a", "d/c", "d/z")] == [ino] * 3

    def test_replacing_one_name(self, make: MakeStack) -> None:
        stack = make(self.LOWER)
        stack.u.write("a", 0, b"7")
        stack.u.rename("e", "b")
        stack.remount()
        assert [stack.u.read(name) for name in ("a", "b", "d/c")] == [b"7", b"5", b"7"]
        assert stack.u.stat("a").nlink == 2

    def test_links_of_different_layers_are_different_files(self, make: MakeStack) -> None:
        stack = make("a=1 b==a", "a=2 b==a c==a")
        stack.u.write("c", 0, b"9")
        stack.u.write("a", 0, b"8")
        stack.remount()
        assert [stack.u.read(name) for name in ("a", "b", "c")] == [b"8", b"8", b"9"]


KINDS = ["=x", "->x", "<fifo>:0600", "<sock>:0600", "/", "=x{user.k=v}"]


@pytest.mark.parametrize("remount", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_inode_numbers_survive_copy_up(kind: str, remount: bool, make: MakeStack) -> None:
    stack = make(f"f{kind} d/g{kind}")
    before = inos_of(stack.u)
    for path in ("f", "d/g"):
        stack.u.utime(path, 1, 2)
    if remount:
        stack.remount()
    assert inos_of(stack.u) == before
    stack.u.rename("f", "d/f")
    if remount:
        stack.remount()
    assert stack.u.stat("d/f").ino == before[b"f"]


@pytest.mark.parametrize("kind", ["<fifo>:0600", "->x"])
def test_a_new_object_is_not_mistaken_for_the_copied_up_one(kind: str, make: MakeStack) -> None:
    """The upper may give a freed inode number again: the number of the old file's origin must not come with it."""
    stack = make(f"f{kind}")
    before = stack.u.stat("f").ino
    stack.u.utime("f", 1, 2)
    stack.u.unlink("f")
    for _ in range(3):
        stack.remount()
        stack.u.mknod("g", stat.S_IFIFO | 0o600)
        assert stack.u.stat("g").ino != before
        stack.u.unlink("g")


class TestInSteps:
    """begin -> copy (any thread) -> commit: a slow copy may be overtaken by anything."""

    SIZE = 8 << 20

    @pytest.fixture(autouse=True)
    def _no_reflinks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also where the filesystem has them: what can be shared is done in one step."""

        def refuse(dst_fd: int, src_fd: int) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(files, "ficlone", refuse)

    def test_what_can_be_shared_is_done_at_once(self, make: MakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
        def share(dst_fd: int, src_fd: int) -> None:
            os.sendfile(dst_fd, src_fd, 0, self.SIZE)

        monkeypatch.setattr(files, "ficlone", share)
        stack, f = self.prepare(make)
        assert stack.union.copyup_begin(f) is None
        assert stack.upper is not None
        assert os.listdir(stack.upper) == ["f"]
        assert stack.union.read(f, self.SIZE - 4, 9) == b"cdef"
        ledger = stack.union.ledger
        assert (ledger.files, ledger.reflinked, ledger.bytes) == (1, 1, 0)

    def test_a_share_that_fails_leaves_nothing(self, make: MakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(dst_fd: int, src_fd: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(files, "ficlone", full)
        stack, f = self.prepare(make)
        with pytest.raises(OSError, match="No space left"):
            stack.union.copyup_begin(f)
        assert stack.upper is not None
        assert os.listdir(stack.upper) == []
        assert stack.union.read(f, 0, 4) == b"0123"

    def prepare(self, make: MakeStack, **options: object) -> tuple[Stack, int]:
        stack = make("", **options)
        (stack.lowers[0] / "f").write_bytes(b"0123456789abcdef" * (self.SIZE // 16))
        os.utime(stack.lowers[0] / "f", ns=(MTIME_NS, MTIME_NS))
        stack.watch()
        stack.u.caching = True
        return stack, stack.u.node("f")

    def test_commit_puts_the_copy_in_place(self, make: MakeStack) -> None:
        stack, f = self.prepare(make)
        before = stack.union.getattr(f)
        step = stack.union.copyup_begin(f)
        assert step is not None
        step.copy()
        assert stack.upper is not None
        assert os.listdir(stack.upper) == []
        stack.union.copyup_commit(step)
        assert os.listdir(stack.upper) == ["f"]
        after = stack.union.getattr(f)
        assert after._replace(blocks=0, ctime_ns=0, blksize=0) == before._replace(blocks=0, ctime_ns=0, blksize=0)
        assert stack.union.read(f, self.SIZE - 4, 9) == b"cdef"
        assert stack.union.copyup_begin(f) is None

    def test_abort_leaves_nothing(self, make: MakeStack) -> None:
        stack, f = self.prepare(make)
        step = stack.union.copyup_begin(f)
        assert isinstance(step, CopyUp)
        step.copy()
        stack.union.copyup_abort(step)
        assert os.fstat(step.dst.fd).st_size == 0  # no space is held by a traceback that keeps the descriptor
        assert stack.upper is not None
        assert os.listdir(stack.upper) == []
        stack.union.write(f, 0, b"X")
        assert stack.union.read(f, 0, 3) == b"X12"

    def test_cancel_from_another_thread(self, make: MakeStack) -> None:
        stack, f = self.prepare(make)
        step = stack.union.copyup_begin(f)
        assert step is not None
        step.cancel()
        with pytest.raises(OSError, match="Interrupted"):
            step.copy()
        stack.union.copyup_abort(step)

    def test_only_what_is_needed_is_copied_before_a_truncate(self, make: MakeStack) -> None:
        stack, f = self.prepare(make)
        step = stack.union.copyup_begin(f, 0)
        if step is not None:
            step.copy()
            stack.union.copyup_commit(step)
        stack.union.setattr(f, AttrChange(size=0))
        assert stack.union.getattr(f).size == 0
        assert stack.upper is not None
        assert (stack.upper / "f").stat().st_blocks == 0

    def test_overtaken_by_an_inline_copy_up(self, make: MakeStack) -> None:
        """What was written meanwhile must not be lost to the older copy."""
        stack, f = self.prepare(make)
        step = stack.union.copyup_begin(f)
        assert step is not None
        step.copy()
        stack.union.write(f, 0, b"NEW")
        stack.union.copyup_commit(step)
        assert stack.union.read(f, 0, 5) == b"NEW34"

    def test_overtaken_by_unlink(self, make: MakeStack) -> None:
        stack, f = self.prepare(make)
        step = stack.union.copyup_begin(f)
        assert step is not None
        step.copy()
        stack.union.unlink(ROOT, b"f")
        commit_or_refuse(stack, step)
        assert not stack.u.exists("x")
        with pytest.raises(FileNotFoundError):
            stack.union.lookup(ROOT, b"f")
        assert stack.union.read(f, 0, 5) == b"01234"

    def test_overtaken_by_rename(self, make: MakeStack) -> None:
        stack, f = self.prepare(make)
        step = stack.union.copyup_begin(f)
        assert step is not None
        step.copy()
        stack.u.mkdir("d")
        stack.u.rename("f", "d/g")
        commit_or_refuse(stack, step)
        assert set(snapshot(stack.u)) == {b"", b"d", b"d/g"}
        assert stack.union.write(f, 1, b"X") == 1
        assert stack.u.read("d/g", 0, 5) == b"0X234"

    def test_overtaken_by_a_new_file_of_that_name(self, make: MakeStack) -> None:
        stack, f = self.prepare(make)
        step = stack.union.copyup_begin(f)
        assert step is not None
        step.copy()
        stack.union.unlink(ROOT, b"f")
        stack.u._dentries.pop((ROOT, b"f"), None)
        stack.u.put("f", b"other")
        commit_or_refuse(stack, step)
        assert stack.u.read("f") == b"other"
        assert stack.union.read(f, 0, 5) == b"01234"

    def test_overtaken_by_a_change_of_attributes(self, make: MakeStack) -> None:
        stack, f = self.prepare(make)
        step = stack.union.copyup_begin(f)
        assert step is not None
        step.copy()
        stack.union.setattr(f, AttrChange(mode=0o600, mtime_ns=5))
        stack.union.copyup_commit(step)
        attrs = stack.union.getattr(f)
        assert (stat.S_IMODE(attrs.mode), attrs.mtime_ns, attrs.size) == (0o600, 5, self.SIZE)

    def test_overtaken_by_a_truncate(self, make: MakeStack) -> None:
        stack, f = self.prepare(make)
        step = stack.union.copyup_begin(f)
        assert step is not None
        stack.union.setattr(f, AttrChange(size=10))
        step.copy()
        stack.union.copyup_commit(step)
        assert stack.union.read(f, 0, 100) == b"0123456789"

    def test_two_at_once(self, make: MakeStack) -> None:
        stack, f = self.prepare(make)
        one, two = stack.union.copyup_begin(f), stack.union.copyup_begin(f)
        for step in (one, two):
            if step is not None:
                step.copy()
        for step in (two, one):
            if step is not None:
                stack.union.copyup_commit(step)
        stack.union.write(f, 0, b"X")
        assert stack.union.read(f, 0, 3) == b"X12"

    def test_of_a_file_that_is_up_or_no_file(self, make: MakeStack) -> None:
        stack = make("d/ l->x", upper="f=1", caching=True)
        for path in ("f", "d", "l"):
            assert stack.union.copyup_begin(stack.u.node(path)) is None

    def test_several_names(self, make: MakeStack) -> None:
        stack, f = self.prepare(make)
        os.link(stack.lowers[0] / "f", stack.lowers[0] / "g")
        stack.watch()
        stack.u.forget_all()
        f = stack.u.node("f")
        assert stack.u.node("g") == f
        step = stack.union.copyup_begin(f)
        assert step is not None
        step.copy()
        stack.union.copyup_commit(step)
        stack.union.write(f, 0, b"X")
        stack.remount()
        assert [stack.u.read(name, 0, 2) for name in ("f", "g")] == [b"X1", b"X1"]


def commit_or_refuse(stack: Stack, step: object) -> None:
    """The file is not where it was: the core may refuse or adapt, but not bring the old name back."""
    try:
        stack.union.copyup_commit(step)  # type: ignore[arg-type]
    except OSError:
        stack.union.copyup_abort(step)  # type: ignore[arg-type]


def test_a_reader_that_holds_the_lower_file_sees_the_copy(make: MakeStack) -> None:
    """No open-file state: whoever reads next, through whatever it opened before, reads the copy."""
    stack = make("f=old", caching=True)
    handle = stack.u.open("f")
    assert stack.u.pread(handle, 0, 9) == b"old"
    stack.u.write("f", 0, b"new")
    assert stack.u.pread(handle, 0, 9) == b"new"
    stack.u.close(handle)


def test_a_descriptor_outlives_copy_up_and_cache(make: MakeStack) -> None:
    """A worker thread reading from it must never find it closed or reused."""
    stack = make(" ".join(f"f{i}={i}" for i in range(50)), caching=True)
    held = [stack.union.read_fd(stack.u.node(f"f{i}")) for i in range(50)]
    for i in range(50):
        stack.u.write(f"f{i}", 0, b"xx")
    assert [os.pread(file.fd, 9, 0) for file in held] == [str(i).encode() for i in range(50)]


def test_setting_times_to_now(make: MakeStack) -> None:
    stack = make("f=1")
    stack.u.setattr("f", AttrChange(mtime_ns=NOW))
    attrs = stack.u.stat("f")
    assert attrs.mtime_ns > 1_600_000_000 * 10**9
    assert attrs.atime_ns <= attrs.mtime_ns
    stack.u.setattr("f", AttrChange(atime_ns=44))
    assert stack.u.stat("f").mtime_ns == attrs.mtime_ns


def test_a_hole_is_kept_although_attributes_take_as_many_blocks(tmp_path: Path) -> None:
    stack = Stack(tmp_path, "f", upper="")
    with open(stack.lowers[0] / "f", "r+b") as file:
        os.pwrite(file.fileno(), b"one", 4096)
    os.setxattr(stack.lowers[0] / "f", "user.a", b"w" * 300)
    stack.watch()
    stack.u.chmod("f", 0o600)
    assert stack.upper is not None
    with open(stack.upper / "f", "rb") as copied, open(stack.lowers[0] / "f", "rb") as original:
        assert os.lseek(copied.fileno(), 0, os.SEEK_DATA) == os.lseek(original.fileno(), 0, os.SEEK_DATA)
        assert copied.read() == original.read()
    stack.finish()


# The calls that change a filesystem, of the second copy-up of a small file in a directory.
STEPS: dict[str, tuple[Callable[[UnionDriver], object], list[str]]] = {
    "chmod": (lambda u: u.chmod("d/f", 0o640), ["open", "pwrite", "setxattr", "utime", "rename", "utime"]),
    "write": (lambda u: u.write("d/f", 0, b"X"), ["open", "pwrite", "setxattr", "utime", "rename", "utime", "pwrite"]),
    "write to a set-user-id program": (
        lambda u: u.write("d/suid", 0, b"X"),
        ["open", "pwrite", "setxattr", "fchmod", "utime", "rename", "utime", "pwrite"],
    ),
    "chmod of a file with an attribute": (
        lambda u: u.chmod("d/k", 0o640),
        ["open", "pwrite", "setxattr", "setxattr", "utime", "rename", "utime"],
    ),
    "chmod of a directory": (
        lambda u: u.chmod("d/e", 0o750),
        ["mkdir", "setxattr", "utime", "rename", "utime", "chmod_nofollow"],
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_how_many_steps_a_small_copy_up_takes(name: str, make: MakeStack) -> None:
    """Each is a system call: their number is what a storm of small copy-ups costs."""
    text = "d/f=content:0644 d/first=1 d/k=content:0644{user.k=v} d/suid=content:4755 d/e/x"
    stack = make(text)
    trigger, want = STEPS[name]

    def counted() -> list[str]:
        faults = Faults()
        faults.install()
        stack.u.chmod("d/first", 0o600)
        faults.arm("count", 0)
        trigger(stack.u)
        faults.disarm()
        return faults.log

    assert expect(in_child(counted)) == want


@pytest.mark.parametrize("umask", [0, 0o077])
@pytest.mark.parametrize("mode", [0o644, 0o666, 0o444, 0o4755, 0o777])
def test_a_copy_has_its_permissions_whatever_the_umask(mode: int, umask: int, make: MakeStack) -> None:
    """Also a copy made with the permissions that a chmod asks for, and the directory above it."""
    stack = make(f"d/f=content:{mode:04o} d/g=content:0640")

    above = stat.S_IMODE(os.stat(stack.lowers[0] / "d").st_mode)

    def modes() -> list[int]:
        os.umask(umask)
        stack.u.write("d/f", 0, b"X")
        stack.u.chmod("d/g", mode)
        assert stack.upper is not None
        return [stat.S_IMODE(os.stat(stack.upper / name).st_mode) for name in ("d", "d/f", "d/g")]

    assert expect(in_child(modes)) == [above, mode, mode]
