"""Copy blocks of a lower file to the upper's partial file (core.partial): those that a write touches, or all.

A write first copies the lower's blocks that its bytes lie in. When the file has an eighth of its blocks, each further
change waits for some more, copied in a thread, until the file is whole; a transport may copy more while no requests
come. A whole file loses its marks once its data are on the device. The attributes that filling changes besides the data
(times, privileges) are recorded on disk before, and restored.

Knows nodes and branches.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from time import perf_counter
from typing import Final

from unionfs.core import partial, placement
from unionfs.core.attrs import ATTRIBUTES, WHOLE
from unionfs.core.copydata import Copy
from unionfs.core.fds import FileFd
from unionfs.core.node import FileNode
from unionfs.core.partial import Partial
from unionfs.core.staging import log_warning
from unionfs.core.union_state import UnionState, refuse
from unionfs.partial_record import Before, Record
from unionfs.syscalls import files

_FILL_FROM: Final = 8  # when one block in this many is the upper's own, the rest follows
_AT_ONCE: Final = 8 << 20  # bytes that are copied at once, and that a change waits for ...
_AT_ONCE_MOST: Final = 128 << 20  # ... of a large file half of it: each piece is handed to a thread and back
_ROOM: Final = 8  # a file is completed without a request if it needs at most 1/N of the free space


class Fill:
    """Bytes of a lower file on their way to a partial file; has the methods of copyup.CopyUp."""

    def __init__(
        self, node: FileNode, part: Partial, held: FileFd, runs: list[tuple[int, int]], before: Before
    ) -> None:
        self.node = node  # immutable
        self.part = part  # immutable
        self.held = held  # immutable
        self.runs = runs  # immutable: ranges of bytes
        self.before = before  # immutable
        self.settles = False  # set once: all data are to be on the device afterwards, and the marks to go
        self.size: int | None = None  # set once: the file is to be truncated to this before the marks go
        self.failure: OSError | None = None  # set by `copy`: why it has left out the runs after `filled`
        self.filled = 0  # set by `copy`: how many of the runs have been copied
        self._copy = Copy(held.lower.fd if held.lower is not None else -1, held.fd, part.limit)

    def copy(self) -> None:
        """Copy the data, in any thread. Raises OSError; EINTR after `cancel`. Runs that no change needs are left out if
        they fail."""
        for start, end in self.runs:
            try:
                self._copy_run(start, end)
            except OSError as exc:
                with contextlib.suppress(OSError):
                    partial.punch(self.held.fd, start, end)
                if self.settles or self._copy.cancelled:
                    raise
                self.failure = OSError(exc.errno, exc.strerror or str(exc))
                break
            self.filled += 1
        if self.settles:
            os.fdatasync(self.held.fd)

    def _copy_run(self, start: int, end: int) -> None:
        if self.held.lower is None or self._copy.copy_data(start, end) < end:
            raise partial.missing_error()

    def cancel(self) -> None:
        """Make a running `copy` stop soon. May be called from any thread."""
        self._copy.cancelled = True

    @property
    def copied(self) -> int:
        """Return the bytes moved so far."""
        return self._copy.copied


def begin(tree: UnionState, node: FileNode, size: int | None, need: int) -> Fill | None:
    """Begin to fill a partial file as far as a change needs it, for a worker thread; `size`: the file will be truncated
    to this. None: nothing to copy, or so little that `prepare` does it at once. Raises OSError."""
    part = _partial(tree, node)
    if part is None or need == ATTRIBUTES:
        return None
    if need == WHOLE or not tree.writes_blocks:
        return _begin(tree, node, part, size, part.limit, settles=True)
    if size is not None or part.has_just_grown:  # a truncation needs no data, and a change waits only once
        part.has_just_grown = False
        return None
    if part.has_own and not part.bits and part.limit:
        tree.partial_fd(node)  # finds out which blocks it has
    if not part.has_own or not part.missing or (len(part.bits) - part.missing) * _FILL_FROM < len(part.bits):
        return None
    if part.is_stuck or not _has_room(part, tree.partial_fd(node), 1):
        return None
    most = max(_AT_ONCE, min(part.limit // 2, _AT_ONCE_MOST))
    try:
        return _begin(tree, node, part, size, most, settles=False)
    except OSError as exc:  # the change itself may succeed
        _get_stuck(node, part, exc)
        return None


def begin_idle(tree: UnionState) -> Fill | None:
    """Begin to copy some more of a file that has got blocks, for a worker thread, while there is nothing else to do.
    None: no file lacks data that the upper has room for. An error of the copying goes to `give_up`. Raises OSError."""
    while tree.growing:
        nodeid = next(iter(tree.growing))
        node = tree.nodes.find(nodeid)
        part = _partial(tree, node) if isinstance(node, FileNode) and not node.is_dead else None
        tree.growing.discard(nodeid)
        if part is None or not isinstance(node, FileNode) or not part.has_own:
            continue
        held = tree.partial_fd(node)
        if not part.missing:
            _settle_now(tree, part, held)
        elif not part.is_stuck and _has_room(part, held, _ROOM):
            job = _begin(tree, node, part, None, _AT_ONCE, settles=False)
            tree.growing.add(nodeid)
            return job
    return None


def _has_room(part: Partial, held: FileFd, times: int) -> bool:
    """Whether a file's lower file can be read, and `times` as many bytes as it lacks are free."""
    space = os.fstatvfs(held.fd)
    return held.lower is not None and (part.missing << part.shift) * times <= space.f_bavail * space.f_frsize


def _get_stuck(node: FileNode, part: Partial, failure: OSError) -> None:
    """Complete a file no more without a request, until it is opened anew: only an attempt shows a quota or a bad
    disk."""
    part.is_stuck = True
    log_warning("%r is not completed: %s", placement.path_of(node), failure.strerror or str(failure))


def prepare(tree: UnionState, node: FileNode, size: int | None, need: int) -> None:
    """Make the file ready for a change, at once. Raises OSError; EIO if a lower file is missing or has changed."""
    part = _partial(tree, node)
    if part is None or need == ATTRIBUTES:
        return
    if need == WHOLE or not tree.writes_blocks:
        job = _begin(tree, node, part, size, part.limit, settles=True)
        try:
            job.copy()
        except BaseException:
            abort(tree, job)
            raise
        commit(tree, job)
    elif not part.has_own:
        _begin_blocks(tree, node, part)


def _partial(tree: UnionState, node: FileNode) -> Partial | None:
    """Return the state of a partial file; None if it is whole by now."""
    part = node.links.partial if node.links is not None else None
    if part is not None and part.is_settled:
        _become_whole(tree, node)
        return None
    return part


def _become_whole(tree: UnionState, node: FileNode) -> None:
    links = node.rare()
    links.data = links.partial = None
    tree.fds.drop(node)


def _record_of(tree: UnionState, node: FileNode, part: Partial, held: FileFd) -> Record:
    """Return the file's record; one for a file that the kernel's overlay has made."""
    if part.record is not None:
        return part.record
    if held.lower is None:
        raise partial.missing_error()
    lower = os.fstat(held.lower.fd)
    return Record(part.limit, lower.st_size, lower.st_mtime_ns, lower.st_ino)


def _begin_blocks(tree: UnionState, node: FileNode, part: Partial) -> None:
    """Prepare a file that has no data of its own for blocks of its own."""
    part.start()
    held = tree.partial_fd(node)
    if not partial.tells_holes(held.fd):
        refuse(errno.EOPNOTSUPP, node.name)
    part.record = partial.mark_own(held.fd, part.prefix, _record_of(tree, node, part, held))
    part.has_own = True
    tree.fds.drop(node)  # it may lead to the lower file


def _begin(tree: UnionState, node: FileNode, part: Partial, size: int | None, most: int, *, settles: bool) -> Fill:
    if not part.has_own:
        part.start()
    if tree.watcher is not None:
        tree.watcher.seen.pop(node.nodeid, None)  # until `commit` or `abort` the changes of the file are our own
    held = tree.partial_fd(node)
    end = part.limit if size is None else min(size, part.limit)
    runs = part.missing_runs(end, most)
    st = os.fstat(held.fd)
    before = Before(st.st_mtime_ns, st.st_mode & 0o7777, files.find_xattr(held.fd, partial.CAPABILITY) or b"")
    job = Fill(node, part, held, runs, before)
    job.settles, job.size = settles, size
    if runs:
        part.record = _record_of(tree, node, part, held)._replace(limit=part.limit, before=before)
        partial.write_record(held.fd, part.record)
    return job


def commit(tree: UnionState, job: Fill) -> None:
    """Count the copied blocks as the file's own; a whole one loses its marks. Raises OSError."""
    part, held = job.part, job.held
    _put_back(job)
    for start, end in job.runs[: job.filled]:
        part.take(start, end)
    if job.failure is not None:
        _get_stuck(job.node, part, job.failure)
    tree.ledger.count_more(job.copied)
    part.has_just_grown = True
    if job.settles:
        if job.size is not None and job.size < part.limit:
            os.ftruncate(held.fd, job.size)
            part.cut(job.size)
            part.is_recorded = False
        partial.remove_marks(held.fd, part.prefix)
        part.is_settled = True
        if _leads_to(tree, job.node, held):
            _become_whole(tree, job.node)
    elif not part.missing:
        settle_later(tree, job.node, part, held)
    tree.record_own_change(job.node)


def _leads_to(tree: UnionState, node: FileNode, held: FileFd) -> bool:
    """Whether the node is still that of this file of the upper: another program may have replaced it (Union.watch)."""
    if node.links is None or node.links.partial is None or not node.leaf:
        return False
    st, ours = tree.stat(node), os.fstat(held.fd)
    return (st.st_dev, st.st_ino) == (ours.st_dev, ours.st_ino)


def abort(tree: UnionState, job: Fill) -> None:
    """Give up. The copied blocks equal the lower's; the next daemon counts them as the file's own."""
    with contextlib.suppress(OSError):
        _put_back(job)
    tree.record_own_change(job.node)


def _put_back(job: Fill) -> None:
    if job.runs:
        partial.put_back(job.held.fd, job.before)
        if job.part.record is not None:
            job.part.record = job.part.record._replace(before=None)
            partial.write_record(job.held.fd, job.part.record)


def settle_later(tree: UnionState, node: FileNode, part: Partial, held: FileFd) -> None:
    """Have a whole file's data written to the device and its marks removed: when there is nothing else to do, since
    that would slow other writes down; at once if the transport cannot tell."""
    if tree.when_growing is None:
        _settle_now(tree, part, held)
    else:
        _will_grow(tree, node)


def settle_synced(tree: UnionState, node: FileNode) -> None:
    """Remove the marks of a file if it is whole, now that its data are written to the device anyway."""
    part = _partial(tree, node)
    if part is not None and part.has_own and part.bits and not part.missing:
        with contextlib.suppress(OSError):  # the next daemon tries again
            _settle_now(tree, part, tree.partial_fd(node))


def _will_grow(tree: UnionState, node: FileNode) -> None:
    """Enter the file for `begin_idle`."""
    if node.nodeid not in tree.growing:
        tree.growing.add(node.nodeid)
        if tree.when_growing is not None:
            tree.when_growing()


def _settle_now(tree: UnionState, part: Partial, held: FileFd) -> None:
    """Write a whole file's data to the device and remove its marks, in a thread if there is one."""
    settle = functools.partial(_settle, part, held, tree.options.durability != "volatile")
    run = tree.staging.run_later
    if run is not None:
        run(settle)
    else:
        settle()


def _settle(part: Partial, held: FileFd, syncs: bool) -> None:
    with held, contextlib.suppress(OSError):  # the marks stay, and the next daemon tries again
        if syncs:
            os.fdatasync(held.fd)
        partial.remove_marks(held.fd, part.prefix)
        part.is_settled = True


# -- changes of a partial file -----------------------------------------------------------------------------------------


def write(tree: UnionState, node: FileNode, held: FileFd, offset: int, data: bytes | memoryview) -> int:
    """Write at `offset` of a partial file (pwrite(2)). Returns the bytes written. Preconditions: `prepare`d for DATA.

    The missing parts of the blocks at both ends are written with the data, by the same system call.
    """
    part = held.partial
    assert part is not None
    end = offset + len(data)
    if not part.is_recorded:
        _record_limit(part, held)
    if not part.missing or offset >= len(part.bits) << part.shift or end == offset:
        return os.pwrite(held.fd, data, offset)
    since, missing = perf_counter(), part.missing
    left, right = _left_edge(part, held, offset), _right_edge(part, held, end)
    at, until = offset - len(left), end + len(right)
    try:
        reached = at + (os.pwritev(held.fd, (left, data, right), at) if left or right else os.pwrite(held.fd, data, at))
    except OSError:
        _clear(part, held, at, until)
        raise
    part.take(at, reached)
    if reached < until:
        reached, code = _cut_short(part, held, reached, until)
        if reached <= offset:
            refuse(code, node.name)
    if part.missing != missing:
        tree.ledger.count_more((missing - part.missing) << part.shift, perf_counter() - since)
        if part.missing:
            _will_grow(tree, node)
        else:
            settle_later(tree, node, part, held)
    return min(reached, end) - offset


def _left_edge(part: Partial, held: FileFd, offset: int) -> bytes:
    """Return the lower's data, then zeros beyond `limit`, from the beginning of the block of `offset` up to `offset`;
    empty if the block is the upper's own."""
    block = offset >> part.shift
    if part.is_own(block):
        return b""
    start, stop = part.bounds(block)
    edge = _read_lower(held, start, min(offset, stop))
    return edge + bytes(offset - stop) if offset > stop else edge


def _right_edge(part: Partial, held: FileFd, end: int) -> bytes:
    """Return the lower's data from `end` to the end of the block of the byte before `end`; empty if the block is the
    upper's own."""
    block = (end - 1) >> part.shift
    return b"" if part.is_own(block) else _read_lower(held, end, part.bounds(block)[1])


def _read_lower(held: FileFd, start: int, end: int) -> bytes:
    """Read a range of the lower file. EIO if it is missing, or shorter."""
    if start >= end:
        return b""
    data = os.pread(held.lower.fd, end - start, start) if held.lower is not None else b""
    if len(data) < end - start:
        raise partial.missing_error()
    return data


def _cut_short(part: Partial, held: FileFd, reached: int, until: int) -> tuple[int, int]:
    """After a write that ended at `reached` instead of `until` for lack of space: complete the block in which it ended,
    or make it a hole again. Returns the offset up to which the write counts, and the errno for the bytes after that."""
    block, code = reached >> part.shift, errno.ENOSPC
    if not part.is_own(block):
        start, stop = part.bounds(block)
        try:
            rest = _read_lower(held, reached, stop)
            if os.pwrite(held.fd, rest, reached) == len(rest):
                part.take(start, stop)
        except OSError as exc:
            code = exc.errno or code  # EDQUOT, say
        if not part.is_own(block):
            reached = start
    _clear(part, held, reached, until)
    return reached, code


def _clear(part: Partial, held: FileFd, start: int, end: int) -> None:
    """Make the blocks in a range that are still the lower's holes again, after a write that failed."""
    for block in range(start >> part.shift, -(-end >> part.shift)):
        if not part.is_own(block):
            partial.punch(held.fd, *part.bounds(block))


def truncate(tree: UnionState, node: FileNode, size: int) -> None:
    """Truncate a partial file (ftruncate(2)). Preconditions: `prepare`d for DATA."""
    held = tree.write_fd(node)
    part = held.partial
    if part is None or size >= part.limit:
        if part is not None and not part.is_recorded:
            _record_limit(part, held)
        os.ftruncate(held.fd, size)
        return
    os.ftruncate(held.fd, size)
    part.cut(size)
    part.is_recorded = False
    with contextlib.suppress(OSError):  # written before the file grows again; until then its size gives the same limit
        _record_limit(part, held)
    if not part.missing and part.is_recorded:
        settle_later(tree, node, part, held)


def _record_limit(part: Partial, held: FileFd) -> None:
    """Store on disk the offset from which on no data are the lower's. Raises OSError."""
    if part.record is not None:
        part.record = part.record._replace(limit=part.limit)
        partial.write_record(held.fd, part.record)
    part.is_recorded = True
