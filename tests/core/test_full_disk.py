"""A disk that is really full: the caller gets ENOSPC and everything is as it was; with room again, everything works."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.core.drivers import errno_of
from tests.core.snapshots import Snapshot, differences, shape, snapshot
from tests.core.stack import Stack, Whiteout
from tests.core.trees import MTIME_NS
from tests.support.small_filesystem import MIB, fill, make_room, small_filesystem
from unionfs.core.attrs import DATA
from unionfs.core.complete import complete_upper

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounting a small filesystem")


@pytest.fixture(params=["tmpfs", "ext4"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with small_filesystem(request.param, tmp_path) as where:
        yield where


@pytest.fixture
def whiteout(request: pytest.FixtureRequest) -> Whiteout:
    """Each format on one of the filesystems: what runs out of room does not depend on both."""
    formats: dict[str, Whiteout] = {"tmpfs": "aufs", "ext4": "overlay"}
    return formats[request.node.callspec.params["small"]]


@pytest.fixture
def stack(small: Path, tmp_path: Path, whiteout: Whiteout) -> Stack:
    """Lowers on the big filesystem, upper and work on the small one."""
    made = Stack(tmp_path / "s", "d/f=content d/e/g=2 h=link i==h l->x hid", upper="", whiteout=whiteout, caching=True)
    for name in ("big", "huge"):
        size = 3 * MIB if name == "big" else 9 * MIB
        with open(made.lowers[0] / name, "wb") as file:
            file.write(b"data" * (size // 4))
        os.utime(made.lowers[0] / name, ns=(MTIME_NS, MTIME_NS))
    (small / "upper").mkdir()
    (small / "work").mkdir()
    os.utime(small / "upper", ns=(MTIME_NS, MTIME_NS))
    made.upper, made.work = small / "upper", small / "work"
    made.watch()
    return made


def free(where: Path) -> int:
    found = os.statvfs(where)
    return found.f_bavail * found.f_bsize


def untimed(found: Snapshot) -> Snapshot:
    """Without the mtimes: a write that fails with ENOSPC sets them natively too (file_update_time() is first)."""
    return {path: snap._replace(mtime_ns=0) for path, snap in found.items()}


def test_copy_up_of_a_file_that_does_not_fit(stack: Stack, small: Path) -> None:
    before = shape(snapshot(stack.u))
    room = free(small)
    for _ in range(2):
        assert errno_of(lambda: stack.u.write("huge", 0, b"x")) == errno.ENOSPC
    assert differences(before, shape(snapshot(stack.u))) == ""
    assert not (small / "upper/huge").exists()
    assert free(small) > room - MIB, "what was copied before the error is given back"
    stack.u.write("big", 0, b"fits")
    assert stack.u.read("big", 0, 4) == b"fits"
    stack.finish()


def test_copy_up_in_steps_of_a_file_that_does_not_fit(stack: Stack, small: Path) -> None:
    node = stack.u.node("huge")
    room = free(small)
    step = stack.union.copyup_begin(node)
    assert step is not None
    assert errno_of(step.copy) == errno.ENOSPC
    stack.union.copyup_abort(step)
    del step
    assert free(small) > room - MIB
    assert len(stack.u.read("huge", 0, 30 * MIB)) == 9 * MIB
    stack.finish()


def test_blocks_of_a_file_that_does_not_fit(
    stack: Stack, small: Path, expect_log: Callable[..., AbstractContextManager[list[str]]]
) -> None:
    """Blocks are copied as long as there is room; a refused copy changes nothing, and is not tried again."""
    stack.metacopy, stack.partial_from = True, MIB
    want = bytearray(b"data" * (3 * MIB // 4))
    stack.u.write("big", 0, b"x")
    want[:1] = b"x"
    fill(small, 10 << 16)
    chance = random.Random(1)
    codes: set[int] = set()
    for _ in range(100):
        offset, data = chance.randrange(2 * MIB), chance.randbytes(chance.choice((1, 4096, 70_000)))
        assert stack.union.copyup_begin(stack.u.node("big"), None, DATA) is None, "the rest has no room"
        written = 0
        try:
            written = stack.u.write("big", offset, data)
        except OSError as exc:
            codes.add(exc.errno or 0)
        want[offset : offset + written] = data[:written]
        assert stack.u.read("big", 0, 3 * MIB) == want
    assert codes == {errno.ENOSPC}
    for _ in range(2):
        stack.close()
        assert stack.u.read("big", 0, 3 * MIB) == want
        stack.close()
        with expect_log("b'big' cannot be completed"):
            assert errno_of(lambda: complete_upper(stack.options)) == errno.ENOSPC
    make_room(small)
    assert complete_upper(stack.options)
    assert (small / "upper/big").read_bytes() == want
    stack.finish()


CHANGES = {
    "write": ("write", "d/f", 0, b"C"),
    "write much": ("write", "d/f", 0, b"C" * 5 * MIB),
    "chmod": ("chmod", "d/f", 0o600),
    "setxattr": ("setxattr", "d/f", b"user.k", b"v" * 1000),
    "hard link": ("write", "h", 0, b"L"),
    "link": ("link", "d/f", "d/e/new"),
    "create": ("put", "d/e/new", b"data" * 2000),
    "mkdir": ("mkdir", "d/e/new"),
    "symlink": ("symlink", "d/e/new", b"t" * 3000),
    "rename": ("rename", "d/f", "d/e/f"),
    "rename a directory": ("rename", "d/e", "e"),
    "exchange": ("rename", "d/f", "h", 2),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("leave", [0, 4096, 12288])
def test_changes_on_a_full_disk(change: str, leave: int, stack: Stack, small: Path) -> None:
    """Done or refused, nothing in between; and once there is room, it works.

    `put` and large writes are several steps of their own: what counts for them is that nothing else changed.
    """
    verb, *args = CHANGES[change]
    before = shape(snapshot(stack.u))
    fill(small, leave)
    failed = None
    try:
        getattr(stack.u, str(verb))(*args)
    except OSError as exc:
        failed = exc.errno
    during = shape(snapshot(stack.u))
    if failed is not None:
        assert failed == errno.ENOSPC
        if verb == "put":
            during.pop(b"d/e/new", None)
        assert differences(untimed(before), untimed(during)) == ""
    elif change != "write much":
        assert during != before
    make_room(small)
    if failed is not None:
        if verb == "put" and stack.u.exists("d/e/new"):
            stack.u.unlink("d/e/new")
        getattr(stack.u, str(verb))(*args)
    assert shape(snapshot(stack.u)) != before
    after = shape(snapshot(stack.u))
    assert differences(after, shape(snapshot(stack.remount()))) == ""
    stack.finish()


def test_removing_on_a_full_disk(stack: Stack, small: Path) -> None:
    """What is only in the upper can always be removed, to make room; what needs a mark is refused whole if at all."""
    stack.u.put("new", b"x" * MIB)
    stack.u.write("big", 0, b"x")
    fill(small)
    stack.u.unlink("new")
    before = shape(snapshot(stack.u))
    for path in ("big", "d/f", "h", "hid"):
        code = errno_of(lambda path=path: stack.u.unlink(path))  # type: ignore[misc]
        assert code in (0, errno.ENOSPC)
        if code == 0:
            before.pop(path.encode())
        seen = shape(snapshot(stack.u))
        if path == "h" and b"h" not in before:
            before[b"i"] = before[b"i"]._replace(group=b"i", nlink=1)
        assert differences(before, seen) == "", path
    assert differences(before, shape(snapshot(stack.remount()))) == ""
    stack.finish()


def test_opening_branches_on_a_full_disk(stack: Stack, small: Path) -> None:
    """Looking at a full disk must be possible, or the data were out of reach just when they matter."""
    stack.u.put("new", b"precious")
    stack.close()
    fill(small)
    assert stack.u.read("new") == b"precious"
    stack.u.unlink("new")
    assert not stack.remount().exists("new")
    stack.finish()


def test_out_of_inodes(stack: Stack, small: Path) -> None:
    before = shape(snapshot(stack.u))
    made = 0
    while (code := errno_of((small / f"inode{made}").touch)) == 0:
        made += 1
    assert code == errno.ENOSPC
    for verb, *args in (
        ("write", "d/f", 0, b"x"),
        ("create", "new"),
        ("mkdir", "newd"),
        ("rename", "d", "e"),
        ("link", "h", "j"),
    ):
        assert errno_of(lambda verb=verb, args=args: getattr(stack.u, verb)(*args)) == errno.ENOSPC  # type: ignore[misc]
        assert differences(before, shape(snapshot(stack.u))) == "", verb
    for number in range(made):
        (small / f"inode{number}").unlink()
    stack.u.write("d/f", 0, b"x")
    stack.u.rename("d", "e")
    assert stack.remount().read("e/f") == b"xontent"
    stack.finish()
