"""Handlers for the requests that need more than decode, one Union verb and encode.

One function for each, called by `dispatch` with the dispatcher, the unique, the node id, the header, the request and
its length. Returns the whole reply, or None: there is none, or work in `Dispatcher.slow` produces it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from unionfs.core.attrs import ATTRIBUTES, DATA, NOW, ROOT, VIEW, AttrChange
from unionfs.fuse.kernel import abi, data, decode, encode, listing, views
from unionfs.fuse.kernel.decode import BODY, Head, MalformedError
from unionfs.fuse.kernel.session import MAX_WRITE
from unionfs.fuse.view_name import ASKED, PREFIX
from unionfs.syscalls import files, status

if TYPE_CHECKING:
    from unionfs.fuse.kernel.dispatch import Dispatcher

Reply = bytes | memoryview | None

_read_in: Final = abi.READ_IN.unpack_from
_write_in: Final = abi.WRITE_IN.unpack_from

_IOCTL_DATA: Final = BODY + abi.IOCTL_IN.size
_DATA: Final = BODY + abi.WRITE_IN.size
_EXCHANGE: Final = 2  # RENAME_EXCHANGE, <linux/fs.h>
_DOT: Final = ord(".")
_SET_ID: Final = 0o6000
_HOW: Final = abi.WRITE_CACHE | abi.WRITE_KILL_SUIDGID
_PARENT: Final = b"..\0"
_OF_HANDLES: Final = (b".\0", _PARENT)
"""The names by which the kernel looks up a node by its id alone (open_by_handle_at(2)); needs EXPORT_SUPPORT."""
_POSIX_ACL: Final = int(abi.Init.POSIX_ACL)
_SETXATTR_EXT: Final = int(abi.Init.SETXATTR_EXT)
_WRITEBACK_CACHE: Final = int(abi.Init.WRITEBACK_CACHE)
"""Of abi.Init, as numbers: `&` of an IntFlag runs a microsecond of Python."""
_SELINUX: Final = b"security.selinux"
_CAPABILITY: Final = b"security.capability"
_ACL: Final = b"system.posix_acl_access"
_NO_CHANGE: Final = AttrChange()
_CLEAR_ALONE: Final = AttrChange(kill_priv=True)


def init(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes:
    return self.session.init(unique, buf, end)


def lookup(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes:
    if buf[BODY] == _DOT and end <= BODY + 3 and (dots := bytes(buf[BODY:end])) in _OF_HANDLES:
        found = self.union.lookup_handle(nodeid, dots == _PARENT)
        return (self.encoder.root_entry if found.nodeid == ROOT else self.encoder.entry)(unique, found)
    name = decode.name_at(buf, BODY, end)
    is_for_some = nodeid == ROOT and name.startswith(PREFIX)
    if is_for_some and (reply := views.root(self, unique, name, head)) is not None:
        return reply
    try:
        entry = self.union.find(nodeid, name)
    except FileNotFoundError:  # removed externally during the lookup
        entry = None
    if entry is None and is_for_some:
        return encode.error(unique, errno.ENOENT)  # not remembered by the kernel: others may have it
    return self.encoder.entry(unique, entry) if entry is not None else self.encoder.missing(unique)


def getattr_(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes:
    return self.encoder.attrs(unique, nodeid, self.union.getattr(nodeid))


def statx(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes:
    return self.encoder.statx(unique, nodeid, self.union.getattr(nodeid), self.union.extended_stat(nodeid))


def mknod(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes:
    name, mode, rdev, caller = decode.mknod(head, buf, end)
    entry = self.union.mknod(nodeid, name, mode, rdev, caller)
    if not mode & _SET_ID:
        self.without_privileges.add(entry.nodeid)
    return self.encoder.entry(unique, entry)


def forget(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> None:
    (count,) = decode.forget(head, buf, end)
    if self.record is not None:
        self.record.forgetting(unique, 0)
    if self.union.forget(nodeid, count):
        self.forget_node(nodeid)


def batch_forget(
    self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int, begun: int = 0
) -> None:
    """Forget nodes, but for the first `begun` lines."""
    record = self.record
    for line, (forgotten, count) in enumerate(decode.batch_forget(buf, end)):
        if line < begun:
            continue
        if record is not None:
            record.forgetting(unique, line)
        if forgotten >= VIEW:
            views.forget(self, forgotten, count)
        elif self.union.forget(forgotten, count):
            self.forget_node(forgotten)


def read(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> Reply:
    _fh, offset, size, _read_flags, _owner, _flags, _ = _read_in(buf, BODY)
    outcome = self.reader.read(self.union.read_fd(nodeid), unique, offset, size)
    if callable(outcome):
        self.slow.append(outcome)
        return None
    return outcome


def write(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> Reply:
    _fh, offset, size, flags, _owner, _flags, _ = _write_in(buf, BODY)
    if _DATA + size != end:
        raise MalformedError("a WRITE announces another size than it has")
    if self.must_wait(unique, nodeid, None, buf, DATA):
        return None
    if flags & _HOW == abi.WRITE_CACHE:
        return _write_back(self, unique, nodeid, offset, buf[_DATA:end])
    if not flags & abi.WRITE_KILL_SUIDGID or nodeid in self.without_privileges:
        return encode.written(unique, self.union.write(nodeid, offset, buf[_DATA:end]))
    # Every write by a process without CAP_FSETID has this flag, so all writes in a user namespace do.
    reply = encode.written(unique, self.union.write(nodeid, offset, buf[_DATA:end], True))
    if nodeid not in self.encoder.set_id and not self.continues:
        self.without_privileges.add(nodeid)
        return reply
    if self.union.getattr(nodeid).mode & _SET_ID:  # set-group-id stays when a member of the group writes
        return reply
    self.without_privileges.add(nodeid)
    # The daemon clears the bits, which the kernel still has cached: its attributes are invalidated first.
    self.encoder.set_id.discard(nodeid)
    self.slow += (encode.notify_inval_inode(nodeid, -1, 0), reply)
    return None


def _write_back(self: Dispatcher, unique: int, nodeid: int, offset: int, pages: memoryview) -> Reply:
    """Write pages of the kernel's cache. If an immutable or append-only file refuses them, the kernel drops them:
    otherwise readers would see them, and they would be written when the flag is gone and another byte of a page
    changes."""
    try:
        return encode.written(
            unique, self.union.write_back(nodeid, offset, pages, nodeid not in self.without_privileges)
        )
    except PermissionError as refused:
        self.slow.append(encode.error(unique, refused.errno or errno.EPERM))
    self.slow.append(data.ThreadTask(0, partial(_drop_pages, self.notify, nodeid), _nothing, True))
    return None


def _drop_pages(notify: Callable[[bytes], None], nodeid: int, offset: int = 0, length: int = 0) -> int:
    """In a thread: have the kernel write out a node's dirty pages in a range (0: to the end) and drop all pages in
    it."""
    notify(encode.notify_inval_inode(nodeid, offset, length))
    return 0


def _nothing(_outcome: int) -> None:
    return None


def setattr_(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> Reply:
    (change,) = decode.setattr_(head, buf, end)
    if self.must_wait(unique, nodeid, change.size, buf, ATTRIBUTES if change.size is None else DATA):
        return None
    if change == _CLEAR_ALONE and self.capability_removed == (nodeid, head[6]) and status.keeps_set_id_bits(head[6]):
        change = _NO_CHANGE
    if change.mtime_ns is not None and change.size is None and self.session.flags & _WRITEBACK_CACHE:
        return _set_times(self, unique, nodeid, change, *decode.held_back_times(buf))  # may come before that SETATTR
    self.capability_removed = (0, 0)
    if change.mode is not None and change.mode & _SET_ID:  # only this can set bits that a write must clear
        self.without_privileges.discard(nodeid)
    held = self.union.slow_truncate_fd(nodeid, change.size) if change.size is not None else None
    if held is not None and change.size is not None:
        self.union.changing(nodeid)
        answer = partial(_set, self, unique, nodeid, change)
        self.slow.append(data.ThreadTask(unique, partial(data.truncate, held, change.size), answer))
        return None
    return _set(self, unique, nodeid, change)


def _set_times(self: Dispatcher, unique: int, nodeid: int, change: AttrChange, is_flush: bool, is_touch: bool) -> bytes:
    """Set times under WRITEBACK_CACHE. Append-only files accept only the present time; a file that has become immutable
    or append-only since a write keeps the times at which the pages were written to it."""
    try:
        return _set(self, unique, nodeid, change)
    except PermissionError:
        if is_flush:
            return self.encoder.attrs(unique, nodeid, self.union.getattr(nodeid))
        if not is_touch:
            raise
    return _set(self, unique, nodeid, change._replace(mtime_ns=NOW))


def _set(self: Dispatcher, unique: int, nodeid: int, change: AttrChange, _outcome: int = 0) -> bytes:
    return self.encoder.attrs(unique, nodeid, self.union.setattr(nodeid, change))


def open_(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> Reply:
    flags, how = abi.OPEN_IN.unpack_from(buf, BODY)
    if self.opens is None:
        if not self.session.flags & _WRITEBACK_CACHE:
            return encode.error(unique, errno.ENOSYS)  # no open-file state: the kernel opens by itself from now on
        # write(2) will succeed for any file: only here can flags of the file refuse it.
        self.union.check_open(nodeid, flags)
        return encode.opened(unique, 0, keeps_cache=True)
    if self.union.is_former(nodeid):
        # its names lead to the present one
        return _renumbered(self, unique, has_old_names=bool(unique & abi.UNIQUE_RESEND))
    plain = self.union.check_open(nodeid, flags)  # an append-only file: the kernel itself would write anywhere in it
    size = 0 if flags & os.O_TRUNC else None
    writes = flags & os.O_ACCMODE != os.O_RDONLY
    if (writes or size is not None) and self.must_wait(unique, nodeid, size, buf):
        return None
    if size is None:
        if writes:
            self.union.write_fd(nodeid, plain)
        return _opened(self, unique, nodeid, writes, plain=plain)
    change = AttrChange(size=0, kill_priv=bool(how & abi.OPEN_KILL_SUIDGID))
    answer = partial(_truncated, self, unique, nodeid, writes, change)
    held = self.union.slow_truncate_fd(nodeid, 0)
    if held is None:
        return answer()
    self.union.changing(nodeid)
    self.slow.append(data.ThreadTask(unique, partial(data.truncate, held, 0), answer))
    return None


def _truncated(
    self: Dispatcher, unique: int, nodeid: int, writes: bool, change: AttrChange, _outcome: int = 0
) -> Reply:
    self.union.setattr(nodeid, change)
    return _opened(self, unique, nodeid, writes)


def _opened(self: Dispatcher, unique: int, nodeid: int, writes: bool, *, plain: bool = False) -> Reply:
    """Let the kernel open the file that holds the node's data now; `plain`: let it send reads and writes as
    messages."""
    opens = self.opens
    assert opens is not None
    file = self.union.backing_fd(nodeid)
    if opens.is_elsewhere(nodeid, file, plain=plain):  # see `opens`
        has_more_names = self.union.renumber(nodeid)
        self.forget_node(nodeid)
        return _renumbered(self, unique, has_old_names=has_more_names)
    reply = encode.opened(unique, opens.open(nodeid, file, writes=writes, plain=plain))
    if not writes:
        return reply
    self.slow += (encode.notify_inval_inode(nodeid, -1, 0), reply)
    return None


def _renumbered(self: Dispatcher, unique: int, *, has_old_names: bool) -> Reply:
    """Have the kernel look up a node again that has a new number. `has_old_names`: in the kernel other names of the
    node may still lead to the old number."""
    if not (has_old_names and self.session.has_epochs):
        return encode.error(unique, errno.ESTALE)
    self.slow += (encode.notify_inc_epoch(), encode.error(unique, errno.ESTALE))
    return None


def tmpfile(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> Reply:
    entry = self.union.tmpfile(nodeid, *decode.tmpfile(head, buf, end))
    if self.opens is None:
        return self.encoder.tmpfile(unique, entry)
    made = entry.nodeid
    return self.encoder.tmpfile(unique, entry, self.opens.open(made, self.union.backing_fd(made), writes=True))


def release(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes:
    if self.opens is not None:
        flags = abi.RELEASE_IN.unpack_from(buf, BODY)[1]
        self.opens.release(nodeid, wrote=flags & os.O_ACCMODE != os.O_RDONLY)
    return encode.empty(unique)


def fallocate(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> Reply:
    mode, offset, length = decode.fallocate(head, buf, end)
    if self.must_wait(unique, nodeid, None, buf):
        return None
    if length <= data.ALLOCATE_INLINE_MAX:
        self.union.fallocate(nodeid, mode, offset, length)
        return encode.empty(unique)
    work = partial(data.allocate, self.union.allocation_fd(nodeid, mode), mode, offset, length)
    _run_in_thread(self, unique, nodeid, work, partial(encode.empty, unique))
    return None


def lseek(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> Reply:
    """Find data or a hole. The kernel does not first write out dirty pages, of a mapping or of write(2) with
    WRITEBACK_CACHE, in a hole of the branch's file: a notification makes it write the pages of that hole."""
    offset, whence = decode.lseek(head, buf, end)
    return _seek(self, unique, nodeid, offset, whence, 0)


def _seek(self: Dispatcher, unique: int, nodeid: int, offset: int, whence: int, known: int, _outcome: int = 0) -> Reply:
    """Answer LSEEK at once if the result is no hole, or a hole before `known`, where the kernel has no newer pages;
    else after the pages in the hole have been written."""
    found = _find(self, nodeid, offset, whence)
    begin = found if whence == os.SEEK_HOLE and found >= 0 else offset
    stop = found if whence == os.SEEK_DATA else _find(self, nodeid, begin, os.SEEK_DATA)  # of the hole
    is_data = begin == stop or self.union.options.upper is None
    is_behind = begin >= self.union.getattr(nodeid).size and not self.session.options.writeback
    if is_data or is_behind or known < 0 or begin < known:
        return encode.sought(unique, found) if found >= 0 else encode.error(unique, errno.ENXIO)
    answer = partial(_seek, self, unique, nodeid, offset, whence, stop)
    work = partial(_drop_pages, self.notify, nodeid, begin, stop - begin if stop >= 0 else 0)
    self.slow.append(data.ThreadTask(unique, work, answer, True))
    return None


def _find(self: Dispatcher, nodeid: int, offset: int, whence: int) -> int:
    """Return where the branch's file has data or a hole; -1 if there is none."""
    if offset < 0:
        return -1
    try:
        return self.union.lseek(nodeid, offset, whence)
    except OSError as exc:
        if exc.errno != errno.ENXIO:
            raise
        return -1


def copy_file_range(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> Reply:
    return _copy(self, unique, nodeid, head, buf, end, encode.written)


def copy_file_range_64(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> Reply:
    return _copy(self, unique, nodeid, head, buf, end, encode.copied_64)


def _copy(
    self: Dispatcher,
    unique: int,
    nodeid: int,
    head: Head,
    buf: memoryview,
    end: int,
    encoder: Callable[[int, int], bytes],
) -> Reply:
    offset, target, target_offset, length = decode.copy_file_range(head, buf, end)
    if self.must_wait(unique, target, None, buf):
        return None
    if length <= data.COPY_INLINE_MAX:
        return encoder(unique, self.union.copy_file_range(nodeid, offset, target, target_offset, length))
    ends = self.union.copy_fds(nodeid, offset, target, target_offset)
    work = partial(self.union.copy_range, *ends, min(length, data.COPY_MAX))
    _run_in_thread(self, unique, target, work, partial(encoder, unique))
    return None


def _run_in_thread(
    self: Dispatcher, unique: int, nodeid: int, work: Callable[[], int], encoder: Callable[[int], bytes]
) -> None:
    """Change a file's content in a thread."""
    self.union.changing(nodeid)
    self.slow.append(data.ThreadTask(unique, work, partial(_changed, self, nodeid, encoder)))


def _changed(self: Dispatcher, nodeid: int, encoder: Callable[[int], bytes], outcome: int) -> bytes:
    self.union.changed(nodeid)
    return encoder(outcome)


def rename(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> Reply:
    return _renamed(self, unique, nodeid, head, buf, *decode.rename(head, buf, end))


def rename2(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> Reply:
    return _renamed(self, unique, nodeid, head, buf, *decode.rename2(head, buf, end))


def _renamed(
    self: Dispatcher,
    unique: int,
    parent: int,
    head: Head,
    buf: memoryview,
    name: bytes,
    to: int,
    new_name: bytes,
    flags: int = 0,
) -> Reply:
    views.refuse_name(self, parent, name, head)
    views.refuse_name(self, to, new_name, head)
    moved_dirs: list[int] = []
    for at, what in [(parent, name), (to, new_name)] if flags & _EXCHANGE else [(parent, name)]:
        moved, attrs = self.union.lookup(at, what)
        try:
            if self.must_wait(unique, moved, None, buf, ATTRIBUTES):
                return None
        finally:
            self.union.take_back(moved)
        if parent != to and stat.S_ISDIR(attrs.mode):
            moved_dirs.append(moved)
    self.union.rename(parent, name, to, new_name, flags)
    if not moved_dirs:
        return encode.empty(unique)
    # The kernel's cached listings of the moved directories have the old parent's "..".
    self.slow += (*(encode.notify_inval_inode(moved, 0, 0) for moved in moved_dirs), encode.empty(unique))
    return None


def rmdir(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes:
    name = decode.name_at(buf, BODY, end)
    views.refuse_name(self, nodeid, name, head)
    self.union.rmdir(nodeid, name)
    return encode.empty(unique)


def statfs(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes:
    offer = self.session.view_offer
    if offer is not None:
        offer.note_asked(head[4], head[6])
    return encode.statfs(unique, self.union.statfs())


def fsync(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> Reply:
    (datasync,) = decode.fsync(head, buf, end)
    held = self.union.sync_fd(nodeid)
    if held is None:
        return encode.empty(unique)
    self.slow.append(partial(data.sync, held, unique, datasync))
    return None


def syncfs(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> Reply:
    held = self.union.syncfs_fd()
    if held is None:
        return encode.empty(unique)
    self.slow.append(partial(data.sync_filesystem, held, unique))
    return None


def readdir(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes:
    _fh, cookie, size, _read_flags, _owner, _flags, _ = _read_in(buf, BODY)
    return encode.payload(unique, listing.readdir(self.union, nodeid, cookie, min(size, MAX_WRITE)))


def readdirplus(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes:
    _fh, cookie, size, _read_flags, _owner, _flags, _ = _read_in(buf, BODY)
    return encode.payload(unique, listing.readdirplus(self.union, self.encoder, nodeid, cookie, min(size, MAX_WRITE)))


def setxattr(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> Reply:
    extended = bool(self.session.flags & _SETXATTR_EXT)
    name, value, flags, clear_sgid = decode.setxattr(buf, end, extended=extended)
    if self.must_wait(unique, nodeid, None, buf, ATTRIBUTES):
        return None
    self.without_privileges.discard(nodeid)
    self.union.setxattr(nodeid, name, value, flags)
    if clear_sgid and name == _ACL:
        mode = self.union.getattr(nodeid).mode
        if mode & stat.S_ISGID:
            self.union.setattr(nodeid, AttrChange(mode=stat.S_IMODE(mode) & ~stat.S_ISGID))
    if name == _ACL and not self.session.flags & _POSIX_ACL:
        # Without POSIX_ACL the kernel does not know that the ACL changed the mode: invalidate its attributes.
        self.slow += (encode.notify_inval_inode(nodeid, -1, 0), encode.empty(unique))
        return None
    return encode.empty(unique)


def getxattr(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes:
    size, name = decode.getxattr(buf, end)
    if nodeid == ROOT and name.startswith(ASKED) and (asked := views.asked(self, name, head)) is not None:
        return _xattr(unique, size, asked)
    if name == _CAPABILITY and nodeid in self.without_privileges:
        return encode.error(unique, errno.ENODATA)
    value = self.union.find_xattr(nodeid, name)
    if value is not None:
        return _xattr(unique, size, value)
    # ls(1) asks for the label of every file until it gets EOPNOTSUPP.
    return encode.error(unique, errno.EOPNOTSUPP if name == _SELINUX else errno.ENODATA)


def ioctl(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> Reply:
    """Get or set the inode's flags, as lsattr(1) and chattr(1) do. Other commands get ENOTTY, which isatty(3) expects
    (ENOSYS would be no answer to it)."""
    _fh, _flags, command, _arg, in_size, _out_size = abi.IOCTL_IN.unpack_from(buf, BODY)
    if command in files.FLAG_READS:
        return encode.ioctl(unique, self.union.get_flags(nodeid, command))
    if command == files.COMPLETE and nodeid == ROOT:
        return _complete(self, unique, head, buf)
    size = files.FLAG_WRITES.get(command)
    if size is None or min(in_size, end - _IOCTL_DATA) < size:
        return encode.error(unique, errno.ENOTTY)
    if self.must_wait(unique, nodeid, None, buf):
        return None
    wanted = bytes(buf[_IOCTL_DATA : _IOCTL_DATA + size])
    if not files.protection_in(command, wanted):
        return _set_flags(self, unique, nodeid, command, wanted)
    answer = partial(_set_flags, self, unique, nodeid, command, wanted)
    self.slow.append(data.ThreadTask(unique, partial(_drop_pages, self.notify, nodeid), answer, True))
    return None


def _complete(self: Dispatcher, unique: int, head: Head, buf: memoryview) -> Reply:
    """Complete the partial files of the upper, one after the other: this request waits for each and is served again.
    For root and the daemon's own user. EIO if data are missing, ENOSPC."""
    if head[4] not in (0, os.geteuid()):
        return encode.error(unique, errno.EPERM)
    while (nodeid := self.union.next_partial()) is not None:
        if self.must_wait(unique, nodeid, None, buf):
            return None
    return encode.ioctl(unique, b"")


def _set_flags(self: Dispatcher, unique: int, nodeid: int, command: int, wanted: bytes, _outcome: int = 0) -> bytes:
    self.union.set_flags(nodeid, command, wanted)
    return encode.ioctl(unique, b"")


def removexattr(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> Reply:
    """Remove an attribute. When a write removes a file capability, the kernel sends this and then a SETATTR without any
    change, also for a process that keeps set-id bits (CAP_FSETID)."""
    (name,) = decode.removexattr(head, buf, end)
    if self.must_wait(unique, nodeid, None, buf, ATTRIBUTES):
        return None
    self.union.removexattr(nodeid, name)
    if name == _CAPABILITY:
        self.capability_removed = (nodeid, head[6])
    return encode.empty(unique)


def listxattr(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes:
    size, _ = abi.GETXATTR_IN.unpack_from(buf, BODY)
    return _xattr(unique, size, encode.xattr_list(self.union.listxattr(nodeid, head[4] == 0)))


def _xattr(unique: int, room: int, value: bytes) -> bytes:
    """Encode an attribute as getxattr(2) returns it: its size for `room` 0, ERANGE if `room` is too small."""
    if not room:
        return encode.xattr_size(unique, len(value))
    return encode.data(unique, value) if len(value) <= room else encode.error(unique, errno.ERANGE)


def interrupt(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes | None:
    (interrupted,) = abi.INTERRUPT_IN.unpack_from(buf, BODY)
    return encode.error(interrupted, errno.EINTR) if self.session.interrupt(interrupted) else None


def destroy(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes:
    self.session.over = True
    return encode.empty(unique)


def done(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes:
    return encode.empty(unique)


def no_reply(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> None:
    return None
