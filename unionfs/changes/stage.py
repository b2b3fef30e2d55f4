"""Build all new files and directories of a plan under temporary names, beside the paths they will be renamed to.

Knows branches, plans and the journal. A new object has a temporary name that starts with a dot, is private until it
is complete, and is in the journal before it is made. No existing file is changed, except that it may get another link.

A copy keeps content with its holes (shared with the source if the filesystem supports it), owner, mode, times, extended
attributes, ACLs, and hard links.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from collections.abc import Callable
from typing import Final, NamedTuple

from unionfs.changes.check import DROP, SET_ATTRIBUTES, Action
from unionfs.changes.compare import MODE, OWNER, XATTRS
from unionfs.changes.journal import Journal, Operation
from unionfs.changes.listing import Change
from unionfs.changes.objects import Branches, BranchPath, Object, ObjectState, fd_xattrs
from unionfs.changes.owners import Owner, OwnerChoice
from unionfs.syscalls import files

Progress = Callable[[str, bytes], None]
"""Called before every step with a verb and the path."""

WRITABLE: Final = stat.S_IWUSR | stat.S_IXUSR
"""The mode bits that the owner of a directory needs to change entries."""
_CHUNK: Final = 1 << 20


class _Built(NamedTuple):
    """A directory that was built; its attributes are set last."""

    rel: bytes
    source: Object
    owner: Owner


class Stage:
    """Builds what one plan needs; every temporary name is in the journal before it is made."""

    def __init__(
        self,
        branches: Branches,
        owners: OwnerChoice,
        journal: Journal,
        unchanged_links: dict[tuple[int, int], bytes],
        progress: Progress,
    ) -> None:
        self.branches = branches  # immutable
        self.owners = owners  # immutable
        self.journal = journal
        self.unchanged_links = unchanged_links  # immutable; see listing.Changes
        self.progress = progress  # immutable
        self.links: dict[
            tuple[int, int], bytes
        ] = {}  # (dev, ino) of a source with several names -> the path of its copy
        self.stay: dict[
            tuple[int, int], tuple[bytes, Object]
        ] = {}  # upper files -> the target's, of which only attributes change
        self.directories: list[_Built] = []
        self.count = 0  # names used
        self.at = b"/"  # the path that is being built

    def build(self, actions: list[Action]) -> list[Operation]:
        """Build everything and return the operations that rename it. Raises: OSError; then a part of it is built."""
        for action in actions:
            new, old = action.change.new, action.change.old
            if action.verb == SET_ATTRIBUTES and not action.for_directory and new is not None and old is not None:
                self.stay[new.dev, new.ino] = (action.path[1:], old)
        prepared = [self.prepare(action) for action in actions]
        for built in reversed(self.directories):
            self.set_attributes(built.rel, built.source, built.owner)
        return _expect_new_attributes([self.complete(operation) for operation in prepared])

    def prepare(self, action: Action) -> Operation:
        path = os.fsdecode(action.path[1:])
        change = action.change
        if action.verb == SET_ATTRIBUTES:
            return self.dressing(action, path)
        expected = ObjectState.of(change.old) if change.old is not None else None
        aside = self.name_aside(action)
        if action.verb == DROP:
            return Operation(DROP, path, change.kind, os.fsdecode(aside), None, expected)
        top = self.beside(action, aside)
        self.build_one(change, action.owner, top)
        for part in action.below:
            assert part.new is not None
            owner = self.owner_of(part.new, action)
            self.build_one(part, owner, top + part.path[len(action.path) :])
        return Operation(action.verb, path, change.kind, os.fsdecode(aside), None, expected)

    def dressing(self, action: Action, path: str) -> Operation:
        new, what = action.change.new, action.change.what
        assert new is not None
        return Operation(
            SET_ATTRIBUTES,
            path,
            action.change.kind,
            expected=ObjectState.of(action.change.old) if action.change.old is not None else None,
            uid=action.owner.uid if OWNER in what else None,
            gid=action.owner.gid if OWNER in what else None,
            mode=stat.S_IMODE(new.mode) if OWNER in what or MODE in what else None,
            xattrs={name: value.hex() for name, value in self.xattrs(new).items()} if XATTRS in what else None,
            mtime_ns=new.mtime_ns if action.with_mtime else None,
        )

    def complete(self, operation: Operation) -> Operation:
        """The operation with the identity of its new object."""
        if operation.verb in (SET_ATTRIBUTES, DROP):
            return operation
        rel = os.fsencode(os.path.join(os.path.dirname(operation.path), operation.aside))
        st = self.lstat(BranchPath(self.branches.own, rel))
        return dataclasses.replace(operation, made=(st.st_dev, st.st_ino))

    def name_aside(self, action: Action) -> bytes:
        """Choose a name beside the path and record it. Our own directory without write permission is made
        writable until Commit.clear or take_back."""
        self.count += 1
        name = os.fsencode(self.journal.name(self.count))
        rel = self.beside(action, name)
        dir_fd = self.branches.dir_fd(self.parent(rel))
        parent = os.fstat(dir_fd)
        mode = stat.S_IMODE(parent.st_mode)
        if parent.st_uid == os.geteuid() and not self.owners.privileged and mode | WRITABLE != mode:
            self.journal.add_aside(os.fsdecode(rel), parent.st_mtime_ns, mode)
            os.chmod(f"/proc/self/fd/{dir_fd}", mode | WRITABLE)
        else:
            self.journal.add_aside(os.fsdecode(rel), parent.st_mtime_ns)
        return name

    def parent(self, rel: bytes) -> BranchPath:
        """The directory of the target that `rel` is in."""
        return BranchPath(self.branches.own, rel.rpartition(b"/")[0])

    def beside(self, action: Action, name: bytes) -> bytes:
        parent = action.path.rpartition(b"/")[0][1:]
        return parent + b"/" + name if parent else name

    def owner_of(self, new: Object, action: Action) -> Owner:
        """The owner of an object in a new directory; a moved object keeps its owner."""
        if new.place.branch >= self.branches.own:
            st = self.lstat(new.place)
            return Owner(st.st_uid, st.st_gid)
        return self.owners.choose(new, None, action.parent, action.parent_mode)

    # -- one object ------------------------------------------------------------------------------------------------

    def build_one(self, change: Change, owner: Owner, rel: bytes) -> None:
        """Make a copy of `change.new` at `rel` of the target; directories get their attributes later."""
        source = change.new
        assert source is not None
        self.at = change.path
        self.progress("build", change.path)
        place = self.parent(rel)
        name = rel.rpartition(b"/")[2]
        if source.is_dir:
            os.mkdir(name, 0o700, dir_fd=self.branches.dir_fd(place))
            self.directories.append(_Built(rel, source, owner))
            return
        key = (source.dev, source.ino)
        if source.nlink > 1 and self.link(source, key, place, name):
            return
        if source.kind == stat.S_IFREG:
            fd = os.open(
                name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.branches.dir_fd(place)
            )
            try:
                self.copy_content(source, fd)
            finally:
                os.close(fd)
        elif source.kind == stat.S_IFLNK:
            os.symlink(self.branches.readlink(source.place), name, dir_fd=self.branches.dir_fd(place))
        else:
            os.mknod(name, source.kind | 0o600, source.rdev, dir_fd=self.branches.dir_fd(place))
        self.set_attributes(rel, source, owner)
        if source.nlink > 1:
            self.links[key] = rel

    def link(self, source: Object, key: tuple[int, int], place: BranchPath, name: bytes) -> bool:
        """Make the new name a link of the same file, if another name of it was built or is unchanged."""
        first = self.links.get(key) or self.one_that_stays(source, key)
        if first is None:
            return False
        # Two directories are needed at once, and asking for one may close the other.
        from_fd = os.dup(self.branches.dir_fd(self.parent(first)))
        try:
            os.link(
                first.rpartition(b"/")[2],
                name,
                src_dir_fd=from_fd,
                dst_dir_fd=self.branches.dir_fd(place),
                follow_symlinks=False,
            )
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.EMLINK, errno.EXDEV, errno.ENOENT):
                raise
            return False  # fs.protected_hardlinks, or too many links: make a copy instead
        finally:
            os.close(from_fd)
        return True

    def one_that_stays(self, source: Object, key: tuple[int, int]) -> bytes | None:
        """An existing name of the target for a file with several names."""
        if (
            source.place.branch == self.branches.own
        ):  # it is moved: its old name exists until the removals, which are last
            return source.rel if self.is_as_shown(source.place, source) else None
        first, shown = self.stay.get(key, (self.unchanged_links.get(key, b"/")[1:], source))
        return first if first and self.is_as_shown(BranchPath(self.branches.own, first), shown) else None

    def is_as_shown(self, place: BranchPath, source: Object) -> bool:
        """Whether a file of the target is unchanged since the union began."""
        try:
            st = self.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (st.st_mode, st.st_size, st.st_mtime_ns) == (source.mode, source.size, source.mtime_ns)

    def copy_content(self, source: Object, to_fd: int) -> None:
        from_fd = self.open_source(source.data)
        try:
            copy_data(from_fd, to_fd)
        finally:
            os.close(from_fd)

    def open_source(self, place: BranchPath) -> int:
        """A descriptor for reading. The mode of our own unreadable file is changed for a moment."""
        try:
            return self.branches.open_data(place)
        except PermissionError:
            if place.branch >= self.branches.own:
                raise
        path_fd = self.branches.open_path(place)
        try:
            path = f"/proc/self/fd/{path_fd}"
            mode = stat.S_IMODE(os.fstat(path_fd).st_mode)
            os.chmod(path, mode | stat.S_IRUSR)
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            finally:
                os.chmod(path, mode)
        finally:
            os.close(path_fd)

    def set_attributes(self, rel: bytes, source: Object, owner: Owner) -> None:
        """Give the new object at `rel` the source's attributes and the chosen owner."""
        path_fd = self.branches.open_path(source.place)
        try:
            atime_ns = os.fstat(path_fd).st_atime_ns
        finally:
            os.close(path_fd)
        path_fd = self.branches.open_path(BranchPath(self.branches.own, rel))
        try:
            set_attributes(path_fd, owner, stat.S_IMODE(source.mode), self.xattrs(source), (atime_ns, source.mtime_ns))
        finally:
            os.close(path_fd)

    def xattrs(self, source: Object) -> dict[str, bytes]:
        found = self.branches.xattrs(source.place)
        return self.owners.translate(found) if source.place.branch < self.branches.own else found

    def lstat(self, place: BranchPath) -> os.stat_result:
        above, _, name = place.rel.rpartition(b"/")
        return os.stat(
            name or b".", dir_fd=self.branches.dir_fd(BranchPath(place.branch, above)), follow_symlinks=False
        )


def _expect_new_attributes(operations: list[Operation]) -> list[Operation]:
    """Whether the file already has its new attributes: files get them first, before other names of them are handled."""
    with_attributes = {
        operation.expected[:2]: operation
        for operation in operations
        if operation.verb == SET_ATTRIBUTES and operation.expected
    }

    def expect(operation: Operation) -> Operation:
        expected = operation.expected
        before = (
            with_attributes.get(expected[:2]) if expected is not None and operation.verb != SET_ATTRIBUTES else None
        )
        if expected is None or before is None:
            return operation
        mode = expected.mode if before.mode is None else stat.S_IFMT(expected.mode) | before.mode
        mtime_ns = expected.mtime_ns if before.mtime_ns is None else before.mtime_ns
        return dataclasses.replace(operation, expected=expected._replace(mode=mode, mtime_ns=mtime_ns))

    return [expect(operation) for operation in operations]


def set_attributes(
    fd: int, owner: Owner | None, mode: int | None, xattrs: dict[str, bytes] | None, times_ns: tuple[int, int] | None
) -> None:
    """Set what is not None on the object behind an O_PATH descriptor, a symlink itself included.

    In an order in which none undoes another: the owner first (chown(2) clears set-id bits and capabilities), the mode
    after ACLs (they hold the group's bits), the times last.
    """
    path = f"/proc/self/fd/{fd}"
    st = os.fstat(fd)
    if owner is not None and (st.st_uid, st.st_gid) != owner:
        os.chown(path, *owner)
    if xattrs is not None:
        present = fd_xattrs(fd)
        for name in present.keys() - xattrs.keys():
            os.removexattr(path, name)
        for name, value in xattrs.items():
            if present.get(name) != value:
                os.setxattr(path, name, value)
    if mode is not None and not stat.S_ISLNK(st.st_mode):
        os.chmod(path, mode)
    if times_ns is not None:
        os.utime(path, ns=times_ns)


def copy_data(from_fd: int, to_fd: int) -> None:
    """Copy a whole file into an empty one, holes as holes, sharing the data where the filesystem can."""
    size = os.fstat(from_fd).st_size
    if size == 0:
        return
    try:
        files.ficlone(to_fd, from_fd)
        return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM):
            raise
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(from_fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        end = os.lseek(from_fd, offset, os.SEEK_HOLE)
        offset = _copy_run(from_fd, to_fd, offset, end)
    os.ftruncate(to_fd, size)


def _copy_run(from_fd: int, to_fd: int, offset: int, end: int) -> int:
    """Copy the bytes from `offset` to `end`; returns where it stopped, short of `end` only if the file has shrunk."""
    while offset < end:
        try:
            copied = os.copy_file_range(from_fd, to_fd, min(end - offset, 1 << 30), offset, offset)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                raise
            copied = 0
        if copied == 0:  # not between these two filesystems, or (procfs) not from this file
            data = os.pread(from_fd, min(end - offset, _CHUNK), offset)
            if not data:
                return end
            copied = os.pwrite(to_fd, data, offset)
        offset += copied
    return offset
