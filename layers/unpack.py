"""Unpack a layer's tar into a directory that a union takes as a lower branch.

Knows entries (`tarread`), directories by descriptor, owners, fingerprints. Does not know stores or images.

Rules:
1. An entry below a symlink of the layer goes where that leads with the layer's root as `/`, as a container would see
   it; the path is resolved here, from the symlinks that were made. The system follows none: files are opened beneath
   the root through no symlink.
2. Whiteouts become AUFS marks. A whiteout of a path that the layer itself has an entry for hides the layers beneath
   only: for a directory that is an opaque mark, for a file no mark is needed.
3. A directory's owner, mode and time are set last, when everything in it was made.
4. Parts that depend on the layers beneath (the metadata of directories without an entry, the data of hard links'
targets) are listed in `Unpacked.unresolved` for `resolve_parents`, so that layers can be unpacked at the same time. 5.
When anything is refused or fails, the caller removes the directory; nothing outside of it was touched.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import IO, Final

import xxhash

from layers import owners
from layers.attributes import (
    OVERLAY,
    Described,
    Options,
    Unpacked,
    chown,
    finish_directory,
    note,
    set_xattrs,
)
from layers.compression import Readable
from layers.entry import BLOCK, CHARACTER, DIRECTORY, FIFO, FILE, LINK, OPAQUE, SYMLINK, WHITEOUT, Entry
from layers.errors import Refused
from layers.fingerprint import Fingerprint, Recorder, xattrs_digest
from layers.fingerprint import of as fingerprint_of
from layers.safe_open import Directories, Path
from layers.tarread import entries
from layers.tarstream import TarStream, cut_off
from unionfs import markers, posix_acl
from unionfs.trees.remove import remove_tree
from unionfs.write_all import write_all

_MARK_MODE: Final = 0o444
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLLOWED_MAX: Final = 40  # symlinks on one path, as in the kernel (path_resolution(7))
_SMALL: Final = 64 << 10  # files up to this size are read in one piece


def unpack(source: Readable, root_fd: int, options: Options, record: IO[bytes] | None = None) -> Unpacked:
    """Unpack the tar in `source`, compressed or not, into the empty directory `root_fd`, and write fingerprints to
    `record`. Call `resolve_parents` with the result to complete the layer.

    Raises: Refused, OSError.
    """
    with TarStream(source, options.limits, options.on_read) as stream:
        work = _Unpacking(stream, root_fd, options, record)
        try:
            return work.run()
        finally:
            work.tree.close_all()


class _Unpacking:
    """The state of unpacking one layer."""

    def __init__(self, stream: TarStream, root_fd: int, options: Options, record: IO[bytes] | None) -> None:
        self.stream = stream
        self.tree = Directories(root_fd)
        self.options = options
        self.result = Unpacked()
        self.recorder = Recorder(record) if record is not None else None
        self.described: dict[Path, Described] = {}  # directories with an entry of their own
        self.implicit: dict[Path, int] = {(): 0}  # directories without one -> the latest mtime_ns of entries in them
        self.hidden: set[Path] = set()  # paths of whiteouts
        self.opaque: set[Path] = set()  # paths of opaque directories
        self.symlinks: dict[Path, bytes] = {}  # those of the layer, by path -> target
        self.linked: dict[tuple[int, int], str] = {}  # (st_dev, st_ino) of files with several names -> content hash
        self.noted = options.owners == owners.NOTED
        self.own = (os.geteuid(), os.getegid())
        self.umask = _umask()

    def run(self) -> Unpacked:
        _inherit_nothing(self.tree.root_fd)
        for entry in entries(self.stream, self.options.limits):
            self.result.count += 1
            try:
                self._entry(self._resolved(entry) if self.symlinks else entry)
            except OSError as error:
                raise _explained(error, entry.path) from None
        self._place_marks()
        for path, described in sorted(self.described.items(), key=lambda item: -len(item[0])):
            finish_directory(self.tree, path, described, self.options, self.recorder, self.result.dropped_xattrs)
        self.result.diff_id, self.result.tar_size = self.stream.finish()
        self.result.unresolved.directories.update(self.implicit)
        return self.result

    def _resolved(self, entry: Entry) -> Entry:
        """The entry with its path, and of a hard link its target's, resolved through the symlinks of the layer."""
        if entry.kind == OPAQUE:
            return entry._replace(path=self._through_symlinks((*entry.path, b""))[:-1])
        path = self._through_symlinks(entry.path)
        link = self._through_symlinks(entry.link)
        if entry.kind == LINK and path == link:
            raise _refused(entry.path, "a hard link to itself")
        return entry if path is entry.path and link is entry.link else entry._replace(path=path, link=link)

    def _through_symlinks(self, path: Path) -> Path:
        """A path with symlinks in its directories resolved, its last name not. Raises: Refused."""
        parent = path[:-1]
        if not parent or parent in self.described or parent in self.implicit:
            return path  # a directory
        real: list[bytes] = []
        todo = list(reversed(parent))
        followed = 0
        while todo:
            name = todo.pop()
            if name == b"..":
                del real[-1:]  # the root's `..` is the root
                continue
            real.append(name)
            target = self.symlinks.get(tuple(real))
            if target is None:
                continue
            followed += 1
            if followed > _FOLLOWED_MAX:
                raise _refused(path, f"it is below more than {_FOLLOWED_MAX} symbolic links")
            real = [] if target.startswith(b"/") else real[:-1]
            todo += (name for name in reversed(target.split(b"/")) if name not in (b"", b"."))
        if not followed:
            return path
        if any(markers.is_reserved(name) for name in real):
            raise _refused(path, "it is below a symbolic link to a whiteout")
        return (*real, path[-1])

    def _entry(self, entry: Entry) -> None:
        if entry.kind == WHITEOUT:
            self._parent(entry)
            self.hidden.add(entry.path)
        elif entry.kind == OPAQUE:
            self._make_parents((*entry.path, b""), 0)
            self.opaque.add(entry.path)
        elif entry.kind == DIRECTORY:
            self._directory(entry)
        elif entry.kind == LINK:
            self._link(entry)
        elif entry.kind == FILE:
            self._file(entry)
        else:
            self._special(entry)

    def _directory(self, entry: Entry) -> None:
        path = entry.path
        if path and path not in self.described and path not in self.implicit:
            dir_fd = self._parent(entry)
            try:
                os.mkdir(path[-1], 0o700, dir_fd=dir_fd)
            except FileExistsError:
                self._clear(path)
                os.mkdir(path[-1], 0o700, dir_fd=self.tree.fd(path[:-1]))
        self.implicit.pop(path, None)
        self.described[path] = Described(entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs)

    def _file(self, entry: Entry) -> None:
        dir_fd = self._parent(entry)
        name = entry.path[-1]
        # Most files are created with their final mode, which saves one system call in five. Not so if the umask would
        # clear bits of it, or if attributes are set, which needs write permission.
        has_mode = not (entry.xattrs or self.noted or entry.mode & (0o7000 | self.umask))
        fd = self._create(dir_fd, entry.path, entry.mode if has_mode else 0o600)
        try:
            if entry.extents is not None:
                self.options.limits.check_files(self.result.size + entry.size)
                content = self._sparse(fd, entry)
            elif entry.size <= _SMALL:
                data = self.stream.read(entry.size)
                if len(data) != entry.size:
                    raise cut_off(os.fsdecode(name))
                if data:
                    write_all(fd, data)
                content = xxhash.xxh3_128_hexdigest(data)
            else:
                content = self._large(fd, entry)
            self.result.size += entry.size
            found = self._finish_file(fd, entry, content, has_mode)
        finally:
            os.close(fd)
        if self.recorder is not None:
            self.recorder.add(entry.path, found)

    def _create(self, dir_fd: int, path: Path, mode: int = 0o600) -> int:
        try:
            return os.open(path[-1], _NEW, mode, dir_fd=dir_fd)
        except FileExistsError:
            self._clear(path)
            return os.open(path[-1], _NEW, mode, dir_fd=self.tree.fd(path[:-1]))

    def _large(self, fd: int, entry: Entry) -> str:
        hash_ = xxhash.xxh3_128()
        left = entry.size
        for part in self.stream.parts(entry.size):
            write_all(fd, part)
            hash_.update(part)
            left -= len(part)
        if left:
            raise cut_off(os.fsdecode(entry.path[-1]))
        return hash_.hexdigest()

    def _sparse(self, fd: int, entry: Entry) -> str:
        assert entry.extents is not None
        hash_ = xxhash.xxh3_128()
        os.ftruncate(fd, entry.size)
        at = 0
        for offset, length in entry.extents:
            _hash_zeros(hash_, offset - at)
            os.lseek(fd, offset, os.SEEK_SET)
            left = length
            for part in self.stream.parts(length):
                write_all(fd, part)
                hash_.update(part)
                left -= len(part)
            if left:
                raise cut_off(os.fsdecode(entry.path[-1]))
            at = offset + length
        _hash_zeros(hash_, entry.size - at)
        return hash_.hexdigest()

    def _finish_file(self, fd: int, entry: Entry, content: str, has_mode: bool) -> Fingerprint:
        """Set owner, attributes, mode, time, in this order: chown clears set-id bits and capabilities, for example."""
        mode, uid, gid = entry.mode, entry.uid, entry.gid
        noted = {}
        if self.noted:
            noted = note(fd, owners.Override(uid, gid, mode, entry.kind, entry.device))
            mode = mode & 0o777 | 0o600
            uid, gid = self.own
        elif (uid, gid) != self.own:
            chown(fd, uid, gid)
        kept = noted
        if entry.xattrs:
            kept = set_xattrs(fd, dict(entry.xattrs), self.result.dropped_xattrs) | noted
        if not has_mode:
            os.fchmod(fd, mode)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        return Fingerprint("f", mode, uid, gid, entry.mtime_ns, content, xattrs_digest(kept))

    def _special(self, entry: Entry) -> None:
        """Make a symlink, a device or a fifo, or a regular file that stands for it."""
        dir_fd = self._parent(entry)
        name = entry.path[-1]
        if _exists(dir_fd, name):
            self._clear(entry.path)
            dir_fd = self.tree.fd(entry.path[:-1])
        if entry.kind == SYMLINK and not (self.noted and (entry.uid, entry.gid) != (0, 0)):
            os.symlink(entry.target, name, dir_fd=dir_fd)
            found = self._finish_symlink(dir_fd, entry)
        elif entry.kind != SYMLINK and self._make_node(dir_fd, entry):
            found = self._finish_node(dir_fd, entry)
        else:
            fd = self._create(dir_fd, entry.path)
            try:
                found = self._note_special(fd, entry)
            finally:
                os.close(fd)
        if entry.kind == SYMLINK:
            self.symlinks[entry.path] = entry.target
        if self.recorder is not None:
            self.recorder.add(entry.path, found)

    def _make_node(self, dir_fd: int, entry: Entry) -> bool:
        if self.noted:
            return False  # user.* attributes can be set on regular files only
        try:
            os.mknod(entry.path[-1], entry.kind | 0o600, os.makedev(*entry.device), dir_fd=dir_fd)
        except PermissionError:
            if entry.kind == FIFO:
                raise
            return False  # in a user namespace no devices can be made
        return True

    def _finish_node(self, dir_fd: int, entry: Entry) -> Fingerprint:
        fd = os.open(entry.path[-1], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        path = f"/proc/self/fd/{fd}"
        mode, uid, gid = entry.mode, entry.uid, entry.gid
        try:
            chown(path, uid, gid)
            kept = set_xattrs(path, dict(entry.xattrs), self.result.dropped_xattrs)
            os.chmod(path, mode)
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)
        kind = {CHARACTER: "c", BLOCK: "b", FIFO: "p"}[entry.kind]
        what: str | tuple[int, ...] = "" if entry.kind == FIFO else entry.device
        return Fingerprint(kind, mode, uid, gid, entry.mtime_ns, what, xattrs_digest(kept))

    def _note_special(self, fd: int, entry: Entry) -> Fingerprint:
        """Finish a regular file that stands for a device, a fifo, or a symlink, whose target is its content."""
        mode = 0o777 if entry.kind == SYMLINK else entry.mode
        write_all(fd, entry.target)
        try:
            kept = note(fd, owners.Override(entry.uid, entry.gid, mode, entry.kind, entry.device))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise
            why = "this filesystem supports neither this device, fifo or symlink nor its extended attribute"
            raise OSError(errno.EPERM, why) from None
        uid, gid = self.own if self.noted else (entry.uid, entry.gid)
        if not self.noted:
            chown(fd, uid, gid)
        os.fchmod(fd, 0o600)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        return Fingerprint(
            "f", 0o600, uid, gid, entry.mtime_ns, xxhash.xxh3_128_hexdigest(entry.target), xattrs_digest(kept)
        )

    def _finish_symlink(self, dir_fd: int, entry: Entry) -> Fingerprint:
        name = entry.path[-1]
        uid, gid = (entry.uid, entry.gid) if not self.noted else self.own
        if (uid, gid) != self.own:
            chown(name, uid, gid, dir_fd=dir_fd)
        kept: dict[str, bytes] = {}
        if entry.xattrs:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
            try:
                kept = set_xattrs(f"/proc/self/fd/{fd}", dict(entry.xattrs), self.result.dropped_xattrs)
            finally:
                os.close(fd)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=dir_fd, follow_symlinks=False)
        return Fingerprint("l", 0o777, uid, gid, entry.mtime_ns, os.fsdecode(entry.target), xattrs_digest(kept))

    def _link(self, entry: Entry) -> None:
        dir_fd = self._parent(entry)
        *parent, name = entry.link
        if entry.path == entry.link[: len(entry.path)]:
            raise _refused(entry.path, "a hard link to a path below itself")
        try:
            source_fd = os.dup(self.tree.fd(tuple(parent)))
        except FileNotFoundError:
            self.result.unresolved.links[entry.path] = entry.link
            return
        try:
            st = os.stat(name, dir_fd=source_fd, follow_symlinks=False)
            if stat.S_ISDIR(st.st_mode):
                raise _refused(entry.path, "a hard link to a directory")
            dir_fd = self.tree.fd(entry.path[:-1])
            if _exists(dir_fd, entry.path[-1]):
                self._clear(entry.path)
                dir_fd = self.tree.fd(entry.path[:-1])
            os.link(name, entry.path[-1], src_dir_fd=source_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            self.result.unresolved.links[entry.path] = entry.link
            return
        finally:
            os.close(source_fd)
        self.result.unresolved.links.pop(entry.path, None)
        if entry.link in self.symlinks:
            self.symlinks[entry.path] = self.symlinks[entry.link]
        if self.recorder is not None:
            # Content hashes are not kept in memory for every file: the target is read again, once.
            self.recorder.add(entry.path, fingerprint_of(Directories(dir_fd), entry.path[-1:], self.linked))

    def _parent(self, entry: Entry) -> int:
        """The directory that `entry` goes into, made if it does not exist."""
        path = entry.path
        if path in self.result.unresolved.links:
            del self.result.unresolved.links[path]
        return self._make_parents(path, entry.mtime_ns)

    def _make_parents(self, path: Path, mtime_ns: int) -> int:
        parent = path[:-1]
        if parent not in self.described and parent not in self.implicit:
            for depth in range(1, len(parent) + 1):
                ancestor = parent[:depth]
                if ancestor in self.described or ancestor in self.implicit:
                    continue
                with suppress(FileExistsError):
                    os.mkdir(ancestor[-1], 0o700, dir_fd=self.tree.fd(ancestor[:-1]))
                    self.implicit[ancestor] = mtime_ns
        fd = self.tree.fd(parent)
        if parent in self.implicit:
            self.implicit[parent] = max(self.implicit[parent], mtime_ns)
        return fd

    def _clear(self, path: Path) -> None:
        """Remove the result of an earlier entry at `path`: the later of two entries counts."""
        self.tree.close_all()
        remove_tree(self.tree.fd(path[:-1]), path[-1])
        self.linked.clear()  # inode numbers are reused
        depth = len(path)
        for known in (self.described, self.implicit, self.symlinks, self.result.unresolved.links):
            for below in [other for other in known if other[:depth] == path]:
                del known[below]
        self.hidden = {other for other in self.hidden if other[:depth] != path or len(other) == depth}
        self.opaque = {other for other in self.opaque if other[:depth] != path}
        if self.recorder is not None:
            self.recorder.removed(path)

    def _place_marks(self) -> None:
        for path in sorted(self.hidden):
            dir_fd = self.tree.fd(path[:-1])
            if path in self.described or path in self.implicit:
                self.opaque.add(path)
            elif not _exists(dir_fd, path[-1]) and path not in self.result.unresolved.links:
                mark = markers.whiteout_name(path[-1])
                assert mark is not None, "the name came from a whiteout, so it is short enough"
                self._mark(path[:-1], mark)
        for path in sorted(self.opaque):
            self._mark(path, markers.OPAQUE_NAME)

    def _mark(self, parent: Path, mark: bytes) -> None:
        """Make a mark: an empty file with the time 0, so that unpacking a layer twice gives equal directories."""
        if self.options.dialect == OVERLAY:
            self._overlay_mark(parent, mark)
            return
        fd = self._create(self.tree.fd(parent), (*parent, mark))
        try:
            os.fchmod(fd, _MARK_MODE)
            os.utime(fd, ns=(0, 0))
        finally:
            os.close(fd)
        if self.recorder is not None:
            found = Fingerprint("f", _MARK_MODE, *self.own, 0, xxhash.xxh3_128_hexdigest(b""))
            self.recorder.add((*parent, mark), found)

    def _overlay_mark(self, parent: Path, mark: bytes) -> None:
        """Make a mark of the kernel's overlayfs (overlayfs.rst, "whiteouts and opaque directories")."""
        fd = self.tree.fd(parent)
        if mark == markers.OPAQUE_NAME:
            try:
                os.setxattr(fd, "trusted.overlay.opaque", b"y")
            except PermissionError:
                os.setxattr(fd, "user.overlay.opaque", b"y")
            return
        name = markers.hidden_name(mark)
        assert name is not None
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=fd)


def _umask() -> int:
    """The umask of this process, from /proc (Linux 4.7): umask(2) would change it, for all threads."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o777  # so every mode is set


def _inherit_nothing(root_fd: int) -> None:
    """Remove set-group-ID and ACLs, which the layer's files would inherit, from the root directory."""
    mode = os.fstat(root_fd).st_mode
    if mode & stat.S_ISGID:
        os.fchmod(root_fd, stat.S_IMODE(mode) & ~stat.S_ISGID)
    for name in (posix_acl.DEFAULT, posix_acl.ACCESS):
        with suppress(OSError):  # there is none, or this filesystem has none
            os.removexattr(root_fd, name)


def _exists(dir_fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


_ZEROS: Final = bytes(1 << 20)


def _hash_zeros(hash_: xxhash.xxh3_128, count: int) -> None:
    while count > 0:
        hash_.update(_ZEROS[:count])
        count -= len(_ZEROS)


def _explained(error: OSError, path: Path) -> Exception:
    """Convert an error: to Refused if the tar's content caused it; else to an OSError with the path of the entry."""
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return _refused(path, "it is below a file")
    if error.errno == errno.ENAMETOOLONG:
        return _refused(path, "it is below a symbolic link to a name that is too long")
    if error.errno == errno.EXDEV:
        return _refused(path, "a filesystem is mounted there")
    return OSError(error.errno, error.strerror, _shown(path))


def _refused(path: Path, why: str) -> Refused:
    return Refused("unpacking a layer", _shown(path), why)


def _shown(path: Path) -> str:
    return os.fsdecode(b"/".join(path))
