"""The verbs on a plain directory: the oracle. Nothing of ours is between the test and the kernel here."""

from __future__ import annotations

import ctypes
import os
import stat
from pathlib import Path as HostPath

from tests.core.drivers import Driver, Path
from unionfs.core.attrs import Attrs

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_RENAME_ARGTYPES = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    """renameat2(2) on two paths."""
    _libc.renameat2.argtypes = _RENAME_ARGTYPES
    if _libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(old), None, os.fsdecode(new))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2); `os` has only posix_fallocate."""
    _libc.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if _libc.fallocate64(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def attrs_of(info: os.stat_result) -> Attrs:
    return Attrs(
        info.st_ino, info.st_mode, info.st_nlink, info.st_uid, info.st_gid, info.st_rdev, info.st_size, info.st_blocks,
        info.st_blksize, info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns,
    )  # fmt: skip


class Native(Driver):
    """A plain directory. Handles are its file descriptors."""

    def __init__(self, root: HostPath) -> None:
        self.root = os.fsencode(root)

    def at(self, path: Path) -> bytes:
        return self.root + b"/" + os.fsencode(path) if path else self.root

    def _fd(self, path: Path, flags: int) -> int:
        self.want_file(path)
        return os.open(self.at(path), flags | os.O_NOFOLLOW | os.O_CLOEXEC)

    def stat(self, path: Path) -> Attrs:
        return attrs_of(os.lstat(self.at(path)))

    def listing(self, path: Path) -> dict[bytes, tuple[int, int]]:
        with os.scandir(self.at(path)) as found:
            return {
                entry.name: (stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode), entry.inode()) for entry in found
            }

    def readlink(self, path: Path) -> bytes:
        return os.readlink(self.at(path))

    def read(self, path: Path, offset: int = 0, size: int = 1 << 20) -> bytes:
        fd = self._fd(path, os.O_RDONLY)
        try:
            return os.pread(fd, size, offset)
        finally:
            os.close(fd)

    def lseek(self, path: Path, offset: int, whence: int) -> int:
        fd = self._fd(path, os.O_RDONLY)
        try:
            return os.lseek(fd, offset, whence)
        finally:
            os.close(fd)

    def getxattr(self, path: Path, name: bytes) -> bytes:
        return os.getxattr(self.at(path), name, follow_symlinks=False)

    def listxattr(self, path: Path) -> list[bytes]:
        return sorted(os.fsencode(name) for name in os.listxattr(self.at(path), follow_symlinks=False))

    def write(self, path: Path, offset: int, data: bytes) -> int:
        fd = self._fd(path, os.O_RDWR)
        try:
            return os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def truncate(self, path: Path, size: int) -> None:
        self.want_file(path)
        os.truncate(self.at(path), size)

    def fallocate(self, path: Path, mode: int, offset: int, length: int) -> None:
        fd = self._fd(path, os.O_RDWR)
        try:
            fallocate(fd, mode, offset, length)
        finally:
            os.close(fd)

    def copy_file_range(self, src: Path, src_offset: int, dst: Path, dst_offset: int, length: int) -> int:
        src_fd = self._fd(src, os.O_RDONLY)
        try:
            dst_fd = self._fd(dst, os.O_RDWR)
            try:
                return os.copy_file_range(src_fd, dst_fd, length, src_offset, dst_offset)
            finally:
                os.close(dst_fd)
        finally:
            os.close(src_fd)

    def chmod(self, path: Path, perm: int) -> None:
        self.want_mode(path)
        os.chmod(self.at(path), perm)

    def chown(self, path: Path, uid: int, gid: int) -> None:
        os.chown(self.at(path), uid, gid, follow_symlinks=False)

    def utime(self, path: Path, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self.at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def setxattr(self, path: Path, name: bytes, value: bytes, flags: int = 0) -> None:
        os.setxattr(self.at(path), name, value, flags, follow_symlinks=False)

    def removexattr(self, path: Path, name: bytes) -> None:
        os.removexattr(self.at(path), name, follow_symlinks=False)

    def create(self, path: Path, perm: int = 0o644) -> None:
        os.close(os.open(self.at(path), os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, perm))

    def mknod(self, path: Path, mode: int, rdev: int = 0) -> None:
        os.mknod(self.at(path), mode, rdev)

    def mkdir(self, path: Path, perm: int = 0o755) -> None:
        os.mkdir(self.at(path), perm)

    def symlink(self, path: Path, target: bytes) -> None:
        os.symlink(target, self.at(path))

    def link(self, old: Path, new: Path) -> None:
        os.link(self.at(old), self.at(new), follow_symlinks=False)

    def unlink(self, path: Path) -> None:
        os.unlink(self.at(path))

    def rmdir(self, path: Path) -> None:
        os.rmdir(self.at(path))

    def rename(self, old: Path, new: Path, flags: int = 0) -> None:
        renameat2(self.at(old), self.at(new), flags)

    def open(self, path: Path) -> int:
        return self._fd(path, os.O_RDWR)

    def tmpfile(self, directory: Path, perm: int = 0o600) -> int:
        return os.open(self.at(directory), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, perm)

    def link_handle(self, handle: int, new: Path) -> None:
        os.link(f"/proc/self/fd/{handle}", self.at(new), follow_symlinks=True)

    def fstat(self, handle: int) -> Attrs:
        return attrs_of(os.fstat(handle))

    def pread(self, handle: int, offset: int, size: int) -> bytes:
        return os.pread(handle, size, offset)

    def pwrite(self, handle: int, offset: int, data: bytes) -> int:
        return os.pwrite(handle, data, offset)

    def ftruncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def close(self, handle: int) -> None:
        os.close(handle)
