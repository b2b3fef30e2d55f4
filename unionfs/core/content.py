"""The data of files: read, write, space, holes, copying within the union, writing through to the device.

All functions take a node; there are no open files. For operations that may block long there are descriptors
(`UnionState.read_fd`, `UnionState.write_fd`) that a worker thread can use.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

from unionfs.core import copyup, fill, inode_flags, metadata
from unionfs.core.attrs import DATA
from unionfs.core.branch import BranchDir
from unionfs.core.fds import FileFd
from unionfs.core.node import DirNode, FileNode, Node
from unionfs.core.staging import LARGE
from unionfs.core.union_state import UnionState, refuse
from unionfs.syscalls import files

_pwrite: Final = os.pwrite  # compiled code has no need to look it up at each call


_APPEND: Final = inode_flags.APPEND
_CAPABILITY: Final = b"security.capability"


def read(tree: UnionState, node: FileNode, offset: int, size: int) -> bytes:
    """Read up to `size` bytes from `offset`; fewer only at the end of the file (pread(2))."""
    held = tree.read_fd(node)
    fd = held.fd
    if held.partial is not None:
        return held.partial.read(fd, held.lower.fd if held.lower is not None else -1, offset, size)
    data = os.pread(fd, size, offset)
    while 0 < len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def write(tree: UnionState, node: FileNode, offset: int, data: bytes | memoryview, *, kill_priv: bool) -> int:
    """Write at `offset` (pwrite(2)); the file is copied up first. ENOSPC, EFBIG, EDQUOT, EIO."""
    if copyup.needs_copy(node):
        copyup.ensure(tree, node, despite=_APPEND if offset >= tree.stat(node).st_size else 0, need=DATA)
    held = tree.write_fd(node)
    if held.appends and offset != os.fstat(held.fd).st_size:
        refuse(errno.EPERM, node.name)
    written = _pwrite(held.fd, data, offset) if held.partial is None else fill.write(tree, node, held, offset, data)
    if kill_priv:
        metadata.drop_privileges(tree, node)
    tree.record_own_change(node)
    return written


def write_back(tree: UnionState, node: FileNode, offset: int, data: bytes | memoryview, *, has_capability: bool) -> int:
    """Write pages of the page cache, as `write` does, but keep a file capability, which the file may have if
    `has_capability`: the branch's filesystem removes it at each write(2), while the kernel has already removed the one
    that the program's own write had to remove."""
    copyup.ensure(tree, node, despite=_APPEND, need=DATA)
    held = tree.write_fd(node)
    fd = held.fd
    known, changed = 0, False
    if held.appends:  # a page begins before the end of the file, where it cannot be changed
        size = os.fstat(fd).st_size
        if offset > size:
            refuse(errno.EPERM, node.name)
        known = min(size - offset, len(data))
        changed = os.pread(fd, known, offset) != data[:known]
    capability = files.find_xattr(fd, _CAPABILITY) if has_capability else None
    if held.partial is None:
        written = known + _pwrite(fd, data[known:], offset + known)
    else:
        written = fill.write(tree, node, held, offset, data)
    if capability is not None:
        with contextlib.suppress(OSError):  # not ours to set, without CAP_SETFCAP
            os.setxattr(fd, _CAPABILITY, capability)
    tree.record_own_change(node)
    if changed:  # the new pages are written all the same
        refuse(errno.EPERM, node.name)
    return written


def allocate(tree: UnionState, node: FileNode, mode: int, offset: int, length: int) -> None:
    """Allocate, punch or zero a range (fallocate(2)). EOPNOTSUPP for modes that the upper's filesystem lacks."""
    with allocation_fd(tree, node, mode) as held:
        files.fallocate(held.fd, mode, offset, length)
    tree.record_own_change(node)


def allocation_fd(tree: UnionState, node: FileNode, mode: int) -> FileFd:
    """Return a descriptor for fallocate(2) with `mode`; the file is copied up first. EPERM for an append-only file and
    other modes than plain preallocation."""
    copyup.ensure(tree, node, despite=0 if mode & ~files.KEEP_SIZE else _APPEND)
    return tree.write_fd(node)


def seek(tree: UnionState, node: FileNode, offset: int, whence: int) -> int:
    """Find data or a hole (lseek(2), SEEK_DATA and SEEK_HOLE only). ENXIO past the end, EINVAL for other `whence`."""
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        refuse(errno.EINVAL)
    held = tree.read_fd(node)
    if held.partial is not None:
        return held.partial.seek(held.fd, held.lower.fd if held.lower is not None else -1, offset, whence)
    return os.lseek(held.fd, offset, whence)


def copy_range(source: FileFd, src_offset: int, target: FileFd, dst_offset: int, length: int) -> int:
    """Copy between two descriptors without the bytes passing through the caller (copy_file_range(2)). In any thread.

    Returns the number of bytes copied, 0 at the end of the source. EINVAL for overlapping ranges of one file.
    """
    if source.partial is not None and source is not target:
        lower_fd = source.lower.fd if source.lower is not None else -1
        data = source.partial.read(source.fd, lower_fd, src_offset, min(length, 1 << 20))
        return os.pwrite(target.fd, data, dst_offset)
    try:
        return os.copy_file_range(source.fd, target.fd, length, src_offset, dst_offset)
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    return os.pwrite(target.fd, os.pread(source.fd, min(length, 1 << 20), src_offset), dst_offset)


def sync_fd(tree: UnionState, node: Node) -> FileFd | None:
    """Return a descriptor to write through to the device for fsync(2) of a file or directory. None: nothing to write,
    because it is only in the lowers or the union is volatile."""
    if tree.options.durability == "volatile":
        return None
    if isinstance(node, DirNode):
        place = node.upper
        if place is None and node.low is not None and node.low.stack[0].branch.was_upper:
            place = node.low.stack[0]
        return None if place is None else _open_dir(place)
    if not (node.is_up or node.home.branch.was_upper) or not stat.S_ISREG(tree.stat(node).st_mode):
        return None
    fill.settle_synced(tree, node)
    return tree.upper_fd(node)


def syncfs_fd(tree: UnionState) -> FileFd | None:
    """Return a descriptor on the filesystem to write through for syncfs(2). None: nothing, as for `sync_fd`."""
    if tree.upper is None or tree.options.durability == "volatile":
        return None
    return _open_dir(tree.upper.root)


def _open_dir(place: BranchDir) -> FileFd:
    return FileFd(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place.fd()))


def slow_truncate_fd(tree: UnionState, node: FileNode, size: int) -> FileFd | None:
    """Return a descriptor to truncate to `size` in a thread, if that frees more than LARGE bytes; else None."""
    if copyup.needs_copy(node):
        return None
    st = tree.stat(node)
    if not stat.S_ISREG(st.st_mode) or st.st_blocks * 512 - size <= LARGE or size >= st.st_size:
        return None
    return tree.write_fd(node)
