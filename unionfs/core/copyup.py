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

from unionfs.core import copy_metadata, inode_flags, inodes, names, ownership
from unionfs.core.attrs import IFMT, IFREG
from unionfs.core.branch import Branch, BranchDir, Stat
from unionfs.core.copydata import Copy
from unionfs.core.fds import FileFd
from unionfs.core.ledger import DIRECTORY, FILE, OTHER, Cause, CopiedUp
from unionfs.core.marks import NO_FLAGS, path_at
from unionfs.core.node import DirNode, FileNode, Node
from unionfs.core.owner_override import OwnerOverride
from unionfs.core.staging import LARGE
from unionfs.core.union_state import UnionState, refuse

INLINE_MAX: Final = 1 << 20
"""Bytes that are copied without a worker thread: they take less time than handing them over and back does twice."""

AT_ONCE: Final = 4096
"""Bytes that one read and one write copy."""

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
        self.cause = cause  # immutable: the request it is made for
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


def begin(tree: UnionState, node: FileNode, size: int | None = None) -> CopyUp | None:
    """Begin a copy-up for a worker thread. None: nothing to copy, or so little that `ensure` does it at once, or done
    here, since the data could be shared.

    `size`: the file is about to be truncated to this size, so no more bytes than that are copied. Raises EROFS, what
    open(2) raises, and as `commit` does.
    """
    if not needs_copy(node):
        return None
    require_upper(tree)
    st = tree.stat(node)
    if st.st_mode & IFMT != IFREG or _length(st, size) <= INLINE_MAX:
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
    tree: UnionState, node: FileNode, size: int | None = None, mode: int | None = None, despite: int = 0
) -> bool:
    """Copy the node up, if it is not, here and now. Raises EROFS, ENOSPC, EIO ... with everything as it was before;
    EPERM for an immutable or append-only file, unless the change is allowed `despite` that (inode_flags.PROTECTED).

    `mode`: the file is about to get these permissions, so the copy may be made with them. Returns whether it was.
    """
    if not needs_copy(node):
        return False
    require_upper(tree)
    recent_stat, tree.recent_stat = tree.recent_stat, None
    st = recent_stat[1] if recent_stat is not None and recent_stat[0] is node else tree.stat(node)
    if st.st_mode & IFMT != IFREG:
        _make_special(tree, node, st)
        return False
    length = _length(st, size)
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


def _copy_at_once(tree: UnionState, node: FileNode, st: Stat, length: int, wanted: int | None, despite: int) -> bool:
    """`ensure` for a file of so few bytes that it has no hole and its copying needs no cancelling."""
    since, lower = perf_counter(), node.home.branch.path
    src = tree.source_fd(node) if length else None
    flags = _flags(node, src, despite)
    leaf, dst, mode = _make_copy(tree, st, wanted)
    try:
        copied = _copy_few(src, dst, length) if src is not None else 0
        if tree.is_strict and copied:
            os.fdatasync(dst.fd)
        kept_mode = _complete(tree, node, src, dst, leaf, length, st, mode, flags)
        _place(tree, node, dst, leaf, st, flags)
    except BaseException:
        tree.staging.dispose(leaf)
        raise
    _enter(tree, node, lower, FILE, since, st.st_size, copied)
    return kept_mode and mode == wanted


def _copy_few(src: FileFd, dst: FileFd, length: int) -> int:
    """Copy the first `length` bytes. Returns how many were copied."""
    copied = 0
    data = _pread(src.fd, length, 0)
    while data:
        written = os.pwrite(dst.fd, data, copied)
        copied += written
        data = data[written:]
    return copied


def _length(st: Stat, size: int | None) -> int:
    return st.st_size if size is None else min(size, st.st_size)


def _flags(node: FileNode, src: FileFd | None, despite: int) -> int:
    """Return the inode flags of a lower file that is to be copied up. EPERM if they forbid that, unless `despite`."""
    if node.home.branch.writable:  # a metacopy file: it has its flags
        return 0
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
    leaf, dst, mode = _make_copy(tree, st, wanted)
    cause = tree.ledger.current_cause()
    return CopyUp(node, src, dst, leaf, length, st, cause, since, durable=tree.is_strict, mode=mode, flags=flags)


def _make_copy(tree: UnionState, st: Stat, wanted: int | None) -> tuple[bytes, FileFd, int]:
    """An empty file for the copy of one with attributes `st`: its name in the staging directory, a descriptor, and the
    permissions that it was made with and is to keep, -1 for none."""
    staging = tree.staging
    leaf = staging.new_name()
    mode = st.st_mode & 0o7777 if wanted is None else wanted
    if not _may_have_at_once(staging.here.branch, mode) or not tree.clear_umask(mode):
        mode = -1
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW | tree.noatime_flag
    return leaf, FileFd(os.open(leaf, flags, mode if mode >= 0 else 0o600, dir_fd=staging.fd()), True), mode


def _may_have_at_once(branch: Branch, mode: int) -> bool:
    """Whether a copy can be made with its permissions. Not with those that chown(2) clears, nor with those that keep
    its owner from setting attributes (xattr(7)). Others do not see it: the work directory is private."""
    return branch.overrides is None and not mode & ~0o777 and mode & 0o600 == 0o600


def abort(tree: UnionState, job: CopyUp) -> None:
    """Give up a copy-up and remove the unfinished copy."""
    tree.staging.discard(job.leaf, job.dst, large=job.length > LARGE)


def commit(tree: UnionState, job: CopyUp) -> None:
    """Make the copy the node's object. Raises OSError with everything as it was before.

    Another request may have copied the node up, renamed it or removed its last name since `begin`.
    """
    node = job.node
    if not needs_copy(node):
        abort(tree, job)
        return
    lower = node.home.branch.path
    try:
        job.kept_mode = _complete(tree, node, job.src, job.dst, job.leaf, job.length, job.st, job.mode, job.flags)
        _place(tree, node, job.dst, job.leaf, job.st, job.flags)
    except BaseException:
        abort(tree, job)
        raise
    _enter(tree, node, lower, FILE, job.since, job.st.st_size, job.copied, job.reflinked, job.cause)


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
        os.utime(dst.fd)  # cut off already: what becomes visible is the truncated file, changed now
    if tree.is_strict:
        os.fsync(dst.fd)
    return kept_mode


def _place(tree: UnionState, node: FileNode, dst: FileFd, leaf: bytes, st: Stat, flags: int) -> None:
    """Rename the finished copy into place. Raises OSError; the caller then removes the copy."""
    _publish_file(tree, node, leaf, st)
    if flags & inode_flags.APPEND:  # such a file cannot be renamed, and `dst` does not append
        inode_flags.carry(dst.fd, flags, inode_flags.APPEND)
    elif not node.is_dead:
        tree.fds.keep(node, dst)


def _enter(
    tree: UnionState,
    node: Node,
    lower: str,
    kind: str,
    since: float,
    size: int = 0,
    copied: int = 0,
    reflinked: bool = False,
    cause: Cause | None = None,
) -> None:
    """Enter a copy-up in the ledger; without a `cause` it is the current request. Path and cause are looked up for
    listeners only, since a node may lie below many directories."""
    tree.record_own_change(node)
    ledger = tree.ledger
    seconds = perf_counter() - since
    ledger.count(kind, copied, seconds, reflinked)
    if ledger.listeners:
        asker = cause if cause is not None else ledger.current_cause()
        ledger.notify(CopiedUp(path_of(node), lower, kind, size, copied, reflinked, seconds, asker))


def path_of(node: Node) -> bytes:
    """One of the paths of a node in the union, or the last it had; not limited to PATH_MAX."""
    parts = []
    at: Node | None = node
    while at is not None and at.parent is not None:
        parts.append(at.name)
        at = at.parent
    return b"/".join(reversed(parts))


def _has_other_data(node: FileNode) -> bool:
    return node.links is not None and node.links.data is not None


def _publish_file(tree: UnionState, node: FileNode, leaf: bytes, st: Stat) -> None:
    """Rename the finished copy into place, or to where removed files wait, and let the node point to it."""
    staging = tree.staging
    key = node.links.key if node.links is not None else None
    if node.is_dead and key is not None and tree.links.remaining(key, 0) > 0:
        # names not looked up yet must lead to the same inode: the index keeps it for them
        new = os.stat(leaf, dir_fd=staging.fd(), follow_symlinks=False)
        tree.links.add(key, staging.fd(), leaf, new.st_ino)
        staging.dispose(leaf)
        _moved(tree, node, tree.links.place, key)
        tree.nodes.register_inode(node, (new.st_dev, new.st_ino))
        return
    if node.is_dead:
        orphan = staging.orphan_name(node.nodeid)
        os.rename(leaf, orphan, src_dir_fd=staging.fd(), dst_dir_fd=staging.fd())
        _moved(tree, node, staging.here, orphan)
        return
    if node.is_up:  # a metacopy file of the upper: the whole one takes its place
        place, name = node.home, node.leaf
        staging.publish(leaf, place, name)
        _moved(tree, node, place, name)
        return
    parent = node.parent
    ensure_dir(tree, parent)
    up = parent.upper
    assert up is not None
    kind = st.st_mode & IFMT
    key = inodes.link_key(node.home.branch, st) if st.st_nlink > 1 or kind != IFREG else None
    before = up.stat()
    new_ino = 0  # what a listing shows is the origin's number anyway
    if key is not None:
        new = os.stat(leaf, dir_fd=staging.fd(), follow_symlinks=False)
        new_ino = new.st_ino
        if st.st_nlink > 1:
            tree.links.announce(key, st.st_nlink, 2)
        tree.links.add(key, staging.fd(), leaf, new_ino)
        node.rare().key = key
    try:
        staging.publish(leaf, up, node.name)
    except OSError:
        if key is not None:
            tree.links.withdraw(key)
        raise
    _moved(tree, node, up, node.name)
    tree.restore_times(up.fd(), before)
    names.copied_up(tree, parent, node.name, kind, new_ino, before)
    if key is not None:
        tree.nodes.register_inode(node, (up.branch.dev, new_ino))
        if st.st_nlink > 1:
            tree.links.cover(key, st.st_nlink)
    if tree.is_strict:
        _sync_dir(up)


def _moved(tree: UnionState, node: FileNode, home: BranchDir, leaf: bytes) -> None:
    node.home, node.leaf = home, leaf
    node.held = None  # it leads to the lower file; opened anew at the next use, so every user sees the same data
    node.no_xattrs = False  # a security module may have given the copy a label
    if node.links is not None:
        node.links.data = None


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
        _publish_file(tree, node, leaf, st)
    except BaseException:
        staging.dispose(leaf)
        raise
    _enter(tree, node, lower, OTHER, since)


def read_target(node: FileNode) -> bytes:
    """Read the target of a symlink. EINVAL for anything else."""
    overrides = node.home.branch.overrides
    if overrides is not None:
        return overrides.readlink(node.home, node.leaf)
    return os.readlink(node.leaf, dir_fd=node.home.fd())


def ensure_dir(tree: UnionState, directory: DirNode) -> BranchDir:
    """Bring a directory and all above it to the upper, and say where it is there. Raises EROFS, ENOSPC ..."""
    up = directory.upper
    if up is not None:
        return up
    missing: list[DirNode] = []
    at: DirNode | None = directory
    while at is not None and at.upper is None:
        missing.append(at)
        at = at.parent if not at.dead else None
    for each in reversed(missing):
        up = _copy_dir(tree, each)
    assert up is not None
    return up


def _copy_dir(tree: UnionState, node: DirNode) -> BranchDir:
    staging = tree.staging
    assert node.low is not None
    since = perf_counter()
    st = node.low.stat()
    leaf = staging.new_name()
    mode = stat.S_IMODE(st.st_mode)
    at_once = _may_have_at_once(staging.here.branch, mode) and bool(mode & stat.S_IXUSR) and tree.clear_umask(mode)
    os.mkdir(leaf, mode if at_once else 0o700, dir_fd=staging.fd())
    try:
        lower = node.low.stack[0]
        source = path_at(lower, b".") if not lower.sealed else -1
        copy_metadata.give(tree, source, lower, st, staging.here, leaf, has_mode=mode if at_once else -1)
        flags = inode_flags.read_at(lower, b".")
        if flags:
            with FileFd(os.open(leaf, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=staging.fd())) as held:
                inode_flags.carry(held.fd, flags)
        if node.dead:
            up, name = staging.here, staging.orphan_name(node.nodeid)
        else:
            assert node.parent is not None
            assert node.parent.upper is not None
            up, name = node.parent.upper, node.name
        before = up.stat()
        new = os.stat(leaf, dir_fd=staging.fd(), follow_symlinks=False)
        staging.publish(leaf, up, name)
    except BaseException:
        staging.dispose(leaf)
        raise
    node.upper = up.child(name)
    node.upper.flags_mark = NO_FLAGS
    names.show(tree, node, st)
    node.no_xattrs = False  # as in _moved
    names.learn_empty(tree, node)
    _enter(tree, node, lower.branch.path, DIRECTORY, since)
    if node.dead or node.parent is None:
        return node.upper
    tree.restore_times(up.fd(), before)
    names.copied_up(tree, node.parent, node.name, stat.S_IFDIR, new.st_ino, before)
    if tree.is_strict:
        _sync_dir(up)
    return node.upper


def _sync_dir(place: BranchDir) -> None:
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place.fd())
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def give_name(tree: UnionState, node: FileNode, parent: DirNode, name: bytes) -> None:
    """Make sure that the upper itself has an entry for this name of the node: a copy-up, or a link if the inode is up
    already.

    Preconditions: `name` in `parent` is a visible name of the node.
    """
    if needs_copy(node):
        if (node.parent, node.name) != (parent, name):
            _make_primary(node, parent, name)
        ensure(tree, node)
        return
    up = ensure_dir(tree, parent)
    key = node.rare().key
    with OwnerOverride(up):
        try:
            os.stat(name, dir_fd=up.fd(), follow_symlinks=False)
            return
        except FileNotFoundError:
            pass
        st = tree.stat(node)
        before = up.stat()
        if key is not None:
            tree.links.announce(key, 1, st.st_nlink + 1)
        os.link(node.leaf, name, src_dir_fd=node.home.fd(), dst_dir_fd=up.fd(), follow_symlinks=False)
    tree.restore_times(up.fd(), before)
    if key is not None:
        tree.links.cover(key, 1)
    names.copied_up(tree, parent, name, stat.S_IFMT(st.st_mode), st.st_ino, before)


def _make_primary(node: FileNode, parent: DirNode, name: bytes) -> None:
    """Let one of the node's known names be the one that it is copied up under."""
    links = node.rare()
    links.others = [pair for pair in links.others if pair != (parent, name)] + [(node.parent, node.name)]
    node.parent, node.name = parent, name


def require_upper(tree: UnionState) -> None:
    """Raise EROFS without an upper."""
    if tree.upper is None:
        refuse(errno.EROFS)
