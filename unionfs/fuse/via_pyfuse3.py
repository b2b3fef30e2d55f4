"""The transport behind libfuse: pyfuse3 requests in, Union verbs out. Protocol adapter only, no semantics.

Runs on trio. The Union is touched on the event loop's thread alone, so whatever stands between two `await`s is a
critical section. What may take long is done in worker threads, over descriptors: the bytes of a copy-up, fsync, and
reads that are not in the page cache. Requests that change a node wait while it is copied up; all others go on, its
readers included. A file handle is a node id: there is no open-file state to keep.

What pyfuse3 cannot carry is not served here: fallocate, lseek(SEEK_DATA, SEEK_HOLE), copy_file_range, O_TMPFILE, ioctl,
syncfs, interrupts. The kernel falls back where it can and returns EOPNOTSUPP where it cannot; locks are local to it. It
applies the umask before it sends the request, so a default ACL cannot override the umask.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from unionfs.core.attrs import ANY_NAME, ATTRIBUTES, DATA, AttrChange, Caller, Invalidation
from unionfs.core.ledger import NO_CAUSE, Cause
from unionfs.core.union import Union
from unionfs.fuse.errors import errno_of
from unionfs.fuse.options import ServeOptions
from unionfs.fuse.pyfuse3_attributes import AttributeReplies
from unionfs.fuse.traffic import Tally
from unionfs.fuse.watching import UNWATCHED_S, Notifier
from unionfs.markers import NAME_MAX
from unionfs.syscalls.files import RWF_NOWAIT

log = logging.getLogger(__name__)

_MAX_TASKS: Final = 1000
"""Requests in progress at once. Those waiting for a copy-up count, and must not keep out the others."""

_ACCESS_ACL: Final = b"system.posix_acl_access"
_LAST_WORD_S: Final = 1.0
"""Seconds that the end of serving waits for a notification in progress."""

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="_Adapter")

_cause: ContextVar[Cause] = ContextVar("cause", default=NO_CAUSE)
"""The request that the current task serves. READ and WRITE come without their caller."""


def serve(
    fd: int,
    union: Union,
    *,
    options: ServeOptions,
    traffic: Tally | None = None,
    notifier: Notifier | None = None,
) -> None:
    """Answer the requests that arrive on `fd`, a mounted /dev/fuse, until the union is unmounted. Closes `fd`.

    `notifier`: sends the kernel invalidations for changes behind the mount.
    """
    # Only one session per process can exist: pyfuse3 keeps it in a global.
    adapter = _Adapter(union, options, traffic)
    pyfuse3.init(adapter, f"/dev/fd/{fd}", set())
    try:
        trio.run(_serve, adapter, notifier)
    finally:
        if notifier is not None:
            notifier.stop()
            notifier.wait(_LAST_WORD_S)
        pyfuse3.close(unmount=False)


async def _serve(adapter: _Adapter, notifier: Notifier | None) -> None:
    async with trio.open_nursery() as beside:
        if notifier is not None:
            adapter.process_events(notifier)
            beside.start_soon(_process_events, notifier)
        await pyfuse3.main(max_tasks=_MAX_TASKS)
        beside.cancel_scope.cancel()


async def _process_events(notifier: Notifier) -> None:
    while True:
        await trio.lowlevel.wait_readable(notifier.fd)
        while notifier.process_events():
            await trio.lowlevel.checkpoint()


def _notify(stale: Invalidation) -> None:
    """Send an invalidation to the kernel. Errors are ignored: the kernel does not know the object, or uses it."""
    with contextlib.suppress(OSError):
        if stale == ANY_NAME:
            return  # libfuse has no such notification: missing names have a short timeout instead
        if not stale.name:
            pyfuse3.invalidate_inode(stale.nodeid, attr_only=not stale.data)
        else:
            pyfuse3.invalidate_entry(stale.nodeid, stale.name, stale.child)


def _answered(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Convert the exceptions of `handler` to FUSEError; pyfuse3 ends at any other exception."""

    opcode = handler.__name__.upper()

    @functools.wraps(handler)
    async def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.traffic.count(opcode)
        caller = args[-1] if args else None
        _cause.set(Cause(opcode, caller.pid if isinstance(caller, RequestContext) else 0))
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except Exception as exc:  # noqa: BLE001 - a bug must not end the daemon; errno_of logs it
            raise FUSEError(errno_of(exc)) from None

    return guarded


class _Adapter(pyfuse3.Operations):
    """The request handlers. Each converts pyfuse3's values, calls the Union, and converts the result."""

    supports_dot_lookup = False

    def __init__(self, union: Union, options: ServeOptions, traffic: Tally | None = None) -> None:
        super().__init__()
        self.traffic = traffic or Tally()  # immutable
        union.ledger.current_cause = _cause.get
        union.set_run_later(lambda run: trio.lowlevel.start_thread_soon(run, lambda _outcome: None))
        self.enable_writeback_cache = options.writeback
        self.enable_acl = options.acls
        self._union = union  # immutable; touched on the loop's thread only
        self._attributes = AttributeReplies(options.timeout_s)  # immutable
        self._missing_s = options.timeout_s  # changed by `process_events` and `_shorten_timeouts` only
        self._notifier: Notifier | None = None  # set once, by `process_events`
        self._read_only = options.read_only  # immutable
        self._xattrs = options.xattrs  # immutable
        self._copying: dict[int, trio.Event] = {}  # nodes being copied up; changed by _copy_up only
        self._writers: dict[
            int, int
        ] = {}  # node -> pid that opened it last for writing; changed by `open` and `forget`

    def process_events(self, notifier: Notifier) -> None:
        """Start to send the notifier's invalidations to the kernel."""
        self._notifier = notifier
        self._missing_s = UNWATCHED_S
        notifier.start(_notify, lambda _: not self._copying, self._shorten_timeouts)

    def _shorten_timeouts(self) -> None:
        self._attributes.timeout_s = self._missing_s = UNWATCHED_S

    # -- names --

    @_answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        del ctx
        try:
            entry = self._union.lookup(parent_inode, _checked(name))
        except FileNotFoundError:
            missing = EntryAttributes()  # node id 0: the kernel remembers that there is no such name
            missing.entry_timeout = self._missing_s
            return missing
        return self._attributes.entry(entry)

    async def forget(self, inode_list: Any) -> None:
        self.traffic.count("FORGET")
        for nodeid, count in inode_list:
            self._writers.pop(nodeid, None)
            try:
                self._union.forget(nodeid, count)
            except Exception:
                log.exception("bug while forgetting node %d", nodeid)

    @_answered
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes.entry(self._union.mknod(parent_inode, _checked(name), mode, rdev, _caller(ctx)))

    @_answered
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes.entry(self._union.mkdir(parent_inode, _checked(name), mode, _caller(ctx)))

    @_answered
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._attributes.entry(self._union.symlink(parent_inode, _checked(name), target, _caller(ctx)))

    @_answered
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        del ctx
        _checked(new_name)
        await self._copy_up(inode)
        return self._attributes.entry(self._union.link(inode, new_parent_inode, new_name))

    @_answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        del ctx
        self._union.unlink(parent_inode, _checked(name))

    @_answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        del ctx
        self._union.rmdir(parent_inode, _checked(name))

    @_answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        del ctx
        _checked(name_new)
        await self._copy_up_named(parent_inode_old, _checked(name_old))
        if flags & pyfuse3.RENAME_EXCHANGE:
            await self._copy_up_named(parent_inode_new, name_new)
        self._union.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    # -- attributes --

    @_answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        del ctx
        return self._attributes.node(inode, self._union.getattr(inode))

    @_answered
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        del fh, ctx
        change = AttrChange(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        await self._copy_up(inode, change.size, ATTRIBUTES if change.size is None else DATA)
        if change.size is not None:
            await self._truncate_slowly(inode, change.size)
        return self._attributes.node(inode, self._union.setattr(inode, change))

    @_answered
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        del ctx
        return self._union.readlink(inode)

    @_answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        del ctx
        stats = self._union.statfs()
        data = StatvfsData()
        data.f_bsize, data.f_frsize = stats.bsize, stats.frsize
        data.f_blocks, data.f_bfree, data.f_bavail = stats.blocks, stats.bfree, stats.bavail
        data.f_files, data.f_ffree, data.f_favail = stats.files, stats.ffree, stats.ffree
        data.f_namemax = stats.namemax
        return data

    @_answered
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        del ctx
        self._require_xattrs()
        return self._union.getxattr(inode, name)

    @_answered
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        self._require_xattrs()
        return self._union.listxattr(inode, ctx.uid == 0)

    @_answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._require_xattrs()
        await self._copy_up(inode)
        # pyfuse3 does not pass the flags: it checks XATTR_CREATE and XATTR_REPLACE itself, by getxattr.
        self._union.setxattr(inode, name, value, 0)
        if name == _ACCESS_ACL and ctx.uid != 0:
            self._drop_foreign_group(inode, ctx)
        if name == _ACCESS_ACL and not self.enable_acl:  # it changed the mode, too, which the kernel does not know
            pyfuse3.invalidate_inode(inode, attr_only=True)

    def _drop_foreign_group(self, inode: int, ctx: RequestContext) -> None:
        """Clear set-group-ID when a process that is not in the file's group sets an ACL, as chmod(2) does.

        The kernel leaves that to the daemon, and libfuse does not pass on the flag that asks for it.
        """
        attrs = self._union.getattr(inode)
        if not attrs.mode & stat.S_ISGID or attrs.gid == ctx.gid:
            return
        try:
            member = attrs.gid in pyfuse3.get_sup_groups(ctx.pid)
        except (OSError, RuntimeError):  # the process is out of sight, or gone
            member = False
        if not member:
            self._union.setattr(inode, AttrChange(mode=stat.S_IMODE(attrs.mode) & ~stat.S_ISGID))

    @_answered
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        del ctx
        self._require_xattrs()
        await self._copy_up(inode)
        self._union.removexattr(inode, name)

    def _require_xattrs(self) -> None:
        if not self._xattrs:
            raise FUSEError(errno.ENOSYS)

    # -- directories --

    @_answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        del ctx
        return inode

    @_answered
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """Send a listing with the attributes of each entry (readdirplus), the only kind that pyfuse3 knows."""
        listed = self._attributes.listed
        for line in self._union.readdir(fh, start_id):
            if line.name in (b".", b".."):
                if not pyfuse3.readdir_reply(token, line.name, listed(line.ino, line.kind), line.cookie):
                    return
                continue
            try:
                entry = self._union.lookup(fh, line.name)
            except OSError as exc:
                if exc.errno == errno.ENOENT:
                    continue
                # It exists but its lookup fails: list the name; a later lookup gets the error.
                if not pyfuse3.readdir_reply(token, line.name, listed(line.ino, line.kind), line.cookie):
                    return
                continue
            if not pyfuse3.readdir_reply(token, line.name, self._attributes.entry(entry), line.cookie):
                self._union.forget(entry.nodeid)
                return

    async def releasedir(self, fh: int) -> None:
        self.traffic.count("RELEASEDIR")
        del fh

    @_answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._sync(fh, datasync)

    # -- file content --

    @_answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if self._read_only and (flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        self._union.check_open(inode, flags)
        if flags & os.O_TRUNC:
            # libfuse asks for FUSE_ATOMIC_O_TRUNC: no SETATTR follows, neither for the size nor for set-id bits.
            # A process with CAP_FSETID keeps those (truncate(2)); libfuse does not pass it: root is taken to have it.
            await self._copy_up(inode, 0, DATA)
            await self._truncate_slowly(inode, 0)
            self._union.setattr(inode, AttrChange(size=0, kill_priv=ctx.uid != 0))
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self._writers[inode] = ctx.pid
        return FileInfo(fh=inode, keep_cache=True)

    @_answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        del flags
        entry = self._union.mknod(parent_inode, _checked(name), mode, 0, _caller(ctx))
        return FileInfo(fh=entry.nodeid, keep_cache=True), self._attributes.entry(entry)

    async def flush(self, fh: int) -> None:
        self.traffic.count("FLUSH")
        raise FUSEError(errno.ENOSYS)  # nothing is buffered here; the kernel asks no more

    async def release(self, fh: int) -> None:
        self.traffic.count("RELEASE")
        del fh

    @_answered
    async def read(self, fh: int, off: int, size: int) -> Any:
        """Read; returns any object with the buffer protocol."""
        held = self._union.read_fd(fh)
        if held.partial is not None:
            lower_fd = held.lower.fd if held.lower is not None else -1
            return await trio.to_thread.run_sync(held.partial.read, held.fd, lower_fd, off, size)
        data = _read_cached(held.fd, off, size)
        if data is not None:
            return data
        return await trio.to_thread.run_sync(os.pread, held.fd, size, off)

    @_answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        _cause.set(Cause("WRITE", self._writers.get(fh, 0)))  # pyfuse3 does not pass the caller of a WRITE
        await self._copy_up(fh, need=DATA)
        # Set-id bits have been cleared by the kernel, with a SETATTR.
        return (
            self._union.write_back(fh, off, buf, False)
            if self.enable_writeback_cache
            else self._union.write(fh, off, buf)
        )

    @_answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._sync(fh, datasync)

    # -- slow work, in worker threads --

    async def _sync(self, nodeid: int, datasync: bool) -> None:
        held = self._union.sync_fd(nodeid)
        if held is not None:
            await trio.to_thread.run_sync(os.fdatasync if datasync else os.fsync, held.fd)

    async def _truncate_slowly(self, nodeid: int, size: int) -> None:
        """Truncate a large file in a worker thread, before `setattr` does it again at no cost."""
        held = self._union.slow_truncate_fd(nodeid, size)
        if held is not None:
            self._union.changing(nodeid)
            await trio.to_thread.run_sync(os.ftruncate, held.fd, size)

    async def _copy_up(self, nodeid: int, size: int | None = None, need: int = ATTRIBUTES) -> None:
        """Do the slow part of the copy-up that a change of `nodeid` needs (core.attrs); the change itself does a quick
        one.

        Concurrent changes of one node wait for the first one's copy. Nothing may be awaited before the change itself.
        """
        while (copied := self._copying.get(nodeid)) is not None:
            await copied.wait()
        job = self._union.copyup_begin(nodeid, size, need)
        if job is None:
            return
        copied = self._copying[nodeid] = trio.Event()
        try:
            await _copy_in_thread(job)
        except BaseException:
            self._union.copyup_abort(job)
            raise
        else:
            self._union.copyup_commit(job)
        finally:
            del self._copying[nodeid]
            copied.set()
            if self._notifier is not None:
                self._notifier.release()

    async def _copy_up_named(self, parent: int, name: bytes) -> None:
        """`_copy_up` for requests that name a file; the request itself reports a missing name."""
        try:
            entry = self._union.lookup(parent, name)
        except OSError:
            return
        try:
            await self._copy_up(entry.nodeid)
        finally:
            self._union.forget(entry.nodeid)


def _checked(name: bytes) -> bytes:
    """Return `name`; ENAMETOOLONG above NAME_MAX, which the kernel no longer checks since Linux 6.18."""
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    return name


def _caller(ctx: RequestContext) -> Caller:
    # The kernel has applied the umask already, since FUSE_DONT_MASK is not among what pyfuse3 negotiates.
    return Caller(ctx.uid, ctx.gid, ctx.pid, 0)


class _Copy(Protocol):
    """The slow part of a copy-up, as returned by Union.copyup_begin."""

    def copy(self) -> None:
        """In any thread. OSError with EINTR after `cancel`."""

    def cancel(self) -> None:
        """From any thread."""


async def _copy_in_thread(job: _Copy) -> None:
    """Run `job.copy` in a thread; if this task is cancelled meanwhile, cancel the copy and wait for its end."""

    async def cancel_copy() -> None:
        try:
            await trio.sleep_forever()
        finally:
            job.cancel()  # no effect on a complete copy

    failure = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_copy)
        try:
            await trio.to_thread.run_sync(job.copy)
        except OSError as exc:
            failure = exc  # raised outside, where no nursery wraps it into a group
        nursery.cancel_scope.cancel()
    if failure is not None:
        try:
            raise failure
        finally:
            failure = None  # its traceback holds this frame: a cycle, which would keep the copy's descriptors open


def _read_cached(fd: int, offset: int, size: int) -> memoryview | None:
    """Read as pread(2) does, if all bytes are in the page cache; else return None."""
    buffer = memoryview(bytearray(size))
    have = 0
    try:
        while have < size:
            got = os.preadv(fd, [buffer[have:]], offset + have, RWF_NOWAIT)
            if got == 0:
                break
            have += got
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
            return None
        raise
    return buffer[:have]
