"""The verbs on a Union: paths become chains of lookups over node ids as in the kernel, and every lookup is paid back.

Two ways of using node ids, because both happen under a real mount:

- `caching=False`: each verb looks its path up from the root and forgets everything at once.
- `caching=True`: dentries are kept until `forget_all`, moved by rename and dropped by unlink as the kernel's own are,
  so the Union must keep every node id it gave out valid, and give the same one for the same file again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.core.drivers import RENAME_EXCHANGE, RENAME_NOREPLACE, Driver, Path, refuse, split
from unionfs.core.attrs import ROOT, AttrChange, Attrs, Caller, DirEntry, Entry
from unionfs.core.union import Union


class UnionDriver(Driver):
    """Walks `union`. `lookups` holds what is owed: node id -> number of entries received and not yet forgotten."""

    def __init__(self, union: Union, *, caching: bool = False, caller: Caller | None = None) -> None:
        self.union = union
        self.caching = caching
        self.caller = caller or Caller(os.geteuid(), os.getegid())
        self.lookups: Counter[int] = Counter()
        self._dentries: dict[tuple[int, bytes], int] = {}
        self._kinds: dict[int, int] = {ROOT: stat.S_IFDIR}
        self._handles: dict[int, int] = {}
        self._last_handle = 0
        self._resting = False  # nothing changes now: dentries can be trusted also without caching
        self._depth = 0  # verbs under way: only the outermost forgets

    # -- nodes --

    def node(self, path: Path) -> int:
        """The node id of `path`. Raises ENOENT, ENOTDIR as path_resolution(7)."""
        nodeid = ROOT
        for name in split(path):
            nodeid = self._step(nodeid, name, path)
        return nodeid

    def _step(self, parent: int, name: bytes, path: Path) -> int:
        if self._kinds[parent] != stat.S_IFDIR:
            raise refuse(errno.ENOTDIR, path)
        known = self._dentries.get((parent, name)) if self.caching or self._resting else None
        return known if known is not None else self._enter(parent, name, self.union.lookup(parent, name))

    def _enter(self, parent: int, name: bytes, entry: Entry) -> int:
        nodeid = entry.nodeid
        self.lookups[nodeid] += 1
        self._kinds[nodeid] = stat.S_IFMT(entry.attrs.mode)
        known = self._dentries.get((parent, name))
        assert known in (None, nodeid) or not self.caching, f"{name!r}: node {known} became {nodeid} while it was known"
        self._dentries[parent, name] = nodeid
        return nodeid

    def relook(self, path: Path) -> Entry:
        """Look the last name up again although it is known: the same file must have the same node id."""
        parent, name = self._parent(path)
        entry = self.union.lookup(parent, name)
        self._enter(parent, name, entry)
        return entry

    def _parent(self, path: Path) -> tuple[int, bytes]:
        *above, name = split(path)
        parent = self.node(b"/".join(above))
        if self._kinds[parent] != stat.S_IFDIR:
            raise refuse(errno.ENOTDIR, path)
        return parent, name

    @contextmanager
    def _verb(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth and not self.caching:
                self.forget_all()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        self._resting = True
        try:
            with self._verb():
                yield
        finally:
            self._resting = False

    def forget_all(self) -> None:
        """Pay back every lookup but those of open files, in one forget each."""
        self._dentries.clear()
        held = set(self._handles.values())
        for nodeid in [nodeid for nodeid in self.lookups if nodeid not in held]:
            self.union.forget(nodeid, self.lookups.pop(nodeid))
            self._kinds.pop(nodeid, None)

    def _lost(self, parent: int, name: bytes) -> None:
        """The name is gone: the kernel forgets a file that has no other name and is not open."""
        nodeid = self._dentries.pop((parent, name), None)
        if nodeid is None or nodeid in self._dentries.values() or nodeid in self._handles.values():
            return
        if self._kinds[nodeid] == stat.S_IFDIR and any(above == nodeid for above, _ in self._dentries):
            return
        self.union.forget(nodeid, self.lookups.pop(nodeid))
        del self._kinds[nodeid]

    # -- looking --

    def stat(self, path: Path) -> Attrs:
        with self._verb():
            return self.union.getattr(self.node(path))

    def entries(self, path: Path) -> list[DirEntry]:
        """The whole listing as the core gives it, "." and ".." included."""
        with self._verb():
            return list(self.union.readdir(self.node(path), 0))

    def listing(self, path: Path) -> dict[bytes, tuple[int, int]]:
        found = self.entries(path)
        assert [entry.name for entry in found[:2]] == [b".", b".."]
        assert [entry.cookie for entry in found[:2]] == [1, 2]
        assert len({entry.name for entry in found}) == len(found), "a name twice in one listing"
        assert len({entry.cookie for entry in found}) == len(found), "a cookie twice in one listing"
        return {entry.name: (entry.kind, entry.ino) for entry in found[2:]}

    def readlink(self, path: Path) -> bytes:
        with self._verb():
            return self.union.readlink(self.node(path))

    def read(self, path: Path, offset: int = 0, size: int = 1 << 20) -> bytes:
        with self._verb():
            self.want_file(path)
            return self.union.read(self.node(path), offset, size)

    def lseek(self, path: Path, offset: int, whence: int) -> int:
        with self._verb():
            self.want_file(path)
            return self.union.lseek(self.node(path), offset, whence)

    def getxattr(self, path: Path, name: bytes) -> bytes:
        with self._verb():
            return self.union.getxattr(self.node(path), name)

    def listxattr(self, path: Path) -> list[bytes]:
        with self._verb():
            return sorted(self.union.listxattr(self.node(path)))

    # -- changing what exists --

    def write(self, path: Path, offset: int, data: bytes) -> int:
        with self._verb():
            self.want_file(path)
            return self.union.write(self.node(path), offset, data)

    def setattr(self, path: Path, change: AttrChange) -> Attrs:
        with self._verb():
            return self.union.setattr(self.node(path), change)

    def truncate(self, path: Path, size: int) -> None:
        with self._verb():
            self.want_file(path)
            self.union.setattr(self.node(path), AttrChange(size=size))

    def fallocate(self, path: Path, mode: int, offset: int, length: int) -> None:
        with self._verb():
            self.want_file(path)
            self.union.fallocate(self.node(path), mode, offset, length)

    def copy_file_range(self, src: Path, src_offset: int, dst: Path, dst_offset: int, length: int) -> int:
        with self._verb():
            self.want_file(src)
            self.want_file(dst)
            return self.union.copy_file_range(self.node(src), src_offset, self.node(dst), dst_offset, length)

    def chmod(self, path: Path, perm: int) -> None:
        with self._verb():
            self.want_mode(path)
            self.union.setattr(self.node(path), AttrChange(mode=perm))

    def chown(self, path: Path, uid: int, gid: int) -> None:
        with self._verb():
            self.union.setattr(self.node(path), AttrChange(uid=uid, gid=gid))

    def utime(self, path: Path, atime_ns: int, mtime_ns: int) -> None:
        with self._verb():
            self.union.setattr(self.node(path), AttrChange(atime_ns=atime_ns, mtime_ns=mtime_ns))

    def setxattr(self, path: Path, name: bytes, value: bytes, flags: int = 0) -> None:
        with self._verb():
            self.union.setxattr(self.node(path), name, value, flags)

    def removexattr(self, path: Path, name: bytes) -> None:
        with self._verb():
            self.union.removexattr(self.node(path), name)

    # -- making, naming, removing --

    def create(self, path: Path, perm: int = 0o644) -> None:
        self.mknod(path, stat.S_IFREG | perm)

    def mknod(self, path: Path, mode: int, rdev: int = 0) -> None:
        with self._verb():
            parent, name = self._parent(path)
            self._enter(parent, name, self.union.mknod(parent, name, mode, rdev, self.caller))

    def mkdir(self, path: Path, perm: int = 0o755) -> None:
        with self._verb():
            parent, name = self._parent(path)
            perm &= 0o1777  # vfs_mkdir() in fs/namei.c
            self._enter(parent, name, self.union.mkdir(parent, name, perm, self.caller))

    def symlink(self, path: Path, target: bytes) -> None:
        with self._verb():
            parent, name = self._parent(path)
            self._enter(parent, name, self.union.symlink(parent, name, target, self.caller))

    def link(self, old: Path, new: Path) -> None:
        with self._verb():
            nodeid = self.node(old)
            if self._kinds[nodeid] == stat.S_IFDIR and self.exists(new):
                raise refuse(errno.EEXIST, new)  # do_linkat() in fs/namei.c looks at the new name first
            self._link(nodeid, new)

    def _link(self, nodeid: int, new: Path) -> None:
        parent, name = self._parent(new)
        entry = self.union.link(nodeid, parent, name)
        assert entry.nodeid == nodeid, "a new name of a file is the same node"
        self._enter(parent, name, entry)

    def unlink(self, path: Path) -> None:
        with self._verb():
            parent, name = self._parent(path)
            self.union.unlink(parent, name)
            self._lost(parent, name)

    def rmdir(self, path: Path) -> None:
        with self._verb():
            parent, name = self._parent(path)
            self.union.rmdir(parent, name)
            self._lost(parent, name)

    def rename(self, old: Path, new: Path, flags: int = 0) -> None:
        with self._verb():
            source, target = self._parent(old), self._parent(new)
            above, below = split(new), split(old)
            if len(above) < len(below) and below[: len(above)] == above and not flags & RENAME_NOREPLACE:
                # do_renameat2() in fs/namei.c: the target is an ancestor of the source. No filesystem is asked.
                self.node(old)
                raise refuse(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY, new)
            self.union.rename(*source, *target, flags)
            if source == target:
                return
            moved, replaced = self._dentries.get(source), self._dentries.get(target)
            if flags & RENAME_EXCHANGE:
                self._dentries.pop(source, None)
                self._dentries.pop(target, None)
                if moved is not None:
                    self._dentries[target] = moved
                if replaced is not None:
                    self._dentries[source] = replaced
            elif moved is None or moved != replaced:
                self._lost(*target)
                if moved is not None:
                    self._dentries[target] = self._dentries.pop(source)

    # -- open files --

    def _hold(self, nodeid: int) -> int:
        self._last_handle += 1
        self._handles[self._last_handle] = nodeid
        return self._last_handle

    def open(self, path: Path) -> int:
        with self._verb():
            self.want_file(path)
            return self._hold(self.node(path))

    def mode(self, path: Path) -> int:
        return self.union.getattr(self.node(path)).mode

    def tmpfile(self, directory: Path, perm: int = 0o600) -> int:
        with self._verb():
            parent = self.node(directory)
            entry = self.union.tmpfile(parent, stat.S_IFREG | perm, self.caller)
            self.lookups[entry.nodeid] += 1
            self._kinds[entry.nodeid] = stat.S_IFREG
            return self._hold(entry.nodeid)

    def link_handle(self, handle: int, new: Path) -> None:
        with self._verb():
            self._link(self._handles[handle], new)

    def fstat(self, handle: int) -> Attrs:
        return self.union.getattr(self._handles[handle])

    def pread(self, handle: int, offset: int, size: int) -> bytes:
        file = self.union.read_fd(self._handles[handle])
        return os.pread(file.fd, size, offset)

    def pwrite(self, handle: int, offset: int, data: bytes) -> int:
        with self._verb():
            file = self.union.write_fd(self._handles[handle])
            return os.pwrite(file.fd, data, offset)

    def ftruncate(self, handle: int, size: int) -> None:
        with self._verb():
            self.union.setattr(self._handles[handle], AttrChange(size=size))

    def close(self, handle: int) -> None:
        nodeid = self._handles.pop(handle)
        if nodeid not in self._handles.values() and nodeid not in self._dentries.values():
            self.union.forget(nodeid, self.lookups.pop(nodeid))
            self._kinds.pop(nodeid, None)
