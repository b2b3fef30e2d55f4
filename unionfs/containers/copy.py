"""Copy a file or a directory tree from one directory to another, each given by a descriptor and a name.

Nothing is opened by a path and no symlink is followed, so the owner of one tree cannot lead the copy out of it.
A copy keeps data with their holes, modes, times, attributes, symlinks, devices, hard links within the tree, and on
request owners. `copy_path` resolves the paths of `unionfs cp` first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from unionfs.syscalls import files
from unionfs.trees.open_beneath import is_gone, open_in_root
from unionfs.write_all import write_all

_CHUNK: Final = 1 << 20
_SYMLINKS_MAX: Final = 40  # the kernel's limit (path_resolution(7))
_NOT_COPIED: Final = ("trusted.overlay.", "user.overlay.", "user.unionfs.")


@dataclass(slots=True)
class Copy:
    """One copy. `owner`: the owner of all copies; None keeps the owners."""

    owner: tuple[int, int] | None = None
    left_empty: frozenset[tuple[int, int]] = frozenset()  # directories whose content is not copied (`of_the_kernel`)
    links: dict[tuple[int, int], tuple[int, str]] = field(default_factory=dict)  # inode -> the first copy
    _held: list[int] = field(default_factory=list)  # directories of `links`, to be closed at the end

    def run(self, from_fd: int, name: str, to_fd: int, new_name: str) -> None:
        """Copy `name` of the directory `from_fd` as `new_name` into `to_fd`. An existing directory is added to, a
        file replaced. Raises: OSError; IsADirectoryError or NotADirectoryError if one would replace the other."""
        try:
            with naming(name):
                source_fd = _open(from_fd, name)
                self.left_empty -= {_identity(os.fstat(source_fd))}  # named on the command line
            self._copy(source_fd, to_fd, new_name, name)
        finally:
            for fd in self._held:
                os.close(fd)
            self._held.clear()

    def _copy(self, source_fd: int, to_fd: int, new_name: str, shown: str) -> None:
        """Copy the object of an O_PATH descriptor, and close the descriptor. Errors name `shown`."""
        try:
            with naming(shown):
                self._copy_object(source_fd, to_fd, new_name, shown)
        finally:
            os.close(source_fd)

    def _copy_object(self, source_fd: int, to_fd: int, new_name: str, shown: str) -> None:
        st = os.fstat(source_fd)
        kind = stat.S_IFMT(st.st_mode)
        if kind == stat.S_IFDIR:
            self._directory(source_fd, st, to_fd, new_name, shown)
            return
        _make_room(to_fd, new_name)
        if first := self.links.get((st.st_dev, st.st_ino)):
            os.link(first[1], new_name, src_dir_fd=first[0], dst_dir_fd=to_fd, follow_symlinks=False)
            return
        if kind == stat.S_IFREG:
            self._file(source_fd, st, to_fd, new_name)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink("", dir_fd=source_fd), new_name, dir_fd=to_fd)
            self._finish_unopened(st, to_fd, new_name)
        elif kind == stat.S_IFSOCK:
            return  # a socket is useless without the process that listens
        else:
            _make_node(to_fd, new_name, kind | 0o600, st.st_rdev)
            self._finish_unopened(st, to_fd, new_name)
        if st.st_nlink > 1:
            held = os.dup(to_fd)
            self._held.append(held)
            self.links[st.st_dev, st.st_ino] = (held, new_name)

    def _directory(self, source_fd: int, st: os.stat_result, to_fd: int, new_name: str, shown: str) -> None:
        made = True
        try:
            os.mkdir(new_name, 0o700, dir_fd=to_fd)
        except FileExistsError:
            made = False
        target_fd = os.open(new_name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=to_fd)
        try:
            list_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=source_fd)
            try:
                for name in sorted(os.listdir(list_fd)) if _identity(st) not in self.left_empty else ():
                    try:
                        child_fd = _open(list_fd, name)
                    except OSError as error:
                        if not is_gone(error):
                            raise
                        continue  # a running container has removed it since it was listed
                    self._copy(child_fd, target_fd, name, f"{shown}/{name}")
                if made:
                    self._finish(list_fd, st, target_fd)
            finally:
                os.close(list_fd)
        finally:
            os.close(target_fd)

    def _file(self, path_fd: int, st: os.stat_result, to_fd: int, new_name: str) -> None:
        source_fd = os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            target_fd = os.open(new_name, flags, 0o600, dir_fd=to_fd)
            try:
                _data(source_fd, st.st_size, target_fd)
                self._finish(source_fd, st, target_fd)
            except BaseException:
                os.unlink(new_name, dir_fd=to_fd)
                raise
            finally:
                os.close(target_fd)
        finally:
            os.close(source_fd)

    def _finish(self, source_fd: int, st: os.stat_result, target_fd: int) -> None:
        uid, gid = self.owner or (st.st_uid, st.st_gid)
        here = os.fstat(target_fd)
        if (here.st_uid, here.st_gid) != (uid, gid):
            os.fchown(target_fd, uid, gid)
        _attributes(source_fd, target_fd)
        os.fchmod(target_fd, stat.S_IMODE(st.st_mode))
        os.utime(target_fd, ns=(st.st_atime_ns, st.st_mtime_ns))

    def _finish_unopened(self, st: os.stat_result, to_fd: int, new_name: str) -> None:
        uid, gid = self.owner or (st.st_uid, st.st_gid)
        os.chown(new_name, uid, gid, dir_fd=to_fd, follow_symlinks=False)
        if not stat.S_ISLNK(st.st_mode):
            os.chmod(new_name, stat.S_IMODE(st.st_mode), dir_fd=to_fd)
        os.utime(new_name, ns=(st.st_atime_ns, st.st_mtime_ns), dir_fd=to_fd, follow_symlinks=False)


class Directory(NamedTuple):
    """The directory in which paths are resolved: the root directory of a container, or this machine's."""

    root_fd: int | None  # None: this machine's root
    base: str  # of relative paths

    def open(self, path: str, flags: int = os.O_PATH) -> int:
        """Open a path as the container's processes would, symlinks followed. Raises: OSError naming the path."""
        whole = os.path.join(self.base, path)
        try:
            if self.root_fd is not None:
                return open_in_root(self.root_fd, whole, flags)
            return os.open(whole, flags | os.O_CLOEXEC)
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), path) from None


def of_the_kernel(root_fd: int) -> frozenset[tuple[int, int]]:
    """The mounted /proc, /sys and /dev of a running container, as (st_dev, st_ino); a copy of its root filesystem has
    empty directories in their place."""
    here, found = os.fstat(root_fd).st_dev, set()
    for name in ("proc", "sys", "dev"):
        with contextlib.suppress(FileNotFoundError):
            st = os.stat(name, dir_fd=root_fd, follow_symlinks=False)
            if st.st_dev != here:
                found.add(_identity(st))
    return frozenset(found)


@contextlib.contextmanager
def naming(shown: str) -> Iterator[None]:
    """Make an OSError of the block name the path `shown`, unless it names one: system calls on descriptors name
    no path, or only the last name."""
    try:
        yield
    except OSError as error:
        known = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        if "/" in known and not known.startswith("/proc/self/fd/"):
            raise
        raise type(error)(error.errno, error.strerror, shown) from None


def copy_path(source: Directory, from_path: str, target: Directory, to_path: str, *, keep_owners: bool) -> None:
    """Copy a file or a directory as docker cp does: into `to_path` if that is a directory, else as `to_path`; with
    `from_path` ending in /. the content of a directory. Owners become root unless kept. Raises: OSError."""
    with ExitStack() as stack:

        def opened(directory: Directory, path: str, flags: int = os.O_PATH) -> int:
            fd = directory.open(path, flags)
            stack.callback(os.close, fd)
            return fd

        plain = from_path.rstrip("/") or "/"
        parent, name = os.path.split(plain)
        if name in ("", ".", ".."):  # the content of a directory
            from_fd, name = opened(source, plain, os.O_PATH | os.O_DIRECTORY), "."
        else:
            from_fd = opened(source, parent or ".", os.O_PATH | os.O_DIRECTORY)
        try:
            is_directory = stat.S_ISDIR(os.stat(name, dir_fd=from_fd, follow_symlinks=False).st_mode)
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), from_path) from None
        try:
            to_fd = opened(target, to_path)
        except FileNotFoundError:
            if to_path.endswith("/") and not is_directory:
                raise
            to_fd = -1
        if to_fd >= 0 and stat.S_ISDIR(os.fstat(to_fd).st_mode):
            new_name = name
        else:
            to_fd, new_name = _named(opened, target, to_path)
        left_empty = frozenset() if source.root_fd is None else of_the_kernel(source.root_fd)
        Copy(None if keep_owners else (0, 0), left_empty).run(from_fd, name, to_fd, new_name)


def _named(opened: Callable[[Directory, str, int], int], directory: Directory, path: str) -> tuple[int, str]:
    """The directory and the name that `path` leads to, also through symlinks at its end. Raises: OSError."""
    for _ in range(_SYMLINKS_MAX):
        above, name = os.path.split(path.rstrip("/"))
        dir_fd = opened(directory, above or ".", os.O_PATH | os.O_DIRECTORY)
        try:
            path = os.path.join(above, os.readlink(name, dir_fd=dir_fd))
        except OSError:  # no symlink, or nothing yet
            return dir_fd, name
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _identity(st: os.stat_result) -> tuple[int, int]:
    return st.st_dev, st.st_ino


def _open(dir_fd: int, name: str) -> int:
    return files.openat2(dir_fd, os.fsencode(name), os.O_PATH | os.O_NOFOLLOW, 0 if name == "." else _BENEATH_LAST)


_BENEATH_LAST: Final = files.RESOLVE_BENEATH  # the name itself may be a symlink: O_PATH | O_NOFOLLOW opens it


def _make_node(dir_fd: int, name: str, mode: int, rdev: int) -> None:
    try:
        os.mknod(name, mode, rdev, dir_fd=dir_fd)
    except OSError as error:  # its message has no path
        raise type(error)(
            error.errno, error.strerror, os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), name)
        ) from None


def _make_room(dir_fd: int, name: str) -> None:
    """Remove the object that a file will replace."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
        raise IsADirectoryError(errno.EISDIR, "a directory, which a file cannot replace", name) from None


def _data(source_fd: int, size: int, target_fd: int) -> None:
    """The bytes of a file between its holes. Files of /proc report a size of 0, those of /sys one that is too large."""
    if size == 0:
        with contextlib.suppress(BlockingIOError):  # /proc/kmsg has no end
            while data := os.read(source_fd, _CHUNK):
                write_all(target_fd, data)
        return
    os.ftruncate(target_fd, size)
    offset = 0
    while offset < size:
        try:
            start = os.lseek(source_fd, offset, os.SEEK_DATA)
            end = os.lseek(source_fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # only a hole is left
            start, end = offset, size
        position = start
        while position < end:
            data = os.pread(source_fd, min(_CHUNK, end - position), position)
            if not data:
                os.ftruncate(target_fd, position)  # it is shorter than its size said, or became shorter
                return
            position += os.pwrite(target_fd, data, position)
        offset = end


def _attributes(source_fd: int, target_fd: int) -> None:
    with contextlib.suppress(OSError):
        for name in os.listxattr(source_fd):
            if not name.startswith(_NOT_COPIED):
                with contextlib.suppress(OSError):  # an attribute of another filesystem or policy
                    os.setxattr(target_fd, name, os.getxattr(source_fd, name))
