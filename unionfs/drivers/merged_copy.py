"""Copy a whole union of directories: the tree from which the drivers vfs, btrfs and devicemapper start.

Data are shared with the layers if the filesystem supports it (reflink). The copy keeps owners, modes, times,
attributes, holes and hard links. Paths are opened in pieces beneath a descriptor, without following links.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from unionfs.changes.ids import ShownIds
from unionfs.changes.lowers import Found, Stack, lookup, names
from unionfs.changes.objects import Branches, BranchPath, Entry, Object
from unionfs.changes.owners import Owner
from unionfs.changes.stage import copy_data, set_attributes
from unionfs.trees import walk
from unionfs.trees.open_beneath import open_beneath
from unionfs.trees.remove import remove_tree


def add(
    lowers: Sequence[str],
    target: str,
    *,
    unmapped_as_root: bool = False,
    hidden: Sequence[str] = (),
) -> None:
    """Add to the directory `target` the entries of the union of `lowers` (top first) that `target` lacks.

    An existing entry stays as it is; missing entries are added to an existing directory, which keeps its times. A
    directory gets its attributes when it is made. Raises: OSError; entries that were added before stay.
    """
    ids = ShownIds.inside(unmapped_as_root)
    with Branches(lowers[0], lowers[1:], ids=ids, hidden=hidden, has_upper=False) as branches:
        root_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _Addition(branches, root_fd).run(is_new=not os.listdir(root_fd))
        finally:
            os.close(root_fd)


def put_on_top(layer: str, target: str) -> None:
    """Change the directory `target`, which has no marks, to the result of a union with `layer` on top of it.

    Raises: OSError, with a part of the changes made; EINVAL for marks that need other layers (redirect, metacopy).
    """
    with Branches(layer, (), has_upper=False) as branches:
        root_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _Addition(branches, root_fd, on_top=True).run(is_new=True)
        finally:
            os.close(root_fd)


class _Addition:
    def __init__(self, branches: Branches, root_fd: int, *, on_top: bool = False) -> None:
        self._branches = branches  # immutable
        self._root_fd = root_fd  # immutable
        self._on_top = on_top  # immutable: the layer's entries and whiteouts replace the target's entries
        self._links: dict[tuple[int, int], bytes] = {}  # inode of a lower -> the path of its first copied name
        self._made: list[tuple[bytes, Object]] = []  # directories, each after its parent
        self._times: list[tuple[bytes, tuple[int, int]]] = []  # of existing directories to which entries were added
        self._todo: list[tuple[bytes, Stack]] = []

    def run(self, *, is_new: bool) -> None:
        top = self._branches.roots()
        if is_new:
            root = self._branches.root(top[0].branch).object
            assert root is not None
            self._made.append((b"", root))
        self._todo.append((b"", top))
        while self._todo:
            self._directory(*self._todo.pop())
        for rel, times_ns in self._times:
            fd = self._open(rel)
            try:
                os.utime(fd, ns=times_ns)
            finally:
                os.close(fd)
        for rel, directory in reversed(self._made):  # times last: making an entry changes them
            fd = self._open(rel)
            try:
                self._copy_attributes(fd, directory)
            finally:
                os.close(fd)

    def _directory(self, rel: bytes, stack: Stack) -> None:
        fd = self._open(rel)
        try:
            before = os.fstat(fd)
            there = {os.fsencode(name) for name in os.listdir(fd)}
            if self._on_top:
                there = {name for name in there if not self._clear(fd, name, rel, stack[0])}
            for name in names(self._branches, stack):
                path = rel + b"/" + name if rel else name
                if self._on_top and name not in there:
                    self._entry(stack[0], name)
                found = lookup(self._branches, stack, name)
                if found is None:
                    continue
                if name not in there:
                    self._make(fd, name, path, found)
                elif not found.object.is_dir or not _is_directory(fd, name):
                    continue
                if found.object.is_dir:
                    self._todo.append((path, found.stack))
            if os.fstat(fd).st_mtime_ns != before.st_mtime_ns:
                self._times.append((rel, (before.st_atime_ns, before.st_mtime_ns)))
        finally:
            os.close(fd)

    def _clear(self, fd: int, name: bytes, rel: bytes, directory: BranchPath) -> bool:
        """Remove an entry of the target that the layer's directory hides or replaces. Returns whether it did."""
        entry = self._entry(directory, name)
        is_below_opaque = not rel and bool(self._branches.root(directory.branch).opaque)
        said = walk.outcome(entry)
        if not is_below_opaque:
            if said == walk.ABSENT:
                return False
            if said == walk.DIRECTORY and _is_directory(fd, name):
                assert entry.object is not None
                self._made.append((rel + b"/" + name if rel else name, entry.object))
                return False
        remove_tree(fd, name)
        return True

    def _entry(self, directory: BranchPath, name: bytes) -> Entry:
        """The entry of the layer. Raises: EINVAL for marks that need other layers."""
        entry = self._branches.entry(directory, name)
        if entry.redirect is not None or entry.metacopy:
            path = os.path.join(self._branches.paths[directory.branch], directory.rel, name)
            raise OSError(errno.EINVAL, "a mark that needs other layers", os.fsdecode(path))
        return entry

    def _make(self, dir_fd: int, name: bytes, path: bytes, found: Found) -> None:
        source = found.object
        if source.is_dir:
            os.mkdir(name, 0o700, dir_fd=dir_fd)
            self._made.append((path, source))
            return
        if source.nlink > 1:
            first = self._links.setdefault((source.dev, source.ino), path)
            if first != path:
                self._link(first, dir_fd, name)
                return
        if source.kind == stat.S_IFSOCK:
            return  # a socket is useless without the process that listens
        if source.kind == stat.S_IFREG:
            self._file(dir_fd, name, source)
            return
        if source.kind == stat.S_IFLNK:
            os.symlink(self._branches.readlink(source.place), name, dir_fd=dir_fd)
        else:
            os.mknod(name, source.kind | 0o600, source.rdev, dir_fd=dir_fd)
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            self._copy_attributes(fd, source)
        finally:
            os.close(fd)

    def _link(self, first: bytes, dir_fd: int, name: bytes) -> None:
        parent, _, first_name = first.rpartition(b"/")
        parent_fd = self._open(parent)
        try:
            os.link(first_name, name, src_dir_fd=parent_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
        finally:
            os.close(parent_fd)

    def _file(self, dir_fd: int, name: bytes, source: Object) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=dir_fd)
        try:
            data_fd = self._branches.open_data(source.data)
            try:
                copy_data(data_fd, fd)
            finally:
                os.close(data_fd)
            self._copy_attributes(fd, source)
        finally:
            os.close(fd)

    def _copy_attributes(self, fd: int, source: Object) -> None:
        set_attributes(
            fd,
            Owner(source.uid, source.gid),
            stat.S_IMODE(source.mode),
            {} if source.sealed else self._branches.xattrs(source.place),
            (source.mtime_ns, source.mtime_ns),
        )

    def _open(self, rel: bytes) -> int:
        if not rel:
            return os.dup(self._root_fd)
        return open_beneath(self._root_fd, rel, os.O_RDONLY | os.O_DIRECTORY)


def _is_directory(dir_fd: int, name: bytes) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
