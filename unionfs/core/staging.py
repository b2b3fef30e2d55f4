"""The work directory: objects are built here and renamed into place, and removed objects that are in use stay here.

    work/live-PID-XXXX/tN     being built by the daemon that holds a lock on the directory
    work/live-PID-XXXX/oN     removed, but node N is still known to the kernel
    work/live-PID-XXXX/mN     a mode that is changed for a moment (see core.mode_notes); nN likewise
    work/spare                an empty directory that the next daemon takes as its own: a full disk has room for it
    work/index/KEY            the hard-link index (see core.hardlinks)
    work/frozen/NNNNNNNN      links with names of directories beside the upper, the topmost last: they were the upper
                              once, and are lowers now, above all others (core.freeze)
    work/index/partial        an empty file: the upper may have files without all of their data (see core.partial)

Each daemon builds in its own subdirectory, so two daemons on one upper do not disturb each other; the next daemon
removes those of dead ones. Knows branches and marks, not nodes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from unionfs.core import marks, mode_notes
from unionfs.core.branch import Branch, BranchDir
from unionfs.core.fds import FdCache, FileFd
from unionfs.core.mode_notes import Place
from unionfs.core.owner_override import OwnerOverride, rename, restore
from unionfs.trees.remove import remove_tree

RunLater = Callable[[Callable[[], None]], None]
"""Runs a function that may take long in any thread, some time after the current request."""

LARGE: Final = 16 << 20
"""Freeing more bytes than this is slow: a second for a GiB on ext4 and on tmpfs."""

_SCARCE: Final = 1 << 30
"""With less free space than this on the filesystem, space is freed before the reply: a program that removes a file to
make room writes next, and must not get ENOSPC."""

_LIVE: Final = b"live-"
_SPARE: Final = b"spare"
INDEX: Final = b"index"
FROZEN: Final = b"frozen"
_OLD_LIST: Final = (
    "its file 'frozen' is a list of a version before 0.1.0; replace it by a directory with the links 00000001, "
    "00000002 and so on to the names in the file, the last name first"
)
PARTIAL: Final = b"partial"


class OpenStaging(NamedTuple):
    """A daemon's part of a work directory, described for its successor. Immutable."""

    root_fd: int  # of the work directory
    live_fd: int  # of its own directory there; holds the lock
    name: bytes  # of that directory
    opened_ns: int
    upper_in_use: bool
    frozen: tuple[bytes, ...] = ()  # see Staging.frozen


class Staging:
    """One daemon's part of a work directory."""

    def __init__(self, path: str, fds: FdCache, upper: Branch, given: OpenStaging | None = None) -> None:
        """Open the work directory of an upper, remove the remains of dead daemons, make our own subdirectory; or go on
        with the one that was `given`. Raises: OSError."""
        self.branch = Branch(path, fds, writable=True, fd=-1 if given is None else given.root_fd)
        self.run_later: RunLater | None = None  # set once by Union.set_run_later; None: all work is done at once
        self.upper_in_use = False  # set once: another running daemon works here
        self._serial = 0
        self._has_partial = False  # whether PARTIAL is known to be there
        self.partial_count = 0  # files that were copied up without data
        self._is_root = os.geteuid() == 0  # immutable: whether this process may access files whatever their modes
        self._upper = upper  # changed by set_upper
        root = self.branch.root
        if given is not None:
            self.here = root.child(given.name)
            self._live_fd, self._opened_ns, self.upper_in_use = given.live_fd, given.opened_ns, given.upper_in_use
            self.index = root.child(INDEX)
            self.frozen = list(given.frozen)
            mode_notes.begin(Place(self._live_fd, upper, self.branch))
            return
        lock = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root.fd())
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # or a sweep would remove a directory made but not yet locked
            self.frozen = read_frozen(root.fd())  # topmost first; changed by add_frozen and drop_frozen only
            self._sweep()
            name = _LIVE + b"%d-%s" % (os.getpid(), os.urandom(4).hex().encode())
            self.here = self._make(name)
            os.chmod(name, 0o700, dir_fd=root.fd())  # objects built here must not inherit a group (mkdir(2)) ...
            with contextlib.suppress(OSError):  # ... nor an ACL from the work directory (acl(5))
                os.removexattr(marks.proc_path(self.here.fd()), "system.posix_acl_default")
            self._live_fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.here.fd())
            fcntl.flock(self._live_fd, fcntl.LOCK_EX)
            with contextlib.suppress(FileExistsError):
                os.mkdir(INDEX, 0o700, dir_fd=root.fd())
            # Every daemon makes and removes a directory in it, which changes its mtime.
            self._opened_ns = os.stat(lock).st_mtime_ns
        finally:
            os.close(lock)
        self.index = root.child(INDEX)
        mode_notes.begin(Place(self._live_fd, upper, self.branch))

    def opened(self) -> OpenStaging:
        """Return the values with which another process can continue with this part. The descriptors stay ours."""
        root_fd = self.branch.root.fd()
        name, frozen = self.here.name, tuple(self.frozen)
        return OpenStaging(root_fd, self._live_fd, name, self._opened_ns, self.upper_in_use, frozen)

    def _make(self, name: bytes) -> BranchDir:
        """Make this daemon's empty directory: the spare one that an earlier daemon left, or a new one."""
        root = self.branch.root
        try:
            if os.stat(_SPARE, dir_fd=root.fd(), follow_symlinks=False).st_uid == os.geteuid():
                os.rename(_SPARE, name, src_dir_fd=root.fd(), dst_dir_fd=root.fd())
                place = root.child(name)
                self._clear(place)
                return place
        except OSError:
            pass  # there is none, or it cannot be used
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=root.fd())
        return root.child(name)

    def _sweep(self) -> None:
        root_fd = self.branch.root.fd()
        for name, kind, _ in self.branch.root.scan():
            if not name.startswith(_LIVE) or kind != stat.S_IFDIR:
                continue
            if _is_locked(root_fd, name):
                self.upper_in_use = True
                continue
            try:
                self._restore_modes(root_fd, name)
                self._clear(self.branch.root.child(name))
                os.rename(name, _SPARE, src_dir_fd=root_fd, dst_dir_fd=root_fd)  # over an empty one, too
            except OSError:
                remove_tree(root_fd, name)

    def _restore_modes(self, root_fd: int, name: bytes) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)
        try:
            restore(Place(fd, self._upper, self.branch))
        finally:
            os.close(fd)

    def restore_modes(self) -> None:
        """Restore the modes that the daemon before has changed for a moment. Raises OSError."""
        restore(Place(self._live_fd, self._upper, self.branch))

    def set_upper(self, upper: Branch) -> None:
        """Another directory is the upper now."""
        self._upper = upper
        mode_notes.end(self._live_fd)
        mode_notes.begin(Place(self._live_fd, upper, self.branch))

    @staticmethod
    def _clear(place: BranchDir) -> None:
        for name, _, _ in place.scan():
            _remove(place.fd(), name)

    def lock_out_others(self) -> FileFd | None:
        """Keep other daemons from beginning to use the work directory while the result is open; they wait. None if one
        uses it already."""
        root = self.branch.root
        lock = FileFd(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root.fd()))
        fcntl.flock(lock.fd, fcntl.LOCK_EX)
        for name, kind, _ in root.scan():
            if name.startswith(_LIVE) and kind == stat.S_IFDIR and name != self.here.name:
                with contextlib.suppress(FileNotFoundError):  # its daemon ends at this moment
                    if _is_locked(root.fd(), name):
                        return None
        return lock

    def announce_partial(self) -> None:
        """Record that the upper may have partial files from now on. Raises OSError."""
        self.partial_count += 1
        if not self._has_partial:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(PARTIAL, flags, 0o600, dir_fd=self.index.fd()))
            self._has_partial = True

    def has_partial(self) -> bool:
        """Whether the upper may have files that lack data."""
        try:
            os.stat(PARTIAL, dir_fd=self.index.fd(), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def withdraw_partial(self) -> None:
        """Record that the upper's files have all of their data."""
        self._has_partial = False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(PARTIAL, dir_fd=self.index.fd())

    def was_alone(self) -> bool:
        """Whether no other daemon has used the work directory since this one opened it. If one has, this daemon's
        memory of the upper may be wrong."""
        return not self.upper_in_use and os.stat(".", dir_fd=self.branch.root.fd()).st_mtime_ns == self._opened_ns

    def renew_index(self, leaf: bytes) -> bytes:
        """Begin with an empty hard-link index; the one before is renamed to `leaf` here. Returns `leaf`. Raises OSError
        with nothing changed. Preconditions: others are locked out, and this daemon was alone."""
        root = self.branch.root
        os.rename(INDEX, leaf, src_dir_fd=root.fd(), dst_dir_fd=self.here.fd())
        try:
            os.mkdir(INDEX, 0o700, dir_fd=root.fd())
        except BaseException:
            self.restore_index(leaf)
            raise
        self._has_new_index()
        return leaf

    def restore_index(self, leaf: bytes) -> None:
        """Undo `renew_index`."""
        root_fd = self.branch.root.fd()
        os.stat(leaf, dir_fd=self.here.fd(), follow_symlinks=False)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(INDEX, dir_fd=root_fd)
        os.rename(leaf, INDEX, src_dir_fd=self.here.fd(), dst_dir_fd=root_fd)
        self._has_new_index()

    def _has_new_index(self) -> None:
        self.index = self.branch.root.child(INDEX)
        self.note_time()

    def add_frozen(self, name: bytes) -> None:
        """Add a directory to the list of frozen ones, as the topmost, in any thread. Raises OSError with nothing
        changed. Preconditions: as for renew_index.

        There is no sync: a link has no data, and filesystems write it to the device before a later rename.
        """
        root_fd = self.branch.root.fd()
        with contextlib.suppress(FileExistsError):
            os.mkdir(FROZEN, 0o700, dir_fd=root_fd)
        last = max((int(entry) for entry, _ in _frozen_links(root_fd)), default=0)
        os.symlink(name, b"%s/%08d" % (FROZEN, last + 1), dir_fd=root_fd)
        self.frozen = [name, *self.frozen]
        self.note_time()

    def drop_frozen(self, name: bytes) -> None:
        """Undo `add_frozen`, as far as it was done. Raises OSError."""
        root_fd = self.branch.root.fd()
        entry, topmost = max(_frozen_links(root_fd), default=(b"", b""))
        if topmost == name:
            os.unlink(FROZEN + b"/" + entry, dir_fd=root_fd)
        self.frozen = [each for each in self.frozen if each != name]

    def note_time(self) -> None:
        """Note the directory's mtime: from now on `was_alone` tells whether another daemon has used it."""
        self._opened_ns = os.stat(".", dir_fd=self.branch.root.fd()).st_mtime_ns

    def let_go(self) -> int:
        """Return the descriptor that holds the lock of this daemon's own subdirectory, to be closed by the caller."""
        mode_notes.end(self._live_fd)
        return self._live_fd

    def fd(self) -> int:
        """Return a descriptor of this daemon's own subdirectory."""
        return self.here.fd()

    def new_name(self) -> bytes:
        """Return a name that has not been used here."""
        self._serial += 1
        return b"t%x" % self._serial

    @staticmethod
    def orphan_name(nodeid: int) -> bytes:
        """Return the name of the object of node `nodeid` here after its last name was removed."""
        return b"o%x" % nodeid

    def dispose(self, leaf: bytes, *, large: bool = False) -> None:
        """Remove an object here: a file, or a directory with all that it contains. Never raises.

        The space of a `large` file is freed `later`, unless disk space is scarce: the filesystem frees it when its last
        descriptor goes.
        """
        if large and self.run_later is not None and self._has_room(_SCARCE):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            with contextlib.suppress(OSError):  # then the unlink below frees the space, and takes longer
                self.run_later(partial(os.close, os.open(leaf, flags, dir_fd=self.here.fd())))
        try:
            _remove(self.here.fd(), leaf)
        except FileNotFoundError:
            return
        except OSError as exc:
            log_warning("cannot remove %r from the work directory: %s", leaf, exc)

    def discard(self, leaf: bytes, open_file: FileFd, *, large: bool) -> None:
        """Remove an open file here, and free its space even if the descriptor stays open: the traceback of an error may
        hold it until the next garbage collection. `large` as in `dispose`. Never raises."""
        if large and self.run_later is not None and self._has_room(_SCARCE):
            self.run_later(partial(_empty, open_file))
        else:
            _empty(open_file)
        self.dispose(leaf)

    def _has_room(self, size: int) -> bool:
        """Whether the filesystem has `size` bytes left for us (statvfs(3))."""
        room = os.statvfs(self.here.fd())
        return room.f_bavail * room.f_frsize >= size

    def publish(self, leaf: bytes, place: BranchDir, name: bytes, flags: int = 0) -> None:
        """Rename `leaf` from here to `name` in `place`, an upper directory that may not be writable for its owner."""
        if self._is_root:
            os.rename(leaf, name, src_dir_fd=self.here.fd(), dst_dir_fd=place.fd())
            return
        with OwnerOverride(place):
            rename(self.here, leaf, place, name)

    def close(self) -> None:
        """Empty this daemon's subdirectory and leave it for the next one."""
        self.run_later = None
        root_fd = self.branch.root.fd()
        try:
            for name, _, _ in self.here.scan():
                self.dispose(name)
            try:
                os.rename(self.here.name, _SPARE, src_dir_fd=root_fd, dst_dir_fd=root_fd)  # over an empty one, too
            except OSError:
                os.rmdir(self.here.name, dir_fd=root_fd)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.EROFS):
                log_warning("cannot clean the work directory %s: %s", self.branch.path, exc)
        os.close(self.let_go())


def read_frozen(root_fd: int) -> list[bytes]:
    """Read the names of the frozen directories in the work directory `root_fd`. Raises OSError."""
    return [name for _, name in sorted(_frozen_links(root_fd), reverse=True)]


def _frozen_links(root_fd: int) -> list[tuple[bytes, bytes]]:
    """Read the links in the list of frozen directories: their names, which are numbers, and their targets."""
    try:
        fd = os.open(FROZEN, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise NotADirectoryError(errno.ENOTDIR, _OLD_LIST, os.fsdecode(FROZEN)) from None
    try:
        entries = [os.fsencode(entry) for entry in os.listdir(fd) if entry.isdecimal()]
        return [(entry, os.readlink(entry, dir_fd=fd)) for entry in entries]
    finally:
        os.close(fd)


def frozen_lowers(upper: str, work: str) -> list[str]:
    """Return the paths of the frozen directories of an upper, the topmost first. Raises OSError."""
    fd = os.open(work, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        names = read_frozen(fd)
    finally:
        os.close(fd)
    above = os.path.dirname(os.path.realpath(upper))
    return [os.path.join(above, os.path.basename(os.fsdecode(name))) for name in names]


def _empty(open_file: FileFd) -> None:
    """Truncate a file to 0 bytes, in any thread."""
    with open_file, contextlib.suppress(OSError):
        os.ftruncate(open_file.fd, 0)


def _is_locked(dir_fd: int, name: bytes) -> bool:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _remove(dir_fd: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=dir_fd)
        return
    except (IsADirectoryError, PermissionError):
        pass
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except OSError as exc:
        if exc.errno == errno.ENOTDIR:
            raise
        remove_tree(dir_fd, name)


def log_warning(message: str, *args: object) -> None:
    """Log a warning. Imports logging only when needed, since imports delay the mount."""
    import logging

    logging.getLogger(__name__).warning(message, *args)
