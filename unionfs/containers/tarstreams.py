"""Write trees of a container as tar streams, and unpack tar streams into it: `unionfs cp` with `-`.

Files are opened by descriptors from the container's root directory, and names are resolved as in the container:
no name, `..` or symlink of a tar or of the container leads out of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tarfile
import tempfile
from typing import IO, Final

from unionfs.containers.copy import naming
from unionfs.containers.errors import ContainerError
from unionfs.syscalls import files
from unionfs.trees.open_beneath import is_gone, open_in_root

_XATTR: Final = "SCHILY.xattr."
_KINDS: Final = {
    stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE, stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE,
}  # fmt: skip
_SMALL: Final = 64 << 10  # bytes; files of /sys say 4096
_SPOOLED_MAX: Final = 1 << 20
_BENEATH: Final = files.RESOLVE_BENEATH | files.RESOLVE_NO_MAGICLINKS


class _Padded:
    """A file padded with zeros: it may shrink after its size was written to the header."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file: Final = file

    def read(self, size: int) -> bytes:
        return self._file.read(size).ljust(size, b"\0")


def write(
    dir_fd: int, name: str, sink: IO[bytes], shown: str, left_empty: frozenset[tuple[int, int]] = frozenset()
) -> None:
    """Write `name` of a directory, with all that is in it, as a tar in which it is called `shown`. `left_empty`:
    directories of which the content is left out, as (st_dev, st_ino). Raises: OSError naming the path."""
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
        with naming(name):
            top = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if not _Writer(archive, left_empty - {(top.st_dev, top.st_ino)}).add(dir_fd, name, shown):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


class _Writer:
    """Writes trees into one archive."""

    def __init__(self, archive: tarfile.TarFile, left_empty: frozenset[tuple[int, int]]) -> None:
        self._archive: Final = archive
        self._left_empty: Final = left_empty
        self._links: Final[dict[tuple[int, int], str]] = {}  # inode -> the first name of a file with several

    def add(self, dir_fd: int, name: str, shown: str) -> bool:
        """Add `name` of a directory, with all that is in it. Returns False if it does not exist."""
        try:
            with naming(shown):
                fd = files.openat2(dir_fd, os.fsencode(name), os.O_PATH | os.O_NOFOLLOW, 0 if name == "." else _BENEATH)
        except OSError as error:
            if not is_gone(error):
                raise
            return False
        try:
            with naming(shown):
                self._add_object(fd, shown)
        finally:
            os.close(fd)
        return True

    def _add_object(self, fd: int, shown: str) -> None:
        st = os.fstat(fd)
        kind = _KINDS.get(stat.S_IFMT(st.st_mode))
        if kind is None:
            return  # a socket is useless without the process that listens
        entry = tarfile.TarInfo(shown)
        entry.type, entry.mode, entry.mtime = kind, stat.S_IMODE(st.st_mode), st.st_mtime
        entry.uid, entry.gid = st.st_uid, st.st_gid
        entry.pax_headers = _xattrs(fd)
        if kind == tarfile.SYMTYPE:
            entry.linkname = os.fsdecode(os.readlink(b"", dir_fd=fd))
        elif kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            entry.devmajor, entry.devminor = os.major(st.st_rdev), os.minor(st.st_rdev)
        inode = (st.st_dev, st.st_ino)
        if kind != tarfile.DIRTYPE and inode in self._links:
            entry.type, entry.linkname = tarfile.LNKTYPE, self._links[inode]
        if entry.type == tarfile.REGTYPE:
            with _data(fd) as data:
                if st.st_nlink > 1:
                    self._links[inode] = shown
                entry.size = data.seek(0, os.SEEK_END)
                data.seek(0)
                self._archive.addfile(entry, _Padded(data))  # type: ignore[arg-type]
            return
        if kind != tarfile.DIRTYPE and st.st_nlink > 1:
            self._links.setdefault(inode, shown)
        self._archive.addfile(entry)
        if kind == tarfile.DIRTYPE and inode not in self._left_empty:
            list_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            try:
                for child in sorted(os.listdir(list_fd)):
                    self.add(list_fd, child, f"{shown}/{child}")  # a missing file (removed meanwhile) is left out
            finally:
                os.close(list_fd)


def _data(path_fd: int) -> IO[bytes]:
    """Open a file. A small one is read at once: files of /proc and /sys report a wrong size."""
    fd = os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # /proc/kmsg has no end
    file = open(fd, "rb")  # noqa: SIM115 - the caller closes it
    if os.fstat(file.fileno()).st_size > _SMALL:
        return file
    with file:
        read = tempfile.SpooledTemporaryFile(_SPOOLED_MAX)  # noqa: SIM115 - the caller closes it
        while data := file.read(_SMALL):
            read.write(data)
    return read


def _xattrs(fd: int) -> dict[str, str]:
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listxattr(f"/proc/self/fd/{fd}"):
            if name.startswith("user.") or name == "security.capability":
                with contextlib.suppress(OSError):
                    found[_XATTR + name] = os.fsdecode(os.getxattr(f"/proc/self/fd/{fd}", name))
    return found


def extract(source: IO[bytes], root_fd: int, target: str, owner: tuple[int, int] | None) -> None:
    """Unpack a tar below `target`, a directory of the root directory `root_fd`. `owner`: None keeps owners.

    Raises: OSError, ContainerError if it is not a tar; files that were unpacked before stay.
    """
    try:
        _extract(source, root_fd, target, owner)
    except tarfile.TarError as error:
        raise ContainerError("cp", "-", f"this is not a tar: {error}") from error


def _extract(source: IO[bytes], root_fd: int, target: str, owner: tuple[int, int] | None) -> None:
    directories: list[tuple[str, tarfile.TarInfo]] = []
    with tarfile.open(fileobj=source, mode="r|*", errors="surrogateescape") as archive:
        for entry in archive:
            parts = [part for part in entry.name.split("/") if part not in ("", ".")]
            if ".." in parts:
                raise OSError(errno.EINVAL, "a name with .. in a tar", entry.name)
            path = "/".join((target.rstrip("/"), *parts))
            if entry.isdir():
                directories.append((path, entry))
                _directory(root_fd, path)
            elif parts:
                _place(archive, entry, root_fd, path, target, owner)
    for path, entry in reversed(directories):  # their times last
        fd = open_in_root(root_fd, path or "/", os.O_RDONLY | os.O_DIRECTORY)
        try:
            if path.rstrip("/") != target.rstrip("/"):
                _finish(f"/proc/self/fd/{fd}", entry, owner)
        finally:
            os.close(fd)


def _directory(root_fd: int, path: str) -> None:
    """Make a directory and its parents, if they are missing."""
    above = ""
    for part in path.strip("/").split("/"):
        parent_fd = open_in_root(root_fd, above or "/", os.O_PATH | os.O_DIRECTORY)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part or ".", 0o755, dir_fd=parent_fd)
        finally:
            os.close(parent_fd)
        above += f"/{part}"


def _place(
    archive: tarfile.TarFile,
    entry: tarfile.TarInfo,
    root_fd: int,
    path: str,
    target: str,
    owner: tuple[int, int] | None,
) -> None:
    above, _, name = path.rpartition("/")
    try:
        dir_fd = open_in_root(root_fd, above or "/", os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        _directory(root_fd, above)
        dir_fd = open_in_root(root_fd, above or "/", os.O_PATH | os.O_DIRECTORY)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=dir_fd)
        if entry.isfile():
            _file(archive, entry, dir_fd, name)
        elif entry.issym():
            os.symlink(entry.linkname, name, dir_fd=dir_fd)
        elif entry.islnk():
            first_above, _, first = f"{target.rstrip('/')}/{entry.linkname}".rpartition("/")
            first_fd = open_in_root(root_fd, first_above or "/", os.O_PATH | os.O_DIRECTORY)
            try:
                os.link(first, name, src_dir_fd=first_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
            finally:
                os.close(first_fd)
            return
        else:
            kinds = {kind: mode for mode, kind in _KINDS.items()}
            os.mknod(name, kinds[entry.type] | 0o600, os.makedev(entry.devmajor, entry.devminor), dir_fd=dir_fd)
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            _finish(f"/proc/self/fd/{fd}", entry, owner)
        finally:
            os.close(fd)
    finally:
        os.close(dir_fd)


def _file(archive: tarfile.TarFile, entry: tarfile.TarInfo, dir_fd: int, name: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    source = archive.extractfile(entry)
    with open(os.open(name, flags, 0o600, dir_fd=dir_fd), "wb") as file:
        while source is not None and (data := source.read(1 << 20)):
            file.write(data)


def _finish(path: str, entry: tarfile.TarInfo, owner: tuple[int, int] | None) -> None:
    os.chown(path, *(owner or (entry.uid, entry.gid)))
    for key, value in entry.pax_headers.items():
        if key.startswith(_XATTR + "user."):
            with contextlib.suppress(OSError):
                os.setxattr(path, key.removeprefix(_XATTR), os.fsencode(value))
    if not entry.issym():
        os.chmod(path, entry.mode)
    nanoseconds = int(entry.mtime * 1e9)
    os.utime(path, ns=(nanoseconds, nanoseconds))
