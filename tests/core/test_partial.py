"""Files copied up without all of their data: attributes and names alone, or blocks that were written (core.partial).

Blocks are of 4 KiB here, and files of 4 KiB are copied up without data, so that small files have many blocks.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import pytest

from tests.core.conftest import MakeStack
from tests.core.kernel_overlay import Overlay, why_not
from tests.core.native import Native
from tests.core.snapshots import Snapshot, differences, snapshot
from tests.core.stack import Stack, Whiteout
from tests.core.test_crash import LIMIT_S, Scenario, Trial, check_dying, check_errors, check_kills, in_turns
from tests.core.test_takeover import check_takeover
from tests.mounted.agent import Agent
from unionfs.core import partial, sparse_copyup
from unionfs.core.attrs import DATA, WHOLE, Invalidation
from unionfs.core.complete import complete_upper
from unionfs.syscalls import files

SIZE = 200_000
BLOCK = 4096
ExpectLog = Callable[..., AbstractContextManager[list[str]]]

MARKS = {"metacopy", "redirect", "partial"}
overlay = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    _make_small(monkeypatch)


def _make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "SHIFT", 12)
    monkeypatch.setattr(sparse_copyup, "SPARSE_FROM", BLOCK)


def content(seed: int = 1, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def prepared(make: MakeStack, *, in_part: bool = True, text: str = "d/big:0644", **options: object) -> Stack:
    """A stack with a lower file of SIZE bytes at d/big."""
    stack = make(text, upper="", metacopy=True, partial_from=BLOCK if in_part else 0, **options)
    big = stack.lowers[0] / "d" / "big"
    big.write_bytes(content())
    os.utime(big, ns=(10**18, 10**18))
    stack.watch()
    return stack


def marks_of(path: Path) -> dict[str, bytes]:
    """The marks on a file of the upper, by the last parts of their names."""
    names = {name.rpartition(".")[2]: name for name in os.listxattr(path, follow_symlinks=False)}
    return {short: os.getxattr(path, name) for short, name in names.items() if short in MARKS}


def bytes_in(path: Path) -> int:
    """Bytes of data that a file has itself."""
    fd = os.open(path, os.O_RDONLY)
    found, at = 0, 0
    try:
        while True:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                return found
            at = os.lseek(fd, start, os.SEEK_HOLE)
            found += at - start
    finally:
        os.close(fd)


CHANGES: dict[str, tuple[object, ...]] = {
    "chmod": ("chmod", "d/big", 0o600),
    "chown": ("chown", "d/big", 5, 6),
    "utime": ("utime", "d/big", 5, 6),
    "setxattr": ("setxattr", "d/big", b"user.k", b"v"),
    "link": ("link", "d/big", "new"),
    "rename": ("rename", "d/big", "new"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_attributes_or_names_copies_no_data(name: str, make: MakeStack) -> None:
    stack = prepared(make)
    before = stack.u.stat("d/big")
    verb, *args = CHANGES[name]
    getattr(stack.u, str(verb))(*args)
    path = "new" if name in ("link", "rename") else "d/big"
    assert stack.upper is not None
    for _ in range(2):
        copied = stack.upper / path
        assert bytes_in(copied) == 0
        found = marks_of(copied)
        assert (found["metacopy"], found["redirect"]) == (b"", b"/d/big")
        after = stack.u.stat(path)
        assert (after.size, after.blocks, after.ino) == (before.size, before.blocks, before.ino)
        assert stack.u.read(path, 0, SIZE + 1) == content()
        assert stack.u.lseek(path, 0, os.SEEK_HOLE) == SIZE
        stack.remount()


def test_small_files_are_copied_whole(make: MakeStack) -> None:
    stack = make("a=content b=other", upper="", metacopy=True, partial_from=BLOCK)
    stack.u.chmod("a", 0o600)
    stack.u.rename("b", "c")
    assert stack.upper is not None
    assert marks_of(stack.upper / "a") == marks_of(stack.upper / "c") == {}
    assert (stack.upper / "c").read_bytes() == b"other"


def test_without_the_options_nothing_is_left_behind(make: MakeStack) -> None:
    stack = make("a=z*9000", upper="")
    stack.u.chmod("a", 0o600)
    assert stack.upper is not None
    assert marks_of(stack.upper / "a") == {}
    assert (stack.upper / "a").read_bytes() == b"z" * 9000
    assert not (stack.work / "index" / "partial").exists()


@overlay
@pytest.mark.parametrize("name", CHANGES)
def test_the_kernels_overlay_reads_what_we_wrote(name: str, tmp_path: Path, whiteout: Whiteout) -> None:
    if whiteout == "aufs":
        pytest.skip("the kernel's overlay reads no AUFS marks")
    stack = prepared(lambda *text, **options: Stack(tmp_path, *text, whiteout=whiteout, **options), in_part=False)
    verb, *args = CHANGES[name]
    getattr(stack.u, str(verb))(*args)
    ours = snapshot(stack.u)
    stack.close()
    work = tmp_path / "kernel_work"
    work.mkdir()
    kernel = Overlay(stack.lowers, stack.upper, work)
    kernel.options = kernel.options.replace("metacopy=off", "metacopy=on")
    path = "new" if name in ("link", "rename") else "d/big"

    def change(seen: Native) -> tuple[Snapshot, Snapshot]:
        before = snapshot(seen)
        seen.write(path, 5, b"kernel")
        return before, snapshot(seen)

    theirs, changed = cast(tuple[Snapshot, Snapshot], kernel.run(change))
    assert differences(ours, theirs) == ""
    assert stack.upper is not None
    assert "metacopy" not in marks_of(stack.upper / path), "the kernel has completed it"
    assert differences(changed, snapshot(stack.u)) == ""
    stack.finish()


@overlay
def test_the_kernels_overlay_refuses_a_part(tmp_path: Path) -> None:
    stack = prepared(lambda *text, **options: Stack(tmp_path, *text, whiteout="overlay", **options))
    stack.u.write("d/big", 10, b"own")
    stack.close()
    work = tmp_path / "kernel_work"
    work.mkdir()
    for metacopy in ("on", "off"):
        kernel = Overlay(stack.lowers, stack.upper, work)
        kernel.options = kernel.options.replace("metacopy=off", f"metacopy={metacopy}")
        assert kernel.run(_refused) in (errno.EIO, errno.EPERM), metacopy
    stack.finish()


def _refused(seen: Native) -> int | None:
    try:
        seen.read("d/big", 0, 100)
    except OSError as exc:
        return exc.errno
    return None


def test_without_partial_a_write_completes_a_file(make: MakeStack) -> None:
    stack = prepared(make, in_part=False)
    stack.u.chmod("d/big", 0o4755)
    stack.u.write("d/big", 100, b"own")
    assert stack.upper is not None
    want = content()[:100] + b"own" + content()[103:]
    assert (stack.upper / "d/big").read_bytes() == want
    assert marks_of(stack.upper / "d/big") == {}
    assert stack.u.read("d/big", 0, SIZE + 1) == want


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1, SIZE - 1, SIZE, SIZE + 1, SIZE + 9000])
@pytest.mark.parametrize("in_part", [True, False])
def test_truncate_after_chmod(size: int, in_part: bool, make: MakeStack) -> None:
    stack = prepared(make, in_part=in_part)
    stack.u.chmod("d/big", 0o600)
    stack.u.truncate("d/big", size)
    stack.u.truncate("d/big", SIZE + 20_000)
    want = content()[:size] + bytes(SIZE + 20_000 - min(size, SIZE))
    for _ in range(2):
        assert stack.u.read("d/big", 0, SIZE + 20_001) == want
        stack.remount()


def test_a_write_copies_only_the_blocks_it_touches(make: MakeStack) -> None:
    stack = prepared(make)
    stack.u.write("d/big", 3 * BLOCK + 7, b"x" * BLOCK)
    assert stack.upper is not None
    copied = stack.upper / "d/big"
    assert bytes_in(copied) == 2 * BLOCK
    assert (
        copied.read_bytes()[3 * BLOCK : 5 * BLOCK]
        == content()[3 * BLOCK : 3 * BLOCK + 7] + b"x" * BLOCK + content()[4 * BLOCK + 7 : 5 * BLOCK]
    )
    assert marks_of(copied)["metacopy"] == b"\x01"
    assert stack.union.ledger.bytes == 2 * BLOCK
    assert stack.union.ledger.saved == SIZE - 2 * BLOCK


@pytest.mark.parametrize("seed", range(12))
def test_against_bytes_in_memory(seed: int, make: MakeStack) -> None:
    """Reads, writes, truncations, holes and new unions, at random."""
    chance = random.Random(seed)
    stack = prepared(make)
    want = bytearray(content())
    for turn in range(60):
        _random_step(chance, stack, want)
        size = len(want)
        offset, length = chance.randrange(size + 1), chance.randrange(1, 30_000)
        assert stack.u.stat("d/big").size == size, turn
        assert stack.u.read("d/big", offset, length) == want[offset : offset + length], turn
    assert stack.u.read("d/big", 0, len(want) + 1) == want
    stack.close()
    assert complete_upper(stack.options)
    assert stack.upper is not None
    assert (stack.upper / "d/big").read_bytes() == want
    assert marks_of(stack.upper / "d/big") == {}


def _random_step(chance: random.Random, stack: Stack, want: bytearray) -> None:
    kind = chance.choice(("write",) * 6 + ("truncate", "remount", "chmod", "fill", "killed", "punch"))
    size = len(want)
    offset = chance.choice((chance.randrange(size + 1), chance.randrange(size + 1) & -BLOCK, size))
    if kind == "write":
        data = chance.randbytes(chance.choice((1, 100, BLOCK, 2 * BLOCK, 10_000)))
        assert stack.u.write("d/big", offset, data) == len(data)
        if offset > len(want):
            want.extend(bytes(offset - len(want)))
        want[offset : offset + len(data)] = data
    elif kind == "truncate":
        to = min(chance.choice((offset, size + 10_000, size - 1)), 400_000)
        stack.u.truncate("d/big", max(to, 1))
        del want[max(to, 1) :]
        want.extend(bytes(max(to, 1) - len(want)))
    elif kind == "remount":
        stack.remount()
    elif kind == "chmod":
        stack.u.chmod("d/big", chance.choice((0o600, 0o444, 0o755)))
    elif kind == "fill":  # as a transport does before a write
        job = stack.union.copyup_begin(stack.u.node("d/big"), None, DATA)
        if job is not None:
            job.copy()
            stack.union.copyup_commit(job)
    elif kind == "killed":
        job = stack.union.copyup_begin(stack.u.node("d/big"), None, chance.choice((DATA, WHOLE)))
        if job is not None:
            job.copy()
            del job  # without a commit
        stack.remount()
    elif chance.random() < 0.3 and offset < size:
        length = min(9000, size - offset)
        stack.u.fallocate("d/big", 3, offset, length)
        want[offset : offset + length] = bytes(length)


def test_the_watch_does_not_take_filling_for_a_change_by_others(make: MakeStack) -> None:
    stack = prepared(make)
    stale: list[Invalidation] = []
    stack.union.watch(stale.extend, lambda _: None)
    handle = stack.u.open("d/big")
    stack.u.write("d/big", 9, b"own")
    stack.union.process_events()
    stale.clear()
    job = stack.union.copyup_begin(stack.u.node("d/big"), None, WHOLE)
    assert job is not None
    job.copy()
    stack.union.process_events()
    stack.union.copyup_commit(job)
    stack.union.process_events()
    assert stale == []
    assert stack.union.copyup_begin(stack.u.node("d/big"), None, WHOLE) is None
    stack.u.fallocate("d/big", 3, 0, 20)
    assert stack.u.read("d/big", 0, SIZE) == bytes(20) + content()[20:]
    stack.u.close(handle)


def test_after_completion_files_are_copied_whole_for_a_while(make: MakeStack) -> None:
    stack = prepared(make)
    (stack.lowers[0] / "d" / "other").write_bytes(content())
    stack.watch()
    stack.u.write("d/big", 9, b"own")
    handle = stack.u.open("d/big")
    while (nodeid := stack.union.next_partial()) is not None:
        job = stack.union.copyup_begin(nodeid, None, WHOLE)
        assert job is not None
        job.copy()
        stack.union.copyup_commit(job)
    stack.u.chmod("d/other", 0o600)
    assert stack.upper is not None
    assert marks_of(stack.upper / "d/other") == marks_of(stack.upper / "d/big") == {}
    assert (stack.upper / "d/other").read_bytes() == content()
    stack.u.close(handle)


def test_filling_changes_neither_times_nor_privileges(make: MakeStack) -> None:
    stack = prepared(make)
    stack.u.chmod("d/big", 0o4755)
    before = stack.u.stat("d/big")
    if os.geteuid() == 0:
        stack.u.setxattr("d/big", b"security.capability", b"\x01\x00\x00\x02" + b"\x00" * 16)
    job = stack.union.copyup_begin(stack.u.node("d/big"), None, WHOLE)
    assert job is not None
    job.copy()
    stack.union.copyup_commit(job)
    after = stack.u.stat("d/big")
    assert (after.mtime_ns, after.mode) == (before.mtime_ns, before.mode)
    assert stack.upper is not None
    assert (stack.upper / "d/big").read_bytes() == content()
    if os.geteuid() == 0:
        assert b"security.capability" in stack.u.listxattr("d/big")


def test_a_fill_that_was_killed_is_put_right(make: MakeStack) -> None:
    stack = prepared(make)
    stack.u.write("d/big", 0, b"own")
    stack.u.utime("d/big", 5, 6)
    job = stack.union.copyup_begin(stack.u.node("d/big"), None, WHOLE)
    assert job is not None
    job.copy()  # and no commit
    stack.remount()
    assert stack.u.read("d/big", 0, SIZE) == b"own" + content()[3:]
    assert stack.u.stat("d/big").mtime_ns == 6


def test_blocks_of_which_only_pages_have_reached_the_disk(make: MakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power failure: what is a hole is the lower's."""
    monkeypatch.setattr(partial, "SHIFT", 14)
    stack = prepared(make)
    stack.u.write("d/big", 1 << 14, b"w" * (2 << 14))
    stack.close()
    assert stack.upper is not None
    with open(stack.upper / "d/big", "r+b") as file:
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        files.fallocate(file.fileno(), 3, (1 << 14) + BLOCK, BLOCK)
    want = bytearray(content())
    want[1 << 14 : 3 << 14] = b"w" * (2 << 14)
    want[(1 << 14) + BLOCK : (1 << 14) + 2 * BLOCK] = content()[(1 << 14) + BLOCK : (1 << 14) + 2 * BLOCK]
    assert stack.u.read("d/big", 0, SIZE) == want


def _changed(lower: Path) -> None:
    lower.write_bytes(b"other" * 40_000)


def _replaced(lower: Path) -> None:
    new = lower.with_name("another")
    new.write_bytes(content(2))
    os.utime(new, ns=(10**18, 10**18))
    new.replace(lower)


def _removed(lower: Path) -> None:
    lower.unlink()


FAULTS = {"changed": _changed, "replaced": _replaced, "removed": _removed}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lower_file_that_is_another_one(fault: str, make: MakeStack, expect_log: ExpectLog) -> None:
    stack = prepared(make)
    stack.u.write("d/big", 0, b"w" * BLOCK)
    stack.close()
    FAULTS[fault](stack.lowers[0] / "d/big")
    stack.watch()
    with expect_log("b'/d/big' is missing or has changed|b'd/big' cannot be completed"):
        assert stack.u.read("d/big", 0, BLOCK) == b"w" * BLOCK
        for offset in (0, 1, BLOCK, SIZE - 10):
            assert _errno_of(lambda offset=offset: stack.u.read("d/big", offset, BLOCK + 1)) == errno.EIO  # type: ignore[misc]
        assert _errno_of(lambda: stack.u.write("d/big", 2 * BLOCK + 1, b"edge")) == errno.EIO
        assert stack.u.write("d/big", 2 * BLOCK, b"n" * BLOCK) == BLOCK
        assert stack.u.read("d/big", 2 * BLOCK, BLOCK) == b"n" * BLOCK
        stack.close()
        assert _errno_of(lambda: complete_upper(stack.options)) == errno.EIO
        stack.u.truncate("d/big", BLOCK)
        assert stack.u.read("d/big", 0, SIZE) == b"w" * BLOCK
        stack.u.unlink("d/big")
        assert not stack.u.exists("d/big")


def _errno_of(call: Callable[[], object]) -> int | None:
    try:
        call()
    except OSError as exc:
        return exc.errno
    return 0


def test_a_copy_that_another_program_has_made_is_refused(make: MakeStack) -> None:
    """It may have written zeros into the holes."""
    stack = prepared(make)
    stack.u.write("d/big", 0, b"own")
    stack.close()
    assert stack.upper is not None
    here = stack.upper / "d/big"
    shutil.copy2(here, stack.upper / "d/other")
    os.replace(stack.upper / "d/other", here)
    assert _errno_of(lambda: stack.u.read("d/big", 0, 10)) == errno.EIO


def test_it_is_no_lower(make: MakeStack) -> None:
    """What has a part of its data is read by the union that wrote it only; what has none is an ordinary metacopy."""
    stack = prepared(make)
    stack.u.chmod("d/big", 0o600)
    stack.close()
    assert stack.upper is not None
    above = stack.base / "above"
    above.mkdir()
    lowers = [stack.upper, *stack.lowers]
    reader = Stack(above, "", upper=None)
    reader.lowers = lowers
    reader.watch()
    assert reader.u.read("d/big", 0, SIZE) == content()
    reader.close()
    stack.u.write("d/big", 0, b"own")
    stack.close()
    assert _errno_of(lambda: reader.u.read("d/big", 0, SIZE)) == errno.EIO
    reader.close()


def test_hard_links_stay_one_file(make: MakeStack) -> None:
    stack = make("a=z*20000 d/b==a", upper="", metacopy=True, partial_from=BLOCK)
    stack.u.chmod("a", 0o600)
    stack.u.write("d/b", 5, b"both")
    want = b"zzzzzboth" + b"z" * 19_991
    for _ in range(2):
        assert stack.u.read("a", 0, 30_000) == stack.u.read("d/b", 0, 30_000) == want
        assert stack.u.stat("a").ino == stack.u.stat("d/b").ino
        stack.remount()
    stack.close()
    assert complete_upper(stack.options)
    assert stack.upper is not None
    assert (stack.upper / "a").read_bytes() == (stack.upper / "d/b").read_bytes() == want
    assert (stack.upper / "a").stat().st_ino == (stack.upper / "d/b").stat().st_ino


def test_removed_while_open(make: MakeStack) -> None:
    stack = prepared(make)
    handle = stack.u.open("d/big")
    stack.u.chmod("d/big", 0o600)
    stack.u.pwrite(handle, 9, b"own")
    stack.u.unlink("d/big")
    stack.u.pwrite(handle, SIZE, b"end")
    want = content()[:9] + b"own" + content()[12:] + b"end"
    assert stack.u.pread(handle, 0, SIZE + 10) == want
    stack.u.close(handle)


def test_it_is_made_whole_on_disk(make: MakeStack) -> None:
    stack = prepared(make)
    stack.u.chmod("d/big", 0o444)
    stack.u.utime("d/big", 5, 6)
    stack.u.rename("d/big", "moved")
    stack.close()
    assert complete_upper(stack.options)
    assert stack.upper is not None
    assert (stack.upper / "moved").read_bytes() == content()
    assert (stack.upper / "moved").stat().st_mtime_ns == 6
    assert marks_of(stack.upper / "moved") == {}
    assert not (stack.work / "index" / "partial").exists()
    assert complete_upper(stack.options)


# -- crashes -----------------------------------------------------------------------------------------------------------

LOWERS = ["big=z*40000 other=y*9000 d/h=link*2000 h2==d/h"]
_OWN = (("write", "big", 0, b"B"),)

SCENARIOS: dict[str, Scenario] = {
    "chmod": Scenario(("chmod", "big", 0o600)),
    "setxattr": Scenario(("setxattr", "big", b"user.k", b"v")),
    "write a first block": Scenario(("write", "big", 5000, b"C" * 100)),
    "write a second block": Scenario(("write", "big", 20_000, b"C" * 5000), _OWN),
    "write over the end": Scenario(("write", "big", 39_000, b"C" * 5000), _OWN),
    "write all that is missing": Scenario(("write", "big", 4096, b"C" * 40_000), _OWN),
    "write to a chmodded file": Scenario(("write", "big", 5000, b"C"), (("chmod", "big", 0o600),)),
    "write to a hard link": Scenario(("write", "h2", 5000, b"C"), (("chmod", "d/h", 0o600),)),
    "truncate": Scenario(("truncate", "big", 5000), _OWN),
    "truncate a lower file": Scenario(("truncate", "big", 9000)),
    "truncate to nothing": Scenario(("truncate", "big", 0), _OWN),
    "extend": Scenario(("truncate", "big", 50_000), _OWN),
    "extend again": Scenario(("truncate", "big", 50_000), (*_OWN, ("truncate", "big", 5000))),
    "punch a hole": Scenario(("fallocate", "big", 3, 8192, 8192), _OWN),
    "rename": Scenario(("rename", "big", "new"), _OWN),
    "rename over another": Scenario(("rename", "big", "other"), (*_OWN, ("chmod", "other", 0o600))),
    "link": Scenario(("link", "big", "d/new"), _OWN),
    "unlink": Scenario(("unlink", "big"), _OWN),
    "unlink an open one": Scenario(("unlink", "big"), _OWN, "big"),
}


def run_trial(check: Callable[..., None], name: str, whiteout: Whiteout, base: Path, *arguments: object) -> None:
    """As a job: check a scenario of this file."""
    os.umask(0)
    with pytest.MonkeyPatch.context() as monkeypatch:
        _make_small(monkeypatch)
        check(Trial(base, SCENARIOS[name], whiteout, lowers=LOWERS, upper="", in_part=True), *arguments)


@in_turns(0, SCENARIOS)
def test_killed_before_any_step(name: str, whiteout: Whiteout, ram_path: Path, small_process: Agent) -> None:
    small_process.call(run_trial, check_kills, name, whiteout, ram_path, timeout_s=LIMIT_S)


@in_turns(1, SCENARIOS)
def test_no_space_from_any_step_on(name: str, whiteout: Whiteout, ram_path: Path, small_process: Agent) -> None:
    small_process.call(run_trial, check_errors, name, whiteout, ram_path, "full", timeout_s=LIMIT_S)


@in_turns(2, SCENARIOS)
def test_a_filesystem_that_fails_from_any_step_on(
    name: str, whiteout: Whiteout, ram_path: Path, small_process: Agent
) -> None:
    small_process.call(run_trial, check_dying, name, whiteout, ram_path, timeout_s=LIMIT_S)


@in_turns(3, SCENARIOS)
def test_another_daemon_continues(name: str, whiteout: Whiteout, ram_path: Path, small_process: Agent) -> None:
    small_process.call(run_trial, check_takeover, name, whiteout, ram_path, timeout_s=LIMIT_S)
