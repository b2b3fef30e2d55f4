"""One table: for each opcode a decoder of the request, the verb of the Union that serves it, an encoder of the answer.

Takes and returns bytes; has no descriptor of the device. Knows decoders, encoders and the Union's verbs; decides which
requests wait.

Quick requests are answered at once. Slow work is put on `slow`: reads that must wait for a disk as work for any thread,
large changes of content as a `ThreadTask` (see `finish_task`), copy-ups as a `CopyUpJob` (`finish`).
While a file is being copied up, requests that would change it wait; all others are served, reads of that file included,
since it is unchanged. A request that is malformed or meets a bug is answered EIO and logged; serving goes on.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from unionfs.core.attrs import ATTRIBUTES, VIEW, WHOLE, Entry, Invalidation
from unionfs.core.ledger import Cause
from unionfs.core.node_record import OPENED, NodeRecord
from unionfs.core.recorded_node import Notes
from unionfs.core.union import Union
from unionfs.fuse.errors import errno_of
from unionfs.fuse.kernel import abi, data, decode, encode, handlers, views
from unionfs.fuse.kernel.abi import Op
from unionfs.fuse.kernel.completion import Completion
from unionfs.fuse.kernel.decode import BODY, Head, MalformedError
from unionfs.fuse.kernel.device import Device
from unionfs.fuse.kernel.handlers import Reply
from unionfs.fuse.kernel.opens import Opens
from unionfs.fuse.kernel.session import MAX_WRITE, Session, UnsupportedError, Waiting

log = logging.getLogger(__name__)

Serve = Callable[["Dispatcher", int, int, Head, memoryview, int], Reply]
"""(dispatcher, unique, node id, header, request, its length) -> the whole reply; None: no reply, or a later one."""

_in_header: Final = abi.IN_HEADER.unpack_from


class CopyUpJob(NamedTuple):
    """`copy()` is to be run in a thread, then `Dispatcher.finish(job, error)` on the loop's."""

    waiting: Waiting
    copy: Callable[[], None]
    commit: Callable[[], None]
    abort: Callable[[], None]


class Row(NamedTuple):
    """How one opcode is served. A request shorter than `fixed` bytes behind its header is malformed."""

    fixed: int
    serve: Serve | None
    """None: `error` is always the answer."""
    error: int = errno.ENOSYS
    why: str = ""


def _row(
    layout: struct.Struct | None,
    decoder: Callable[[Head, memoryview, int], tuple[Any, ...]],
    verb: Callable[..., Any],
    encoder: Callable[[Dispatcher, int, int, Any], bytes],
    *,
    extra: int = 0,
    copies_up: Callable[[tuple[Any, ...]], int] | None = None,
) -> Row:
    """The common case. `extra`: bytes a request has at least beside its layout; `copies_up`: which file must be in the
    upper branch first, for a change of its attributes or names.
    """

    def serve(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes:
        return encoder(self, unique, nodeid, verb(self.union, nodeid, *decoder(head, buf, end)))

    def serve_in_upper(
        self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int
    ) -> bytes | None:
        args = decoder(head, buf, end)
        if copies_up is not None and self.must_wait(unique, copies_up(args), None, buf, ATTRIBUTES):
            return None
        return encoder(self, unique, nodeid, verb(self.union, nodeid, *args))

    return Row((layout.size if layout else 0) + extra, serve if copies_up is None else serve_in_upper)


def _never(error: int, why: str) -> Row:
    return Row(0, None, error, why)


# -- answers ---------------------------------------------------------------------------------------------------------


def _empty(self: Dispatcher, unique: int, nodeid: int, result: object) -> bytes:
    return encode.empty(unique)


def _entry(self: Dispatcher, unique: int, nodeid: int, entry: Entry) -> bytes:
    return self.encoder.entry(unique, entry)


def _data(self: Dispatcher, unique: int, nodeid: int, payload: bytes) -> bytes:
    return encode.data(unique, payload)


# -- which file a request needs in the upper branch ------------------------------------------------------------------


def _the_linked(args: tuple[Any, ...]) -> int:
    linked: int = args[0]
    return linked


# -- verbs whose arguments come in another order on the wire ---------------------------------------------------------


def _link(union: Union, new_parent: int, nodeid: int, name: bytes) -> Entry:
    return union.link(nodeid, new_parent, name)


_NAME: Final = 2  # the shortest name and its NUL
_LOCKS: Final = "locks are not negotiated: the kernel keeps them itself, for all users of the mount"
_DAX: Final = "a window for virtiofs, never negotiated"
_NO_STATE: Final = "no open-file state: after the first ENOSYS the kernel opens by itself"

TABLE: Final[dict[int, Row]] = {
    Op.LOOKUP: Row(_NAME, handlers.lookup),
    Op.FORGET: Row(abi.FORGET_IN.size, handlers.forget),
    Op.BATCH_FORGET: Row(abi.BATCH_FORGET_IN.size, handlers.batch_forget),
    Op.GETATTR: Row(abi.GETATTR_IN.size, handlers.getattr_),
    Op.SETATTR: Row(abi.SETATTR_IN.size, handlers.setattr_),
    Op.STATX: Row(abi.STATX_IN.size, handlers.statx),
    Op.READLINK: _row(None, decode.nothing, Union.readlink, _data),
    Op.SYMLINK: _row(None, decode.symlink, Union.symlink, _entry, extra=_NAME + 1),
    Op.MKNOD: Row(abi.MKNOD_IN.size + _NAME, handlers.mknod),
    Op.MKDIR: _row(abi.MKDIR_IN, decode.mkdir, Union.mkdir, _entry, extra=_NAME),
    Op.TMPFILE: Row(abi.CREATE_IN.size, handlers.tmpfile),
    Op.UNLINK: _row(None, decode.name, Union.unlink, _empty, extra=_NAME),
    Op.RMDIR: Row(_NAME, handlers.rmdir),
    Op.RENAME: Row(abi.RENAME_IN.size + 2 * _NAME, handlers.rename),
    Op.RENAME2: Row(abi.RENAME2_IN.size + 2 * _NAME, handlers.rename2),
    Op.LINK: _row(abi.LINK_IN, decode.link, _link, _entry, extra=_NAME, copies_up=_the_linked),
    Op.READ: Row(abi.READ_IN.size, handlers.read),
    Op.WRITE: Row(abi.WRITE_IN.size, handlers.write),
    Op.FALLOCATE: Row(abi.FALLOCATE_IN.size, handlers.fallocate),
    Op.LSEEK: Row(abi.LSEEK_IN.size, handlers.lseek),
    Op.COPY_FILE_RANGE: Row(abi.COPY_FILE_RANGE_IN.size, handlers.copy_file_range),
    Op.COPY_FILE_RANGE_64: Row(abi.COPY_FILE_RANGE_IN.size, handlers.copy_file_range_64),
    Op.STATFS: Row(0, handlers.statfs),
    Op.FSYNC: Row(abi.FSYNC_IN.size, handlers.fsync),
    Op.FSYNCDIR: Row(abi.FSYNC_IN.size, handlers.fsync),
    Op.SYNCFS: Row(abi.SYNCFS_IN.size, handlers.syncfs),
    Op.SETXATTR: Row(abi.SETXATTR_IN_COMPAT.size + _NAME, handlers.setxattr),
    Op.GETXATTR: Row(abi.GETXATTR_IN.size + _NAME, handlers.getxattr),
    Op.LISTXATTR: Row(abi.GETXATTR_IN.size, handlers.listxattr),
    Op.REMOVEXATTR: Row(_NAME, handlers.removexattr),
    Op.READDIR: Row(abi.READ_IN.size, handlers.readdir),
    Op.READDIRPLUS: Row(abi.READ_IN.size, handlers.readdirplus),
    Op.INIT: Row(abi.INIT_IN_COMPAT.size, handlers.init),
    Op.DESTROY: Row(0, handlers.destroy),
    Op.INTERRUPT: Row(abi.INTERRUPT_IN.size, handlers.interrupt),
    Op.OPEN: Row(abi.OPEN_IN.size, handlers.open_),
    Op.OPENDIR: _never(errno.ENOSYS, _NO_STATE),
    Op.CREATE: _never(errno.ENOSYS, "no open-file state: the kernel sends MKNOD instead"),
    Op.FLUSH: _never(errno.ENOSYS, "nothing is held back that a close could fail to write"),
    Op.RELEASE: Row(abi.RELEASE_IN.size, handlers.release),
    Op.RELEASEDIR: Row(0, handlers.done, why="no open-file state"),
    Op.ACCESS: _never(errno.ENOSYS, "the kernel checks access rights (default_permissions)"),
    Op.IOCTL: Row(abi.IOCTL_IN.size, handlers.ioctl),
    Op.POLL: _never(errno.ENOSYS, "regular files are always ready; pipes and sockets are the kernel's"),
    Op.BMAP: _never(errno.ENOSYS, "files have no blocks of a device"),
    Op.GETLK: _never(errno.ENOSYS, _LOCKS),
    Op.SETLK: _never(errno.ENOSYS, _LOCKS),
    Op.SETLKW: _never(errno.ENOSYS, _LOCKS),
    Op.SETUPMAPPING: _never(errno.ENOSYS, _DAX),
    Op.REMOVEMAPPING: _never(errno.ENOSYS, _DAX),
    Op.NOTIFY_REPLY: Row(0, handlers.no_reply, why="answers NOTIFY_RETRIEVE, which is never sent"),
    Op.CUSE_INIT: _never(errno.ENOSYS, "for character devices in userspace (CUSE), not for filesystems"),
}
"""Every opcode of <linux/fuse.h>. One that is missing is newer than the header: ENOSYS, and the kernel stops asking."""

_LOOKUP: Final = 1
_GETATTR: Final = 3
_SETATTR: Final = 4
_MKNOD: Final = 8
_READ: Final = 15
_WRITE: Final = 16
_RELEASE: Final = 18
_SETXATTR: Final = 21
_GETXATTR: Final = 22
_REMOVEXATTR: Final = 24
_FORGET: Final = 2
_BATCH_FORGET: Final = 42
"""Of Op, as numbers that compiled code has no need to look up; served by the same functions as in TABLE."""

_WITHOUT_XATTRS: Final[dict[int, Row]] = dict.fromkeys(
    (Op.SETXATTR, Op.GETXATTR, Op.LISTXATTR, Op.REMOVEXATTR),
    _never(errno.ENOSYS, "extended attributes are not wanted: after the first ENOSYS the kernel says EOPNOTSUPP"),
)
"""What replaces the rows of TABLE."""

_NAMES: Final = {int(op): op.name for op in Op}


def _nowhere(_notification: bytes) -> None:
    """Stand in for `Dispatcher.notify` until there is a device."""


def _run(run: Callable[[], None]) -> bytes:
    """Run work that has no reply, as `data.Work`."""
    run()
    return b""


class Dispatcher:
    """Serves requests of one mount, one at a time, on one thread."""

    def __init__(self, union: Union, session: Session) -> None:
        self.union = union  # immutable
        self.session = session  # immutable
        self.encoder = session.encoder  # immutable; replaced by `for_view` only
        self.reader = data.Reader(MAX_WRITE)  # immutable
        self.view: Dispatcher | None = None  # of the view of the union's lowers; set once, by `views`
        self.completion: Completion | None = None  # set once, with `view`
        self.slow: list[
            data.Work | data.ThreadTask | CopyUpJob | bytes
        ] = []  # filled by handle and finish; emptied by their callers
        self.without_privileges: set[int] = set()
        """Files that have neither set-id bits nor capabilities: made or cleared by a write, and not changed since."""
        self.capability_removed = (0, 0)
        """Node id and pid of the last REMOVEXATTR of a file capability, until the SETATTR that follows it."""
        self.opens: Opens | None = None  # set once: under passthrough
        self.notify: Callable[[bytes], None] = _nowhere  # set once, by the loop: sends a notification, from a thread
        kept = session.kept
        self.record: NodeRecord | None = kept.record if kept is not None else None  # replaced by `for_view` only
        self.continues = kept is not None and kept.continues  # immutable: another daemon has served before this one
        self._changes: dict[int, bool] = kept.changes if kept is not None else {}
        self._refused = kept.refused if kept is not None else 0  # immutable
        self.unanswered = kept.unanswered if kept is not None else Notes()  # replaced by `views`; emptied by take_back
        session.continue_counting()
        self._counts: list[int] = session.counts
        self._recorded_counts: Any = session.recorded_counts
        self.serving: Head = (0,) * 9  # the header of the request in hand
        union.ledger.current_cause = self._cause
        if session.flags & abi.Init.EXPORT_SUPPORT:
            union.keep_handles()
        union.set_run_later(self._run_later)
        self._waiting = session.waiting
        table = TABLE if session.options.xattrs else TABLE | _WITHOUT_XATTRS
        rows = [table.get(code) for code in range(len(self._counts))]
        self._serve: list[Serve | None] = [row.serve if row else None for row in rows]
        self._least = [BODY + row.fixed if row else BODY for row in rows]
        self._errors = [row.error if row else errno.ENOSYS for row in rows]

    def pass_through(self, device: Device) -> None:
        """Let the kernel read and write the branches' files itself, as the options ask. To be called once, before the
        first open."""
        self.opens = self.session.opens = Opens(device, self.record)
        self.encoder.written = self.opens.written

    def for_view(self, union: Union) -> Dispatcher:
        """Make the dispatcher for the view `union` on the same connection."""
        made = Dispatcher(union, self.session)
        made.encoder = encode.Encoder(self.session.options.timeout_s)
        made.encoder.set_generation(self.session.view_generation)
        made.reader, made.slow, made._waiting = self.reader, self.slow, {}
        made.record, made._changes, made._refused = None, {}, 0  # the requests are recorded already
        made.unanswered = Notes()
        made._serve[Op.READDIR], made._serve[Op.READDIRPLUS] = views.readdir, views.readdirplus
        return made

    def handle(self, buf: memoryview, end: int) -> Reply:
        """Serve the request `buf[:end]`: its reply, or None when there is none, or when it comes later (see `slow`).

        Raises: UnsupportedError, from INIT only.
        """
        if end < BODY:
            log.error("malformed request: %d bytes are no header", end)
            return None
        head = _in_header(buf)
        opcode: int = head[1]
        if opcode < len(self._counts):
            count = self._counts[opcode] + 1
            self._counts[opcode] = count
            if self._recorded_counts is not None:
                self._recorded_counts[opcode] = count
        return self.answer(head, buf, end)

    def handle_and_log(self, buf: memoryview, end: int) -> Reply:
        """As `handle`, and log a line for the request."""
        reply = self.handle(buf, end)
        if end >= BODY:
            _length, opcode, unique, nodeid, uid, _gid, pid, *_ = _in_header(buf)
            name = Op(opcode).name if opcode in TABLE else str(opcode)
            outcome = "no reply yet"
            if reply is not None:
                length, error, _unique = abi.OUT_HEADER.unpack_from(reply)
                outcome = errno.errorcode.get(-error, str(error)) if error else f"{length} bytes"
            log.debug("%d %s node %d by uid %d pid %d: %s", unique, name, nodeid, uid, pid, outcome)
        return reply

    def serve_again(self, request: bytes) -> Reply:
        """Serve a request that was counted before. Returns its reply, or None as `handle` does."""
        return self.answer(_in_header(request), memoryview(request), len(request))

    def is_forget(self, buf: memoryview) -> bool:
        """Whether a message is a FORGET or BATCH_FORGET."""
        return _in_header(buf)[1] in (int(Op.FORGET), int(Op.BATCH_FORGET))

    def answer(self, head: Head, buf: memoryview, end: int) -> Reply:
        """Serve the request `buf[:end]` with the header `head`, as `handle` does, but uncounted."""
        self.serving = head
        record = self.record
        if record is None:
            return self._serve_request(head, buf, end) if head[3] < VIEW else views.answer(self, head, buf, end)
        unique = head[2]
        is_resent = unique >> _RESEND_SHIFT != 0
        if is_resent:
            unique &= _UNIQUE
        record.serve(unique)
        if self._refused and unique == self._refused:
            log.error("a request was in hand at several deaths of the daemon: %s is answered EIO", _NAMES.get(head[1]))
            return None if head[1] in _UNANSWERED else encode.error(head[2], errno.EIO)
        if head[3] >= VIEW:
            return views.answer(self, head, buf, end)
        if head[1] in _ONCE:
            reply = self._serve_once(record, unique, is_resent, head, buf, end)
        else:
            reply = self._serve_request(head, buf, end)
        if is_resent:
            self.take_back(record, unique)
        return reply

    def continue_serving(self, last: memoryview) -> None:
        """Finish the work of the daemon before that no resent request covers: FORGETs, if its `last` request was one,
        and the names of hard links for its view. Before any other request."""
        record = self.record
        assert record is not None
        if record.has_view:
            views.dispatcher(self)
        head = _in_header(last)
        length, opcode, unique = head[0], head[1], head[2]
        if opcode not in (_FORGET, _BATCH_FORGET) or not BODY < length <= len(last):
            return
        begun = record.forgotten_lines(unique)
        if opcode == _BATCH_FORGET:
            handlers.batch_forget(self, unique, head[3], head, last, length, begun)
        elif not begun:
            if head[3] >= VIEW:
                views.answer(self, head, last, length)
            else:
                handlers.forget(self, unique, head[3], head, last, length)

    def take_back(self, record: NodeRecord, unique: int) -> None:
        """Take back the lookups and opens that the daemon before has counted for this request, which is sent again: the
        kernel never got its answer. `record`: that of the nodes of this dispatcher."""
        if not self.unanswered.are_for(unique):
            return
        record.drop_earlier_notes()
        notes, self.unanswered = self.unanswered.notes, Notes()
        for note in notes:
            if not note & OPENED:
                if self.union.forget(note):
                    self.forget_node(note)
            elif self.opens is not None:
                self.opens.take_back(note)

    def _serve_once(
        self, record: NodeRecord, unique: int, is_resent: bool, head: Head, buf: memoryview, end: int
    ) -> Reply:
        """Serve a change that must not be done twice, and record it. If the daemon before has done it, make the answer
        that it would have given."""
        before = self._changes.pop(unique, None) if is_resent else None
        if before is not None and head[1] == _RELEASE:  # better counted too seldom than twice
            return encode.empty(head[2])
        if before and (reply := self._done_before(head, buf, end)) is not None:
            return reply
        if before is None and not self._has_to_change(head, buf, end):
            return self._serve_request(head, buf, end)
        record.begin(unique)
        reply = self._serve_request(head, buf, end)
        if reply is None:
            last = self.slow[-1] if self.slow else None
            record.finish(isinstance(last, bytes))  # the reply comes at once, or the request waits and begins again
            return None
        code = -abi.OUT_HEADER.unpack_from(reply)[1] if len(reply) == abi.OUT_HEADER.size else 0
        if before is not None and code and code == _DONE_ALREADY.get(head[1]):
            found = self._done_before(head, buf, end)
            if found is not None:
                reply, code = found, 0
        record.finish(code == 0)
        return reply

    def _has_to_change(self, head: Head, buf: memoryview, end: int) -> bool:
        """Whether a request that is served for the first time changes anything. The kernel has checked names, but not
        attributes: if the attribute to be removed is missing, the next daemon must not assume that this one has removed
        it."""
        try:
            if head[1] == _REMOVEXATTR:
                return self.union.find_xattr(head[3], decode.name_at(buf, BODY, end)) is not None
            if head[1] == _SETXATTR:
                extended = bool(self.session.flags & abi.Init.SETXATTR_EXT)
                name, _value, flags, _clear_sgid = decode.setxattr(buf, end, extended=extended)
                return not flags & os.XATTR_CREATE or self.union.find_xattr(head[3], name) is None
        except (OSError, MalformedError):
            pass
        return True

    def _done_before(self, head: Head, buf: memoryview, end: int) -> Reply:
        """Return the reply to a change that the daemon before has done; None if it must be done again."""
        opcode, unique = head[1], head[2]
        if opcode not in _MADE:
            return encode.empty(unique) if opcode in _DONE_ALREADY else None
        # Up to the first NUL: behind the name of a symlink stands its target.
        name = bytes(buf[BODY + _MADE[opcode] : end]).partition(b"\0")[0]
        try:
            entry = self.union.find(head[3], name)
        except OSError:
            return None
        return self.encoder.entry(unique, entry) if entry is not None else None

    def _serve_request(self, head: Head, buf: memoryview, end: int) -> Reply:
        length, opcode, unique, nodeid = head[0], head[1], head[2], head[3]
        serve = self._serve[opcode] if opcode < len(self._serve) else None
        if serve is None:
            return encode.error(unique, self._errors[opcode] if opcode < len(self._errors) else errno.ENOSYS)
        without_extensions = end - head[7] * 8
        try:
            if length != end or without_extensions < self._least[opcode]:
                raise MalformedError(f"{end} bytes where {length} are announced and {self._least[opcode]} needed")
            # The commonest opcodes by name: compiled code calls these functions directly, without Python call objects.
            if opcode == _LOOKUP:
                return handlers.lookup(self, unique, nodeid, head, buf, without_extensions)
            if opcode == _GETATTR:
                return handlers.getattr_(self, unique, nodeid, head, buf, without_extensions)
            if opcode == _SETATTR:
                return handlers.setattr_(self, unique, nodeid, head, buf, without_extensions)
            if opcode == _READ:
                return handlers.read(self, unique, nodeid, head, buf, without_extensions)
            if opcode == _WRITE:
                return handlers.write(self, unique, nodeid, head, buf, without_extensions)
            if opcode == _MKNOD:
                return handlers.mknod(self, unique, nodeid, head, buf, without_extensions)
            if opcode == _GETXATTR:
                return handlers.getxattr(self, unique, nodeid, head, buf, without_extensions)
            reply: Reply = serve(self, unique, nodeid, head, buf, without_extensions)
            return reply
        except UnsupportedError:
            raise
        except MalformedError as malformed:
            log.error("malformed %s request: %s", Op(opcode).name, malformed)
            return None if opcode in _UNANSWERED else encode.error(unique, errno.EIO)
        except Exception as exc:  # noqa: BLE001  a bug must not end the daemon: it becomes EIO and a traceback
            return None if opcode in _UNANSWERED else encode.error(unique, errno_of(exc))

    def _run_later(self, run: Callable[[], None]) -> None:
        self.slow.append(partial(_run, run))

    def _cause(self) -> Cause:
        opcode, pid = self.serving[1], self.serving[6]
        return Cause(_NAMES.get(opcode) or str(opcode), pid)

    def forget_node(self, nodeid: int) -> None:
        """Drop the dispatcher's state of a node that the kernel has forgotten."""
        if nodeid in self.without_privileges:
            self.without_privileges.discard(nodeid)
        if nodeid in self.encoder.set_id:
            self.encoder.set_id.discard(nodeid)

    def may_send(self, stale: Invalidation) -> bool:
        """Whether an invalidation can be sent now: not while a request that waits for a copy-up holds the inode lock
        which the kernel would need. Called with each invalidation."""
        self.without_privileges.discard(stale.nodeid)
        if not self._waiting:
            return True
        locked = self.session.locked
        return stale.nodeid not in locked and stale.child not in locked

    def must_wait(self, unique: int, nodeid: int, size: int | None, buf: memoryview, need: int = WHOLE) -> bool:
        """Whether the request must wait until `nodeid` is copied up; if so it is kept, and served by `finish`. `need`:
        what it needs of the copy (core.fill).

        Raises: what Union.copyup_begin raises.
        """
        waiting = self._waiting.get(nodeid) if self._waiting else None
        if waiting is None:
            copyup = self.union.copyup_begin(nodeid, size, need)
            if copyup is None:
                return False
            waiting = self.session.hold(nodeid, copyup.cancel)
            self.slow.append(
                CopyUpJob(
                    waiting,
                    copyup.copy,
                    partial(self.union.copyup_commit, copyup),
                    partial(self.union.copyup_abort, copyup),
                )
            )
        waiting.requests[unique] = bytes(buf[: _in_header(buf)[0]])
        return True

    def finish_task(self, task: data.ThreadTask, outcome: int, error: Exception | None) -> Reply:
        """Return the reply to the request of a task that has ended, with `error` or without."""
        if self.record is not None:
            self.record.serve(task.unique & _UNIQUE)  # what it counts is for its request
        try:
            if error is None:
                return task.answer(outcome)
            return encode.error(task.unique, errno_of(error)) if task.unique else None
        except Exception as exc:  # noqa: BLE001  as in answer
            return encode.error(task.unique, errno_of(exc))

    def finish(self, job: CopyUpJob, error: Exception | None) -> list[bytes]:
        """Commit a copy-up whose bytes are copied, or undo it after an `error`. Returns the waiting requests' replies.

        The waiting requests are served as if they had just come, so `slow` may hold new work afterwards.
        """
        waiting = job.waiting
        given_up = waiting.given_up
        try:
            if error is None and not given_up:
                job.commit()
            else:
                job.abort()
        except Exception as exc:  # noqa: BLE001  a bug must not end the daemon: it becomes the answer of the waiting requests
            error = exc
        replies = []
        for unique, request in self.session.release(waiting).items():
            if unique == given_up:
                replies.append(encode.error(unique, errno.EINTR))
            elif error is not None and not given_up:
                replies.append(encode.error(unique, errno_of(error)))
            else:
                reply = self.answer(_in_header(request), memoryview(request), len(request))
                if reply is not None:
                    replies.append(bytes(reply))
        error = None  # its traceback may hold this frame: a cycle, which would keep the copy's descriptors open
        return replies


_UNIQUE: Final = abi.UNIQUE_RESEND - 1
_RESEND_SHIFT: Final = 63  # of UNIQUE_RESEND: compiled code shifts more quickly than it masks such numbers

_MADE: Final[dict[int, int]] = {
    int(Op.MKNOD): abi.MKNOD_IN.size,
    int(Op.MKDIR): abi.MKDIR_IN.size,
    int(Op.SYMLINK): 0,
    int(Op.LINK): abi.LINK_IN.size,
}
"""Changes that are answered with the entry of a new name: the layout before that name."""

_DONE_ALREADY: Final[dict[int, int]] = {
    **dict.fromkeys(_MADE, errno.EEXIST),
    **dict.fromkeys(map(int, (Op.UNLINK, Op.RMDIR, Op.RENAME, Op.RENAME2)), errno.ENOENT),
    int(Op.SETXATTR): errno.EEXIST,
    int(Op.REMOVEXATTR): errno.ENODATA,
}
"""Changes that must not be done twice: the errno that the second time gives, since the kernel keeps the directory
locked."""

_ONCE: Final = frozenset((*_DONE_ALREADY, int(Op.TMPFILE), _RELEASE))

_UNANSWERED: Final = frozenset((Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT, Op.NOTIFY_REPLY))
"""Requests that get no reply, not even an error."""
