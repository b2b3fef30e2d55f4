"""Copy-up: bring an object, and the directories above it, to the upper before it is changed.

Begin (open both sides), copy the bytes (any thread), commit (give it the attributes, rename it into place): nothing
is visible before the rename, so a crash leaves only junk in the staging directory. The mtime of the directory it is
placed in is put back, since users changed nothing there.

Knows nodes and branches. The kinds of copy: a file with its data, a directory without its content, anything else made
anew.
"""

from __future__ import annotations

import errno
import os
import stat
from time import perf_counter
from typing import Final

from unionfs.core import copy_metadata, fill, inode_flags, names, ownership, placement, sparse_copyup
from unionfs.core.attrs import ATTRIBUTES, IFMT, IFREG, WHOLE
from unionfs.core.branch import Stat
from unionfs.core.copydata import Copy
from unionfs.core.fds import FileFd
from unionfs.core.fill import Fill
from unionfs.core.ledger import FILE, OTHER, Cause
from unionfs.core.marks import path_at
from unionfs.core.node import DirNode, FileNode
from unionfs.core.owner_override import OwnerOverride
from unionfs.core.staging import LARGE
from unionfs.core.union_state import UnionState, refuse

INLINE_MAX: Final = 1 << 20
"""Files of up to this many bytes are copied without a worker thread: that takes less time than handing work to a thread
and back twice."""

AT_ONCE: Final = 64 << 10
"""Bytes that one read and one write copy, if there is no hole among them: that is quicker than sharing them."""

_BLOCK: Final = 4096  # no filesystem has smaller holes in files that have data, too
_pread: Final = os.pread  # compiled code has no need to look it up at each call


class CopyUp:
    """A copy-up under way. Made by `begin`; `copy` may run in any thread; then `commit` or `abort` on the union's
    thread."""

    def __init__(
        self,
        node: FileNode,
        src: FileFd | None,
        dst: FileFd,
        leaf: bytes,
        length: int,
        st: Stat,
        cause: Cause,
        since: float,
        *,
        durable: bool = False,
        mode: int = -1,
        flags: int = 0,
    ) -> None:
        self.node = node  # immutable
        self.cause = cause  # immutable: the request that needs the copy-up
        self.since = since  # immutable: perf_counter when it began
        self.leaf = leaf  # immutable: the name in the staging directory
        self.st = st  # immutable: attributes of the lower object
        self.dst = dst  # immutable
        self.src = src  # immutable; None when there are no bytes to copy
        self.length = length  # immutable
        self.durable = durable  # immutable
        self.mode = mode  # immutable: final permissions that the copy was made with; -1: set at the end
        self.flags = flags  # immutable: inode flags of the lower object
        self.kept_mode = False  # set by commit: whether it has kept them
        self._copy = Copy(src.fd if src is not None else -1, dst.fd, length)

    def copy(self) -> None:
        """Copy the data, and write them through to the device if `durable`. Raises OSError; EINTR after `cancel`."""
        if self.length:
            self._copy.run()
            if self.durable:
                os.fdatasync(self.dst.fd)

    def share(self) -> bool:
        """Share the data with the lower file (reflink), if the filesystem can; quick. Returns whether it did.
        Raises OSError."""
        return self.length >= self.st.st_size and self._copy.share()

    def cancel(self) -> None:
        """Make a running `copy` stop soon. May be called from any thread."""
        self._copy.cancelled = True

    @property
    def copied(self) -> int:
        """Return the bytes of data moved so far; shared extents do not count."""
        return self._copy.copied

    @property
    def reflinked(self) -> bool:
        """Whether the data are shared with the lower file instead of copied."""
        return self._copy.reflinked


def needs_copy(node: FileNode) -> bool:
    """Whether the node must be copied up before it is changed."""
    return not node.is_up or (node.links is not None and node.links.data is not None)


def begin(tree: UnionState, node: FileNode, size: int | None = None, need: int = WHOLE) -> CopyUp | Fill | None:
    """Begin a copy-up for a worker thread. None: there is nothing to copy, or so little that `ensure` does it at once,
    or the copy-up is done, since the data could be shared.

    `size`: the file is about to be truncated to this size, so no more bytes than that are copied. `need`: what the
    change needs of the copy (core.fill). Raises EROFS, what open(2) raises, and as `commit` does.
    """
    if not needs_copy(node):
        return None
    placement.require_upper(tree)
    if node.is_up:
        return fill.begin(tree, node, size, need)
    st = tree.stat(node)
    length = _length(st, size)
    if st.st_mode & IFMT != IFREG or length <= INLINE_MAX or sparse_copyup.is_possible(tree, node, length, need):
        tree.recent_stat = node, st
        return None
    job = _open(tree, node, st, size, None, inode_flags.PROTECTED)
    if job.flags & inode_flags.PROTECTED:  # `ensure` knows whether they forbid the change
        abort(tree, job)
        return None
    try:
        shared = job.share()
    except BaseException:
        abort(tree, job)
        raise
    if not shared:
        return job
    commit(tree, job)
    return None


def ensure(
    tree: UnionState,
    node: FileNode,
    size: int | None = None,
    mode: int | None = None,
    despite: int = 0,
    need: int = WHOLE,
) -> bool:
    """Copy the node up at once, if it is not yet in the upper. Raises EROFS, ENOSPC, EIO ... with nothing changed;
    EPERM for an immutable or append-only file, unless the change is allowed `despite` that (inode_flags.PROTECTED).

    `mode`: the file is about to get these permissions, so the copy may be made with them. Returns whether it was.
    `need`: what the change needs of the copy (core.fill).
    """
    if not needs_copy(node):
        return False
    placement.require_upper(tree)
    if node.is_up:
        fill.prepare(tree, node, size, need)
        return False
    recent_stat, tree.recent_stat = tree.recent_stat, None
    st = recent_stat[1] if recent_stat is not None and recent_stat[0] is node else tree.stat(node)
    if st.st_mode & IFMT != IFREG:
        _make_special(tree, node, st)
        return False
    length = _length(st, size)
    if sparse_copyup.is_possible(tree, node, length, need):
        shared = _share(tree, node, st, mode, despite)
        if shared is not None:
            return mode is not None and shared.kept_mode and shared.mode == mode
        has_mode = sparse_copyup.copy(tree, node, st, mode, despite)
        if has_mode is not None:
            fill.prepare(tree, node, size, need)
            return has_mode
    if not length or st.st_size <= AT_ONCE:
        return _copy_at_once(tree, node, st, length, mode, despite)
    job = _open(tree, node, st, size, mode, despite)
    try:
        job.copy()
    except BaseException:
        abort(tree, job)
        raise
    commit(tree, job)
    return mode is not None and job.kept_mode and job.mode == mode


def _share(tree: UnionState, node: FileNode, st: Stat, wanted: int | None, despite: int) -> CopyUp | None:
    """Copy a lower file up by sharing its data; None, with nothing done, if the filesystem cannot."""
    device = node.home.branch.dev
    if device in tree.unshareable:
        return None
    job = _open(tree, node, st, None, wanted, despite)
    try:
        if job.share():
            commit(tree, job)
            return job
    except BaseException:
        abort(tree, job)
        raise
    abort(tree, job)
    tree.unshareable.add(device)
    return None


def _copy_at_once(tree: UnionState, node: FileNode, st: Stat, length: int, wanted: int | None, despite: int) -> bool:
    """`ensure` for a file of so few bytes that their copying needs no cancelling."""
    since, lower = perf_counter(), node.home.branch.path
    src = tree.source_fd(node) if length else None
    flags = _flags(node, src, despite)
    leaf, dst, mode = placement.make_copy(tree, st, wanted)
    try:
        copied = _copy_few(src, dst, length, st.st_size) if src is not None else 0
        if tree.is_strict and copied:
            os.fdatasync(dst.fd)
        kept_mode = _complete(tree, node, src, dst, leaf, length, st, mode, flags)
        _place(tree, node, dst, leaf, st, flags)
    except BaseException:
        tree.staging.dispose(leaf)
        raise
    placement.enter(tree, node, lower, FILE, since, st.st_size, copied)
    return kept_mode and mode == wanted


def _copy_few(src: FileFd, dst: FileFd, length: int, size: int) -> int:
    """Copy the first `length` bytes of a file of `size`. Returns how many were copied."""
    if size > _BLOCK and _has_hole(src, size):
        copy = Copy(src.fd, dst.fd, length)
        copy.run()
        return copy.copied
    copied = 0
    data = _pread(src.fd, length, 0)
    while data:
        written = os.pwrite(dst.fd, data, copied)
        copied += written
        data = data[written:]
    return copied


def _has_hole(src: FileFd, size: int) -> bool:
    """Whether a file of `size` bytes has holes, by lseek(2): st_blocks counts blocks for attributes, too."""
    try:
        return os.lseek(src.fd, 0, os.SEEK_HOLE) < size
    except OSError:
        return False  # a filesystem that cannot tell


def _length(st: Stat, size: int | None) -> int:
    return st.st_size if size is None else min(size, st.st_size)


def _flags(node: FileNode, src: FileFd | None, despite: int) -> int:
    """Return the inode flags of a lower file that is to be copied up. EPERM if they forbid that, unless `despite`."""
    if src is None or _has_other_data(node):
        flags = inode_flags.read_at(node.home, node.leaf)
    else:
        flags = inode_flags.read(node.home.branch, src.fd)
    if flags & inode_flags.PROTECTED & ~despite:
        refuse(errno.EPERM, node.name)
    return flags


def _open(tree: UnionState, node: FileNode, st: Stat, size: int | None, wanted: int | None, despite: int) -> CopyUp:
    since, length = perf_counter(), _length(st, size)
    src = tree.read_fd(node) if length else None
    flags = _flags(node, src, despite)
    leaf, dst, mode = placement.make_copy(tree, st, wanted)
    cause = tree.ledger.current_cause()
    return CopyUp(node, src, dst, leaf, length, st, cause, since, durable=tree.is_strict, mode=mode, flags=flags)


def abort(tree: UnionState, job: CopyUp | Fill) -> None:
    """Give up a copy-up and remove the unfinished copy."""
    if isinstance(job, Fill):
        fill.abort(tree, job)
        return
    tree.staging.discard(job.leaf, job.dst, large=job.length > LARGE)


def commit(tree: UnionState, job: CopyUp | Fill) -> None:
    """Make the copy the node's object. Raises OSError with nothing changed.

    Another request may have copied the node up, renamed it or removed its last name since `begin`.
    """
    if isinstance(job, Fill):
        fill.commit(tree, job)
        return
    node = job.node
    if node.is_up:
        abort(tree, job)
        return
    lower = node.home.branch.path
    try:
        job.kept_mode = _complete(tree, node, job.src, job.dst, job.leaf, job.length, job.st, job.mode, job.flags)
        _place(tree, node, job.dst, job.leaf, job.st, job.flags)
    except BaseException:
        abort(tree, job)
        raise
    placement.enter(tree, node, lower, FILE, job.since, job.st.st_size, job.copied, job.reflinked, job.cause)


def _complete(
    tree: UnionState,
    node: FileNode,
    src: FileFd | None,
    dst: FileFd,
    leaf: bytes,
    length: int,
    st: Stat,
    mode: int,
    flags: int,
) -> bool:
    """Give the copy, which has its `length` bytes, its attributes. Returns whether it has kept `mode`. Raises
    OSError."""
    if src is not None and not _has_other_data(node):
        kept_mode = copy_metadata.give(tree, src.fd, node.home, st, tree.staging.here, leaf, dst.fd, src.xattrs, mode)
    else:
        source = path_at(node.home, node.leaf)
        kept_mode = copy_metadata.give(tree, source, node.home, st, tree.staging.here, leaf, dst.fd, None, mode)
    if flags:
        inode_flags.carry(dst.fd, flags)
    if length < st.st_size:
        os.utime(dst.fd)  # truncated already: the file that becomes visible has been changed just now
    if tree.is_strict:
        os.fsync(dst.fd)
    return kept_mode


def _place(tree: UnionState, node: FileNode, dst: FileFd, leaf: bytes, st: Stat, flags: int) -> None:
    """Rename the finished copy into place. Raises OSError; the caller then removes the copy."""
    placement.publish_file(tree, node, leaf, st)
    if flags & inode_flags.APPEND:  # such a file cannot be renamed, and `dst` does not append
        inode_flags.carry(dst.fd, flags, inode_flags.APPEND)
    elif not node.is_dead:
        tree.fds.keep(node, dst)


def _has_other_data(node: FileNode) -> bool:
    return node.links is not None and node.links.data is not None


def _make_special(tree: UnionState, node: FileNode, st: Stat) -> None:
    """Make a symlink, fifo, socket or device like the lower one. EPERM for devices that we may not make (mknod(2))."""
    staging = tree.staging
    since, lower = perf_counter(), node.home.branch.path
    leaf = staging.new_name()
    if stat.S_ISLNK(st.st_mode):
        ownership.make_symlink(staging.here, leaf, read_target(node))
    else:
        ownership.make_node(staging.here, leaf, stat.S_IFMT(st.st_mode), st.st_rdev)
    try:
        copy_metadata.give(tree, path_at(node.home, node.leaf), node.home, st, staging.here, leaf)
        placement.publish_file(tree, node, leaf, st)
    except BaseException:
        staging.dispose(leaf)
        raise
    placement.enter(tree, node, lower, OTHER, since)


def read_target(node: FileNode) -> bytes:
    """Read the target of a symlink. EINVAL for anything else."""
    overrides = node.home.branch.overrides
    if overrides is not None:
        return overrides.readlink(node.home, node.leaf)
    return os.readlink(node.leaf, dir_fd=node.home.fd())


def give_name(tree: UnionState, node: FileNode, parent: DirNode, name: bytes) -> None:
    """Make sure that the upper itself has an entry for this name of the node: by a copy-up, or by a link if the inode
    is in the upper already.

    Preconditions: `name` in `parent` is a visible name of the node.
    """
    if not node.is_up:
        if (node.parent, node.name) != (parent, name):
            _make_primary(node, parent, name)
        ensure(tree, node, need=ATTRIBUTES)
        return
    sparse_copyup.keep_source(tree, node)
    up = placement.ensure_dir(tree, parent)
    key = node.rare().key
    with OwnerOverride(up):
        try:
            os.stat(name, dir_fd=up.fd(), follow_symlinks=False)
            return
        except FileNotFoundError:
            pass
        st = tree.stat(node)
        before = up.stat()
        tree.hold_times(parent, before)
        if key is not None:
            tree.links.announce(key, 1, st.st_nlink + 1)
        os.link(node.leaf, name, src_dir_fd=node.home.fd(), dst_dir_fd=up.fd(), follow_symlinks=False)
    tree.restore_times(up.fd(), before)
    if key is not None:
        tree.links.cover(key, 1)
    names.copied_up(tree, parent, name, stat.S_IFMT(st.st_mode), st.st_ino, before)


def _make_primary(node: FileNode, parent: DirNode, name: bytes) -> None:
    """Choose one of the node's known names as the name under which it is copied up."""
    links = node.rare()
    links.others = [pair for pair in links.others if pair != (parent, name)] + [(node.parent, node.name)]
    node.parent, node.name = parent, name
