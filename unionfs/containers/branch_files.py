"""Put those files of a fork that replace nothing of the parent into a new branch, without the core: as further names
(hard links) of the fork's files if the fork is removed after the merge, else as copies.

A frozen branch is never written again, so the new branch may share its files, with their attributes. When the fork is
removed, such a file has as many names as before. If the command is killed before that, the new branch is removed. Runs
with the ids of the container.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from unionfs import markers
from unionfs.changes.compare import CONTENT, TYPE
from unionfs.changes.listing import Change
from unionfs.changes.objects import Branches, Object, fd_xattrs
from unionfs.changes.owners import Owner
from unionfs.changes.stage import set_attributes
from unionfs.containers.early_sync import EarlySync
from unionfs.core.copydata import Copy
from unionfs.trees.open_beneath import open_beneath
from unionfs.write_all import write_all

_DEFAULT_ACL: Final = "system.posix_acl_default"
_CANNOT_LINK: Final = (errno.EXDEV, errno.EMLINK, errno.EPERM)
_BLOCK: Final = 4096  # no filesystem has smaller holes in files that have data, too
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Prepare = Callable[[bytes], None]
"""Makes the directory at a path, or copies it up."""
Make = Callable[[bytes, Object], None]
"""Makes the object at a path by operations of the core."""


class BranchFiles:
    """The files of one new branch."""

    def __init__(self, upper: str, fork: Branches, given_up: Collection[int], parent: Collection[bytes]) -> None:
        """`upper`: the new branch. `given_up`: the branches of `fork` that are removed after the merge. `parent`: the
        paths that the parent has changed."""
        self._upper = upper  # immutable
        self._fork = fork  # immutable
        self._given_up = given_up  # immutable
        self._parent = parent  # immutable
        self._todo: dict[bytes, list[tuple[bytes, Object]]] = {}  # a directory -> names and objects

    def take(self, changes: Sequence[Change]) -> list[Change]:
        """Note the changes that `make` will make. Returns the other ones."""
        free = [self._is_free(change) for change in changes]
        names = Counter(  # of a file of the fork that has several: those that `make` can make
            (change.new.dev, change.new.ino)
            for change, is_free in zip(changes, free, strict=True)
            if is_free and change.new is not None and change.new.nlink > 1
        )
        others = []
        for change, is_free in zip(changes, free, strict=True):
            new = change.new
            if is_free and new is not None and self._can_make(new, names):
                directory, _, name = change.path.rpartition(b"/")
                self._todo.setdefault(directory, []).append((name, new))
            else:
                others.append(change)
        return others

    def _can_make(self, new: Object, names: Mapping[tuple[int, int], int]) -> bool:
        if new.nlink > 1:
            return new.nlink == names[new.dev, new.ino] and self._is_given_up(new)
        return self._can_copy(new) or self._is_given_up(new)

    def _can_copy(self, new: Object) -> bool:
        return stat.S_ISREG(new.mode) and new.nlink == 1 and not self._fork.has_overrides(new.data.branch)

    def _is_free(self, change: Change) -> bool:
        """Whether the change makes a file where the parent shows none, or the one of their common branches."""
        new, old = change.new, change.old
        if new is None or stat.S_ISDIR(new.mode) or change.path in self._parent:
            return False
        return old is None or (not old.is_dir and bool({CONTENT, TYPE} & set(change.what)))

    def _is_given_up(self, new: Object) -> bool:
        branch = new.place.branch
        return branch in self._given_up and new.data == new.place and not self._fork.has_overrides(branch)

    def make(self, prepare: Prepare, make: Make, sync_fd: int | None) -> bool:
        """Make the files; the function `make` makes those that can be neither linked nor copied by this class. Returns
        whether data were copied by this class. Raises OSError. `sync_fd`: on the filesystem, if the copies must be
        written through to its device; the caller does so at last. Precondition: others cannot look anything up in the
        branch."""
        root_fd = os.open(self._upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        sync = EarlySync(sync_fd)
        has_copied = False
        umask = os.umask(0)  # files are made with their modes
        try:
            for above, files in self._todo.items():
                prepare(above)
                dir_fd = open_beneath(root_fd, above[1:], os.O_RDONLY | os.O_DIRECTORY)
                try:
                    here = _Directory(dir_fd, _DEFAULT_ACL in os.listxattr(dir_fd))
                    for name, new in files:
                        if self._is_given_up(new) and self._link(new, dir_fd, name):
                            continue
                        if self._can_copy(new):
                            self._copy(new, here, name)
                            has_copied = True
                            sync.made_file()
                        else:
                            make(above + b"/" + name, new)
                finally:
                    os.close(dir_fd)
        finally:
            os.umask(umask)
            os.close(root_fd)
            sync.wait()
        return has_copied

    def _link(self, new: Object, dir_fd: int, name: bytes) -> bool:
        """Give a file of the fork a name in the new branch. Returns False if that is not possible."""
        source_fd = self._fork.parent_fd(new.place)
        leaf = new.rel.rpartition(b"/")[2]
        if new.kind == stat.S_IFREG and not new.size:  # it may have marks: data that are missing would have a size
            marks = os.listxattr(os.fsencode(f"/proc/self/fd/{source_fd}/") + leaf, follow_symlinks=False)
            if any(markers.is_private_xattr(mark) and mark != markers.ORIGIN_XATTR for mark in marks):
                return False
        try:
            os.link(leaf, name, src_dir_fd=source_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            return False
        return True

    def _copy(self, new: Object, here: _Directory, name: bytes) -> None:
        mode = stat.S_IMODE(new.mode)
        source = self._fork.open_data(new.data)
        try:
            target = os.open(name, _NEW, mode & 0o777, dir_fd=here.fd)
            try:
                st = os.fstat(source)
                if st.st_size > _BLOCK:
                    Copy(source, target, st.st_size).run()
                elif st.st_size:  # it has no holes
                    data = os.read(source, st.st_size)
                    if (written := os.write(target, data)) < len(data):
                        write_all(target, data[written:])
                if new.data != new.place:
                    xattrs = self._fork.xattrs(new.place)
                else:
                    xattrs = fd_xattrs(source) if os.listxattr(source) else {}
                times = (st.st_atime_ns, new.mtime_ns)
                if xattrs or here.has_acl or here.owner_of_new(target) != (new.uid, new.gid):
                    set_attributes(target, Owner(new.uid, new.gid), mode, xattrs, times)
                else:  # the same in fewer system calls
                    if mode & ~0o777:  # write(2) may have cleared these
                        os.fchmod(target, mode)
                    os.utime(target, ns=times)
            finally:
                os.close(target)
        finally:
            os.close(source)


class _Directory:
    """A directory of the new branch."""

    def __init__(self, fd: int, has_acl: bool) -> None:
        self.fd = fd  # immutable
        self.has_acl = has_acl  # immutable: files that are made in it get an ACL
        self._owner: tuple[int, int] | None = None

    def owner_of_new(self, fd: int) -> tuple[int, int]:
        """The owner and group of files that are made in it. `fd`: one that was just made."""
        if self._owner is None:
            st = os.fstat(fd)
            self._owner = st.st_uid, st.st_gid
        return self._owner
