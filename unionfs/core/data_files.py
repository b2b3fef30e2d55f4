"""Descriptors of the data of files: of the upper's file, of a lower's, or of both where a file has a part of its data.

The part of UnionState that opens files. Knows nodes, branches and partial files.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final, NoReturn

from unionfs.core import marks, partial
from unionfs.core.branch import BranchDir
from unionfs.core.fds import FdCache, FileFd
from unionfs.core.lower import LowerTree
from unionfs.core.node import FileNode
from unionfs.core.owner_override import open_as_owner
from unionfs.core.partial import Partial

_open: Final = os.open  # compiled code has no need to look these up at each call
_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_O_NOATIME: Final = os.O_NOATIME


def _refuse(code: int, name: bytes) -> NoReturn:
    raise OSError(code, os.strerror(code), os.fsdecode(name))


class DataFiles:
    """Opens the data of nodes. Base class of UnionState, which sets the fields."""

    fds: FdCache
    lowers: LowerTree
    noatime_flag: int

    def read_fd(self, node: FileNode) -> FileFd:
        """Return a descriptor to read the node's data from. Raises as open(2) does; EINVAL for nodes without data."""
        held = node.held
        if held is not None:
            held.used = True
            return held
        held = self._open_to_read(node)
        self.fds.keep(node, held)
        return held

    def source_fd(self, node: FileNode) -> FileFd:
        """As `read_fd`, for a single read: a newly opened descriptor does not enter the cache."""
        held = node.held
        if held is not None:
            held.used = True
            return held
        return self._open_to_read(node)

    def _open_to_read(self, node: FileNode) -> FileFd:
        if not node.has_data or not node.leaf:  # no leaf: removed externally
            _refuse(errno.ESTALE if node.has_data else errno.EINVAL, node.name)
        flags = _FLAGS
        links = node.links
        if links is not None and links.partial is not None and links.partial.has_own:
            held = self._open_partial(node, links.partial)
        elif links is not None and links.data is not None:
            held = self._open_data(node, links.data)
        elif node.home.branch.writable:  # only for reading: the file may be running, or its filesystem read-only by now
            try:
                held = FileFd(self._open_upper(node, os.O_RDONLY | flags))
            except PermissionError:
                held = FileFd(open_as_owner(node.home, node.leaf, os.O_RDONLY | flags))
        else:
            held = self._open_lower(node.home, node.leaf, flags)
            if not node.home.branch.has_xattrs:
                held.xattrs = []
            elif marks.is_metacopy_fd(held):
                del held  # so that an error below does not keep it open
                if node.parent.low is None:
                    _refuse(errno.EIO, node.leaf)
                node.rare().data = self.lowers.data_place(node.parent.low, node.home, node.leaf)
                return self._open_to_read(node)
            if held.xattrs is not None and not held.xattrs:
                node.no_xattrs = True
        return held

    def _open_data(self, node: FileNode, data: tuple[BranchDir, bytes]) -> FileFd:
        """Open the lower file that has a metacopy file's data. EIO if it is missing, or has changed."""
        place, leaf = data
        if not leaf:
            raise partial.missing_error()
        held = self._open_lower(place, leaf, _FLAGS)
        part = node.links.partial if node.links is not None else None
        if part is not None and part.record is not None:
            st = os.fstat(held.fd)
            if (st.st_size, st.st_mtime_ns, st.st_ino) != part.record[1:4]:
                raise partial.missing_error()
        return held

    def _open_partial(self, node: FileNode, part: Partial) -> FileFd:
        """Open a file of the upper that has a part of its data, with the lower file that has the others."""
        flags = _FLAGS
        try:
            held = FileFd(self._open_upper(node, os.O_RDWR | flags), writable=True)
        except OSError as exc:
            if exc.errno == errno.EACCES:
                held = FileFd(open_as_owner(node.home, node.leaf, os.O_RDWR | flags), writable=True)
            elif exc.errno in (errno.EROFS, errno.EPERM, errno.ETXTBSY):
                held = FileFd(self._open_upper(node, os.O_RDONLY | flags))
            else:
                raise
        held.partial = part
        links = node.links
        if links is not None and links.data is not None and not part.is_lost:
            with contextlib.suppress(OSError):  # the upper's own blocks can be read
                held.lower = self._open_data(node, links.data)
        if part.has_own and not part.bits and part.limit:
            try:
                partial.load(part, held.fd, held.lower.fd if held.lower is not None else -1)
            except BaseException:
                del held  # else the traceback keeps it open
                raise
        return held

    def partial_fd(self, node: FileNode) -> FileFd:
        """Return the descriptor of a file of the upper that has not all of its data, with the lower file's."""
        held = node.held
        if held is not None and held.partial is not None and held.writable:
            held.used = True
            return held
        assert node.links is not None
        assert node.links.partial is not None
        held = self._open_partial(node, node.links.partial)
        if not held.writable:
            _refuse(errno.EROFS, node.name)
        self.fds.keep(node, held)
        return held

    def upper_fd(self, node: FileNode) -> FileFd:
        """Return a descriptor of the upper's file itself, wherever its data are. Preconditions: the node is up."""
        links = node.links
        if links is None or links.data is None:
            return self.read_fd(node)
        flags = os.O_RDONLY | _FLAGS
        return FileFd(self._open_upper(node, flags))

    def _open_upper(self, node: FileNode, flags: int) -> int:
        if self.noatime_flag:
            try:
                return os.open(node.leaf, flags | self.noatime_flag, dir_fd=node.home.fd())
            except PermissionError:  # another user's file: O_NOATIME is for the owner (open(2))
                pass
        return os.open(node.leaf, flags, dir_fd=node.home.fd())

    @staticmethod
    def _open_lower(place: BranchDir, leaf: bytes, flags: int) -> FileFd:
        """Open a lower file without changing its atime, if permitted (open(2): O_NOATIME is for the owner)."""
        try:
            return FileFd(_open(leaf, _O_NOATIME | flags, dir_fd=place.fd()))
        except PermissionError:
            return FileFd(os.open(leaf, os.O_RDONLY | flags, dir_fd=place.fd()))

    def write_fd(self, node: FileNode) -> FileFd:
        """Return a descriptor to write the node's data to. Preconditions: the node is copied up."""
        held = node.held
        if held is not None and held.writable:
            held.used = True
            return held
        if not node.has_data or not node.leaf:  # no leaf: removed externally
            _refuse(errno.ESTALE if node.has_data else errno.EINVAL, node.name)
        if node.links is not None and node.links.partial is not None:
            return self.partial_fd(node)
        flags = os.O_RDWR | _FLAGS
        appends = False
        try:
            fd = self._open_upper(node, flags)
        except PermissionError as exc:
            appends = exc.errno == errno.EPERM  # append-only (chattr(1)), else immutable
            if appends:
                fd = self._open_upper(node, flags | os.O_APPEND)
            else:
                fd = open_as_owner(node.home, node.leaf, flags)
        held = FileFd(fd, writable=True)
        held.appends = appends
        self.fds.keep(node, held)
        return held
