"""A union of directories in the caller's process, with the methods and results of `os`. No mount, no FUSE, no root.

Each method is one call of the core (`guard`): path names become lookups (`paths`), which are forgotten at its end, so
that memory does not grow with the number of files used. Rights are those of the process (`access`).
"""

from __future__ import annotations

import errno
import math
import os
import stat
import warnings
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from unionfs.api.access import WRITE, Access
from unionfs.api.arguments import Durability, Whiteouts, forget_work, options_of
from unionfs.api.changes import Change, list_changes
from unionfs.api.file import loses_privileges
from unionfs.api.guard import Guard
from unionfs.api.paths import Place, StrPath, Walk, refuse
from unionfs.api.reading import Reading, maker
from unionfs.core.attrs import NOW, AttrChange, DirEntry, Entry
from unionfs.core.options import OptionError, Options
from unionfs.core.union import Union as Core

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_NS: Final = 1_000_000_000


class Union(Reading):
    """Lower directories, the topmost first, and at most one upper on top that takes all changes, as one tree.

    Use it in a `with` block, or close it. Several threads may use it, and wait for each other; a forked child may not.
    Methods that change something raise OSError like the system call of their name, and EROFS without an upper.
    """

    def __init__(
        self,
        lowers: Iterable[StrPath],
        *,
        upper: StrPath | None = None,
        work: StrPath | None = None,
        whiteout: Whiteouts = "aufs",
        durability: Durability = "normal",
    ) -> None:
        """Open the directories. `work`: the work directory, on the filesystem of the upper (default: UPPER.work beside
        the upper, made if missing). `whiteout`: the format of whiteouts; `durability`: as in `unionfs mount --help`.

        Raises: OptionError if a directory cannot be used; EBUSY if another union has the upper for writing.
        """
        self._closed = True
        options, made = options_of(lowers, upper, work, whiteout, durability, in_process=True)
        try:
            core = _open(options)
        except BaseException:
            forget_work(made)
            raise
        super().__init__(Guard(core), Access())
        self._options = core.options  # immutable; with the lowers that the work directory names (core.freeze)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            with suppress(Exception):
                self.close()

    def __repr__(self) -> str:
        state = " (closed)" if self._closed else ""
        return f"<Union of {len(self.lowers)} lowers, upper {self.upper!r}{state}>"

    def close(self) -> None:
        """Close the files that are open for writing, and the directories. May be called again."""
        if self._closed:
            return
        self._closed = True
        try:
            self._close_files()
        finally:
            self._guard.close()

    def _close_files(self) -> None:
        failed: OSError | None = None
        while self._written:
            try:
                self._written.pop().close()
            except OSError as error:  # most likely a full disk: the other files must be closed nevertheless
                failed = failed or error
        if failed is not None:
            raise failed

    @property
    def closed(self) -> bool:
        """Whether the union is closed."""
        return self._closed

    @property
    def lowers(self) -> tuple[str, ...]:
        """The lower directories, the topmost first, absolute."""
        return self._options.lowers

    @property
    def upper(self) -> str | None:
        """The absolute path of the upper; None: the union is read-only."""
        return self._options.upper

    @property
    def work(self) -> str | None:
        """The absolute path of the work directory."""
        return self._options.work

    def changes(self) -> list[Change]:
        """The changes of the upper, as list_changes() lists them. Raises: EROFS without an upper."""
        if self.upper is None:
            refuse(errno.EROFS)
        with self._guard:
            return list_changes(self.upper, self.lowers)

    # -- making ------------------------------------------------------------------------------------------------------

    def mkdir(self, path: StrPath, mode: int = 0o777) -> None:
        """os.mkdir; the umask applies. EEXIST, ENOENT, ENOTDIR."""
        with self._call(path) as walk:
            parent, name = walk.to_make(path, directory=True)
            walk.owe(walk.core.mkdir(parent.nodeid, name, mode & 0o1777, maker()))

    def makedirs(self, path: StrPath, mode: int = 0o777, exist_ok: bool = False) -> None:
        """os.makedirs: a directory and its missing parents. Raises: EEXIST unless `exist_ok` and it is a directory."""
        whole = os.fsdecode(path).rstrip("/")
        head, _, tail = whole.rpartition("/")
        if head and tail and not self.exists(head):
            self.makedirs(head, exist_ok=True)
        try:
            self.mkdir(path, mode)
        except FileExistsError:
            if not exist_ok or not self.is_dir(path):
                raise

    def mknod(self, path: StrPath, mode: int = 0o600, device: int = 0) -> None:
        """os.mknod: an empty file, fifo, socket or device by the type in `mode`. EEXIST, EPERM, EINVAL."""
        with self._call(path) as walk:
            parent, name = walk.to_make(path)
            walk.owe(walk.core.mknod(parent.nodeid, name, mode, device, maker()))

    def symlink(self, target: StrPath, path: StrPath) -> None:
        """os.symlink: a symlink at `path` with the text `target`. Raises: EEXIST, ENOENT for an empty target."""
        text = os.fsencode(target)
        if b"\0" in text:
            raise ValueError("embedded null byte")
        with self._call(target, path) as walk:
            if not text:
                refuse(errno.ENOENT)
            parent, name = walk.to_make(path)
            walk.owe(walk.core.symlink(parent.nodeid, name, text, maker()))

    def link(self, path: StrPath, new: StrPath) -> None:
        """os.link: another name for a file, or for a symlink itself. Raises: EEXIST, EPERM for a directory, EMLINK."""
        with self._call(path, new) as walk:
            entry = walk.find(path, follow=False)
            parent, name = walk.to_make(new)
            walk.owe(walk.core.link(entry.nodeid, parent.nodeid, name))

    def write_bytes(self, path: StrPath, data: ReadableBuffer) -> int:
        """Make a file or replace its content. Returns the number of bytes."""
        view = memoryview(data).cast("B")
        with self.open(path, "wb") as file:
            file.write(view)
        return len(view)

    def write_text(
        self, path: StrPath, text: str, encoding: str | None = None, errors: str | None = None,
        newline: str | None = None,
    ) -> int:  # fmt: skip
        """Make a file or replace its content by text. Returns the number of characters."""
        with self.open(path, "w", -1, encoding, errors, newline) as file:
            return file.write(text)

    # -- removing and renaming ---------------------------------------------------------------------------------------

    def remove(self, path: StrPath) -> None:
        """os.remove. Raises: ENOENT, EISDIR, EPERM in a sticky directory of another user."""
        with self._call(path) as walk:
            place = self._to_remove(walk, path, errno.EISDIR)
            entry = self._existing(place)
            if place.slash and not stat.S_ISDIR(entry.attrs.mode):
                refuse(errno.ENOTDIR)
            walk.core.unlink(place.parent.nodeid, place.name)

    unlink = remove

    def rmdir(self, path: StrPath) -> None:
        """os.rmdir. ENOENT, ENOTDIR, ENOTEMPTY; EBUSY for the root."""
        with self._call(path) as walk:
            place = self._to_remove(walk, path, errno.EBUSY)
            self._existing(place)
            walk.core.rmdir(place.parent.nodeid, place.name)

    def rmtree(self, path: StrPath) -> None:
        """Remove a directory tree without following symlinks (shutil.rmtree). After an error, files that were removed
        stay removed. Raises: ENOENT, ENOTDIR if it is not a directory, EBUSY for the root."""
        with self._call(path) as walk:
            place = self._to_remove(walk, path, errno.EBUSY)
            entry = self._existing(place)
            if not stat.S_ISDIR(entry.attrs.mode):
                refuse(errno.ENOTDIR)
            self._empty(walk.core, entry)
            walk.core.rmdir(place.parent.nodeid, place.name)

    def rename(self, path: StrPath, new: StrPath) -> None:
        """os.rename; replaces `new` atomically. Raises: ENOENT, EISDIR, ENOTDIR, ENOTEMPTY, EINVAL into itself."""
        with self._call(path, new) as walk:
            source = self._to_remove(walk, path, errno.EBUSY)
            target = walk.place(new)
            if not target.name:
                refuse(errno.EBUSY)
            walk.require_writable(target.parent)
            entry = self._existing(source)
            is_dir = stat.S_ISDIR(entry.attrs.mode)
            if (source.slash or target.slash) and not is_dir:
                refuse(errno.ENOTDIR)
            if target.entry is not None:
                if target.entry.nodeid != entry.nodeid:
                    self._access.require_removable(target.parent.attrs, target.entry.attrs)
                if target.entry.nodeid in source.above:
                    refuse(errno.ENOTEMPTY)
            if is_dir and source.parent.nodeid != target.parent.nodeid:
                self._access.require(walk.core, entry.nodeid, entry.attrs, WRITE)  # its ".." changes
            walk.core.rename(source.parent.nodeid, source.name, target.parent.nodeid, target.name)

    replace = rename

    def _to_remove(self, walk: Walk, path: StrPath, code_of_root: int) -> Place:
        """Resolve the path of a name to be removed or replaced; it need not exist."""
        place = walk.place(path)
        if not place.name:
            codes = {b".": errno.EINVAL, b"..": errno.ENOTEMPTY} if code_of_root == errno.EBUSY else {}
            refuse(codes.get(place.dots, code_of_root))
        walk.require_writable(place.parent)
        return place

    def _existing(self, place: Place) -> Entry:
        if place.entry is None:
            refuse(errno.ENOENT)
        self._access.require_removable(place.parent.attrs, place.entry.attrs)
        return place.entry

    def _empty(self, core: Core, top: Entry) -> None:
        """Remove the content of a directory, without recursion: a tree may be deeper than Python's stack."""
        walk = Walk(core, self._access)
        stack: list[tuple[Entry, bytes, list[DirEntry]]] = []
        try:
            at: tuple[Entry, bytes] | None = (top, b"")
            while at is not None or stack:
                if at is not None:
                    self._access.require(core, at[0].nodeid, at[0].attrs, os.R_OK)
                    lines = list(core.readdir(at[0].nodeid, 0))[2:]
                    walk.require_writable(at[0]) if lines else None
                    stack.append((*at, lines))
                    at = None
                directory, _, lines = stack[-1]
                while lines:
                    line = lines.pop()
                    if line.kind == stat.S_IFDIR:
                        entry = core.lookup(directory.nodeid, line.name)
                        walk.owe(entry)
                        at = (entry, line.name)
                        break
                    core.unlink(directory.nodeid, line.name)
                if at is None:
                    _, name, _ = stack.pop()
                    if stack:
                        core.rmdir(stack[-1][0].nodeid, name)
                        core.forget(walk.keep(directory))
        finally:
            walk.end()

    # -- attributes --------------------------------------------------------------------------------------------------

    def chmod(self, path: StrPath, mode: int, *, follow_symlinks: bool = True) -> None:
        """os.chmod. Raises: EPERM for another user's file, EOPNOTSUPP for a symlink itself."""
        with self._call(path) as walk:
            entry = walk.find(path, follow=follow_symlinks)
            self._require_upper(walk)
            if stat.S_ISLNK(entry.attrs.mode):
                refuse(errno.EOPNOTSUPP)
            self._access.require_owner(entry.attrs)
            walk.core.setattr(entry.nodeid, AttrChange(mode=mode & 0o7777))

    def chown(self, path: StrPath, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        """os.chown; -1 keeps an id. Clears set-id bits. Raises: EPERM."""
        with self._call(path) as walk:
            entry = walk.find(path, follow=follow_symlinks)
            self._require_upper(walk)
            self._access.require_owner(entry.attrs)
            change = AttrChange(uid=None if uid == -1 else uid, gid=None if gid == -1 else gid, kill_priv=True)
            walk.core.setattr(entry.nodeid, change)

    def utime(
        self,
        path: StrPath,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """os.utime: access and modification time, in seconds or nanoseconds; both now by default. EPERM, EACCES."""
        if times is not None and ns is not None:
            raise ValueError("utime: you may specify either 'times' or 'ns' but not both")
        wanted = ns if ns is not None else (NOW, NOW) if times is None else (_ns(times[0]), _ns(times[1]))
        with self._call(path) as walk:
            entry = walk.find(path, follow=follow_symlinks)
            self._require_upper(walk)
            try:
                self._access.require_owner(entry.attrs)
            except PermissionError:
                if wanted != (NOW, NOW):
                    raise
                self._access.require(walk.core, entry.nodeid, entry.attrs, WRITE)
            walk.core.setattr(entry.nodeid, AttrChange(atime_ns=wanted[0], mtime_ns=wanted[1]))

    def truncate(self, path: StrPath, length: int) -> None:
        """os.truncate. Raises: EISDIR, EINVAL for other types than a regular file."""
        with self._call(path) as walk:
            if length < 0:
                refuse(errno.EINVAL)
            entry = walk.find(path)
            kind = stat.S_IFMT(entry.attrs.mode)
            if kind != stat.S_IFREG:
                refuse(errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL)
            self._require_upper(walk)
            self._access.require(walk.core, entry.nodeid, entry.attrs, WRITE)
            walk.core.setattr(entry.nodeid, AttrChange(size=length, kill_priv=loses_privileges()))

    def setxattr(
        self, path: StrPath, name: str | bytes, value: ReadableBuffer, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        """os.setxattr. EEXIST, ENODATA, EPERM for the union's own marks."""
        with self._call(path) as walk:
            entry = self._to_mark(walk, path, os.fsencode(name), follow=follow_symlinks)
            walk.core.setxattr(entry.nodeid, os.fsencode(name), bytes(value), flags)

    def removexattr(self, path: StrPath, name: str | bytes, *, follow_symlinks: bool = True) -> None:
        """os.removexattr. ENODATA, EPERM."""
        with self._call(path) as walk:
            entry = self._to_mark(walk, path, os.fsencode(name), follow=follow_symlinks)
            walk.core.removexattr(entry.nodeid, os.fsencode(name))

    def _to_mark(self, walk: Walk, path: StrPath, name: bytes, *, follow: bool) -> Entry:
        entry = walk.find(path, follow=follow)
        self._require_upper(walk)
        if name.startswith(b"user."):
            self._access.require(walk.core, entry.nodeid, entry.attrs, WRITE)
        return entry

    @staticmethod
    def _require_upper(walk: Walk) -> None:
        if walk.core.options.upper is None:
            refuse(errno.EROFS)

    # -- syncing -----------------------------------------------------------------------------------------------------

    def fsync(self, path: StrPath) -> None:
        """Write a file or directory through to the device (fsync(2)). No effect with durability "volatile"."""
        with self._call(path) as walk:
            walk.core.fsync(walk.find(path).nodeid, datasync=False)

    def sync(self) -> None:
        """Write the upper's whole filesystem through to its device (syncfs(2))."""
        with self._guard as core:
            core.syncfs()


def _open(options: Options) -> Core:
    """Open the core. Raises: EBUSY if another union has the upper."""
    core = Core(options)
    if core.upper_in_use:
        core.close()
        raise OptionError(errno.EBUSY, f"cannot use {options.upper} as the upper: another union has it for writing")
    return core


def _ns(seconds: float) -> int:
    """Convert seconds to nanoseconds with the rounding of os.utime."""
    whole = math.floor(seconds)
    return whole * _NS + math.floor((seconds - whole) * 1e9)
