"""The data of files: read, write, space, holes, copying within the union, writing through to the device.

Everything names a node, nothing an open file. What may block long is offered as a descriptor (`Tree.read_fd`,
`Tree.write_fd`) that a worker thread can use.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs.core import copyup, metadata
from unionfs.core.node import DirNode, FileNode, Node
from unionfs.core.tree import Tree, refuse
from unionfs.syscalls import files


def read(tree: Tree, node: FileNode, offset: int, size: int) -> bytes:
    """Up to `size` bytes from `offset`; fewer only at the end of the file (pread(2))."""
    fd = tree.read_fd(node).fd
    data = os.pread(fd, size, offset)
    while 0 < len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def write(tree: Tree, node: FileNode, offset: int, data: bytes | memoryview, *, kill_priv: bool) -> int:
    """Write at `offset` (pwrite(2)); the file is copied up first. ENOSPC, EFBIG, EDQUOT, EIO."""
    copyup.ensure(tree, node)
    fd = tree.write_fd(node).fd
    written = os.pwrite(fd, data, offset)
    if kill_priv:
        metadata.drop_privileges(tree, node)
    tree.ours(node)
    return written


def allocate(tree: Tree, node: FileNode, mode: int, offset: int, length: int) -> None:
    """Manipulate space (fallocate(2)). EOPNOTSUPP for what the upper's filesystem lacks."""
    copyup.ensure(tree, node)
    files.fallocate(tree.write_fd(node).fd, mode, offset, length)
    tree.ours(node)


def seek(tree: Tree, node: FileNode, offset: int, whence: int) -> int:
    """Find data or a hole (lseek(2), SEEK_DATA and SEEK_HOLE only). ENXIO past the end, EINVAL for other `whence`."""
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        refuse(errno.EINVAL)
    return os.lseek(tree.read_fd(node).fd, offset, whence)


def copy_range(tree: Tree, src: FileNode, src_offset: int, dst: FileNode, dst_offset: int, length: int) -> int:
    """Copy within the union without the bytes passing through the kernel's caller (copy_file_range(2)).

    Returns the number of bytes copied, 0 at the end of the source. EINVAL for overlapping ranges of one file.
    """
    copyup.ensure(tree, dst)
    source, target = tree.read_fd(src), tree.write_fd(dst)
    if src is dst:
        source = target
    try:
        copied = os.copy_file_range(source.fd, target.fd, length, src_offset, dst_offset)
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        copied = os.pwrite(target.fd, os.pread(source.fd, min(length, 1 << 20), src_offset), dst_offset)
    tree.ours(dst)
    return copied


def fsync(tree: Tree, node: Node, *, datasync: bool) -> None:
    """Write a file or directory through to the device (fsync(2)). Nothing to do for what is only in the lowers, or
    when the union is volatile."""
    if tree.options.durability == "volatile":
        return
    if isinstance(node, DirNode):
        if node.upper is None:
            return
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=node.upper.fd())
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        return
    if not node.is_up or not stat.S_ISREG(tree.stat(node).st_mode):
        return
    held = tree.read_fd(node)
    (os.fdatasync if datasync else os.fsync)(held.fd)
