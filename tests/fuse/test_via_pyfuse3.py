"""The pyfuse3 adapter without a mount: its handlers on trio, over a real union in a scratch directory.

What needs a kernel (listings, caching, readers beside a copy-up) is in tests/mounted and test_daemon.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from tests.support.timing import limit

pyfuse3 = pytest.importorskip("pyfuse3")

from unionfs.core.attrs import ROOT, WHOLE  # noqa: E402 - after the check that the transport can be had
from unionfs.core.options import Options  # noqa: E402
from unionfs.core.union import Union  # noqa: E402
from unionfs.fuse import via_pyfuse3  # noqa: E402
from unionfs.fuse.options import ServeOptions  # noqa: E402

_BIG = 4 << 20  # more than what a copy-up does at once
_CTX: Any = SimpleNamespace(uid=os.geteuid(), gid=os.getegid(), pid=1, umask=0o22)


@pytest.fixture
def union(scratch: Path) -> Iterator[Union]:
    for name in ("lower", "upper", "work"):
        (scratch / name).mkdir()
    (scratch / "lower" / "small").write_bytes(b"small")
    (scratch / "lower" / "big").write_bytes(b"b" * _BIG)
    branches = [os.fspath(scratch / name) for name in ("lower", "upper", "work")]
    made = Union(Options(lowers=(branches[0],), upper=branches[1], work=branches[2]))
    yield made
    made.close()


@pytest.fixture
def adapter(union: Union) -> Any:
    return via_pyfuse3._Adapter(union, ServeOptions(timeout_s=77.0))


class _Gated:
    """A copy-up whose copy waits until the test lets it go on; everything else is the real one's."""

    def __init__(self, job: Any, gate: threading.Event) -> None:
        self._job = job
        self._gate = gate
        self.cancelled = False

    def copy(self) -> None:
        assert self._gate.wait(limit(30))
        self._job.copy()

    def cancel(self) -> None:
        self.cancelled = True
        self._job.cancel()
        self._gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)


@pytest.fixture
def gated(union: Union, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`gate` opens for the copies of all copy-ups; `jobs` are those begun; `begun` is set at the first."""
    gate = threading.Event()
    jobs: list[_Gated] = []
    begun = trio.Event()
    begin = union.copyup_begin

    def begin_gated(nodeid: int, size: int | None = None, need: int = WHOLE) -> _Gated | None:
        job = begin(nodeid, size, need)
        if job is not None:
            jobs.append(_Gated(job, gate))
            begun.set()
        return jobs[-1] if job is not None else None

    monkeypatch.setattr(union, "copyup_begin", begin_gated)
    return SimpleNamespace(gate=gate, jobs=jobs, begun=begun)


async def _nodeid(adapter: Any, name: bytes) -> int:
    nodeid: int = (await adapter.lookup(ROOT, name, _CTX)).st_ino
    return nodeid


@pytest.mark.trio
async def test_the_kernel_gets_the_node_id_and_stat_the_inode_number(adapter: Any, union: Union) -> None:
    """st_ino of EntryAttributes reads back the first; the second stands where libfuse's structure has it."""
    import ctypes

    entry = await adapter.lookup(ROOT, b"small", _CTX)
    attrs = union.getattr(entry.st_ino)
    fields = (ctypes.c_uint64 * 4).from_address(id(entry) + object.__basicsize__)
    assert (fields[0], fields[3]) == (entry.st_ino, attrs.ino)
    assert attrs.ino != entry.st_ino


@pytest.mark.trio
async def test_attributes_arrive_whole(adapter: Any, union: Union, scratch: Path) -> None:
    os.utime(scratch / "lower" / "small", ns=(-1_500_000_001, 2_000_000_123))
    entry = await adapter.lookup(ROOT, b"small", _CTX)
    attrs = union.getattr(entry.st_ino)
    assert (entry.st_atime_ns, entry.st_mtime_ns) == (-1_500_000_001, 2_000_000_123)
    assert (entry.st_mode, entry.st_size, entry.st_nlink) == (attrs.mode, 5, 1)
    assert (entry.st_uid, entry.st_gid, entry.st_blocks) == (attrs.uid, attrs.gid, attrs.blocks)
    assert entry.entry_timeout == entry.attr_timeout == 77.0


@pytest.mark.trio
async def test_a_missing_name_may_be_remembered_as_missing(adapter: Any) -> None:
    entry = await adapter.lookup(ROOT, b"nothing", _CTX)
    assert entry.st_ino == 0
    assert entry.entry_timeout == 77.0


@pytest.mark.trio
@pytest.mark.parametrize(("length", "code"), [(255, None), (256, errno.ENAMETOOLONG), (1023, errno.ENAMETOOLONG)])
async def test_names_are_255_bytes_at_most(adapter: Any, length: int, code: int | None) -> None:
    name = b"n" * length
    for handler, arguments in (
        (adapter.mkdir, (ROOT, name, 0o755)),
        (adapter.lookup, (ROOT, name)),
        (adapter.rename, (ROOT, name, ROOT, b"short", 0)),
        (adapter.rename, (ROOT, b"short", ROOT, name, 0)),
        (adapter.rmdir, (ROOT, name)),
    ):
        if code is None:
            await handler(*arguments, _CTX)
        else:
            with pytest.raises(pyfuse3.FUSEError) as refused:
                await handler(*arguments, _CTX)
            assert refused.value.errno == code


@pytest.mark.trio
async def test_a_bug_is_answered_with_eio(
    adapter: Any,
    union: Union,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[..., AbstractContextManager[list[str]]],
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(union, "getattr", broken)
    with expect_log("bug while serving a request"), pytest.raises(pyfuse3.FUSEError) as refused:
        await adapter.getattr(ROOT, _CTX)
    assert refused.value.errno == errno.EIO
    monkeypatch.setattr(union, "forget", broken)
    with expect_log("bug while forgetting node 5"):
        await adapter.forget([(5, 1)])


@pytest.mark.trio
async def test_forget_takes_back_what_lookup_gave(adapter: Any, union: Union) -> None:
    before = union.node_count
    nodeid = await _nodeid(adapter, b"small")
    assert await _nodeid(adapter, b"small") == nodeid
    await adapter.forget([(nodeid, 1)])
    assert union.node_count == before + 1
    await adapter.forget([(nodeid, 1)])
    assert union.node_count == before


@pytest.mark.trio
@pytest.mark.parametrize("size", [1, 5, 4096])
async def test_reads_end_at_the_end(adapter: Any, size: int) -> None:
    nodeid = await _nodeid(adapter, b"small")
    assert bytes(await adapter.read(nodeid, 0, size)) == b"small"[:size]
    assert bytes(await adapter.read(nodeid, 3, size)) == b"small"[3 : 3 + size]
    assert bytes(await adapter.read(nodeid, 5, size)) == b""


@pytest.mark.trio
async def test_what_is_not_in_the_page_cache_is_read_in_a_thread(adapter: Any, union: Union) -> None:
    nodeid = await _nodeid(adapter, b"big")
    held = union.read_fd(nodeid)
    os.fsync(held.fd)
    os.posix_fadvise(held.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if via_pyfuse3._read_cached(held.fd, 0, _BIG) is not None:
        pytest.skip("this filesystem keeps its pages in the cache")
    assert bytes(await adapter.read(nodeid, 0, _BIG)) == b"b" * _BIG


@pytest.mark.trio
async def test_open_for_truncation_truncates_without_copying(
    adapter: Any, union: Union, gated: SimpleNamespace, scratch: Path
) -> None:
    nodeid = await _nodeid(adapter, b"big")
    opened = await adapter.open(nodeid, os.O_WRONLY | os.O_TRUNC, _CTX)
    assert opened.fh == nodeid
    assert union.getattr(nodeid).size == 0
    assert gated.jobs == []
    assert (scratch / "upper" / "big").stat().st_size == 0
    assert (scratch / "lower" / "big").stat().st_size == _BIG


@pytest.mark.trio
async def test_opening_for_writing_alone_copies_nothing(adapter: Any, scratch: Path) -> None:
    nodeid = await _nodeid(adapter, b"big")
    await adapter.open(nodeid, os.O_RDWR, _CTX)
    assert os.listdir(scratch / "upper") == []


@pytest.mark.trio
async def test_a_union_without_upper_is_not_opened_for_writing(union: Union) -> None:
    read_only: Any = via_pyfuse3._Adapter(union, ServeOptions(read_only=True))
    nodeid = await _nodeid(read_only, b"small")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        with pytest.raises(pyfuse3.FUSEError) as refused:
            await read_only.open(nodeid, flags, _CTX)
        assert refused.value.errno == errno.EROFS
    assert (await read_only.open(nodeid, os.O_RDONLY, _CTX)).fh == nodeid


@pytest.mark.trio
async def test_only_requests_that_change_the_node_wait_for_its_copy(
    adapter: Any, gated: SimpleNamespace, scratch: Path
) -> None:
    nodeid = await _nodeid(adapter, b"big")
    written = []

    async def write(offset: int) -> None:
        written.append(await adapter.write(nodeid, offset, b"new"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, 0)
        nursery.start_soon(write, 100)
        await gated.begun.wait()
        assert (await adapter.getattr(nodeid, _CTX)).st_size == _BIG
        assert bytes(await adapter.read(nodeid, 0, 3)) == b"bbb"
        await adapter.mkdir(ROOT, b"other", 0o755, _CTX)
        await trio.testing.wait_all_tasks_blocked()
        assert written == []
        gated.gate.set()
    assert written == [3, 3]
    assert len(gated.jobs) == 1
    data = (scratch / "upper" / "big").read_bytes()
    assert (data[:4], data[99:104], len(data)) == (b"newb", b"bnewb", _BIG)


@pytest.mark.trio
async def test_a_failed_copy_fails_the_change_and_leaves_the_file(
    adapter: Any, union: Union, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    nodeid = await _nodeid(adapter, b"big")
    begin = union.copyup_begin

    def begin_failing(nodeid: int, size: int | None = None, need: int = WHOLE) -> Any:
        job = begin(nodeid, size, need)
        assert job is not None

        def full() -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(job, "copy", full)
        return job

    monkeypatch.setattr(union, "copyup_begin", begin_failing)
    with pytest.raises(pyfuse3.FUSEError) as refused:
        await adapter.write(nodeid, 0, b"new")
    assert refused.value.errno == errno.ENOSPC
    assert bytes(await adapter.read(nodeid, 0, 3)) == b"bbb"
    assert os.listdir(scratch / "upper") == []
    assert [os.listdir(place) for place in (scratch / "work").glob("live-*")] == [[]]
    monkeypatch.undo()
    assert await adapter.write(nodeid, 0, b"new") == 3


@pytest.mark.trio
async def test_a_copy_is_cut_short_when_the_daemon_leaves(adapter: Any, gated: SimpleNamespace, scratch: Path) -> None:
    nodeid = await _nodeid(adapter, b"big")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(adapter.write, nodeid, 0, b"new")
        await gated.begun.wait()
        nursery.cancel_scope.cancel()
    assert gated.jobs[0].cancelled
    assert os.listdir(scratch / "upper") == []
    assert [os.listdir(place) for place in (scratch / "work").glob("live-*")] == [[]]


@pytest.mark.trio
async def test_a_rename_copies_a_big_file_in_a_thread(adapter: Any, gated: SimpleNamespace, scratch: Path) -> None:
    gated.gate.set()
    await adapter.rename(ROOT, b"big", ROOT, b"moved", 0, _CTX)
    assert len(gated.jobs) == 1
    assert (scratch / "upper" / "moved").stat().st_size == _BIG
    assert (await adapter.lookup(ROOT, b"big", _CTX)).st_ino == 0


@pytest.mark.trio
async def test_setattr_takes_only_the_fields_that_are_asked_for(adapter: Any, union: Union) -> None:
    nodeid = await _nodeid(adapter, b"small")
    before = union.getattr(nodeid)
    attr = pyfuse3.EntryAttributes()
    attr.st_mode, attr.st_size, attr.st_mtime_ns, attr.st_uid = stat.S_IFREG | 0o600, 1, 12_345_678_901, 12345
    fields: Any = SimpleNamespace(
        update_mode=True,
        update_mtime=True,
        update_atime=False,
        update_uid=False,
        update_gid=False,
        update_size=False,
        update_ctime=False,
    )
    answer = await adapter.setattr(nodeid, attr, fields, None, _CTX)
    after = union.getattr(nodeid)
    assert after == before._replace(
        mode=stat.S_IFREG | 0o600, mtime_ns=12_345_678_901, ctime_ns=after.ctime_ns, blocks=after.blocks
    )
    assert (answer.st_mode, answer.st_mtime_ns) == (after.mode, after.mtime_ns)


@pytest.mark.trio
async def test_statfs_says_how_long_names_may_be(adapter: Any) -> None:
    assert (await adapter.statfs(_CTX)).f_namemax == 255


@pytest.mark.trio
async def test_flush_is_unsupported_so_the_kernel_sends_it_once(adapter: Any) -> None:
    with pytest.raises(pyfuse3.FUSEError) as refused:
        await adapter.flush(1)
    assert refused.value.errno == errno.ENOSYS
