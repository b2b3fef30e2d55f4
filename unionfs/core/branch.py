"""One branch: a directory tree held by a descriptor of its root, reached only by `(dirfd, name)`.

Opens any directory of a branch, however deep, and holds the places that must not be accessed (mountpoints, the union's
own directories). Does not know whiteouts, nodes or the order of branches.

A `BranchDir` names its directory by its parent and its own name, so it stays right when the directory is renamed, and
its descriptor can be closed and opened again at any time.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from unionfs.core import frozen_names
from unionfs.core.fds import FdCache, FileFd
from unionfs.core.frozen_names import RecordedDir, kind_of
from unionfs.syscalls import files
from unionfs.trees.open_beneath import open_beneath

if TYPE_CHECKING:
    from unionfs.core.overrides import Overrides

_DIR_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ENCODING: Final = sys.getfilesystemencoding()  # os.fsencode without its checks
_ERRORS: Final = sys.getfilesystemencodeerrors()
_stat: Final = os.stat  # compiled code has no need to look it up at each call
_fstat: Final = os.fstat


class Mask:
    """A place in a branch that is shown as an empty directory (a leaf) or leads to such places (not a leaf)."""

    __slots__ = ("leaf", "below")

    def __init__(self) -> None:
        self.leaf = False  # set once by Branch.hide
        self.below: dict[bytes, Mask] = {}  # extended by Branch.hide only


class MadeStat(NamedTuple):
    """Attributes made by the union: of a file with an override (core.overrides), or of a sealed directory."""

    st_mode: int
    st_ino: int
    st_dev: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_rdev: int
    st_size: int
    st_blocks: int
    st_blksize: int
    st_atime_ns: int
    st_mtime_ns: int
    st_ctime_ns: int
    sealed: bool = False  # of a sealed directory, shown as empty and owned by root


Stat = os.stat_result | MadeStat


class Branch:
    """A directory tree in a union."""

    def __init__(
        self, path: str, fds: FdCache, *, writable: bool, opened: str = "", fd: int = -1, has_xattrs: bool = True
    ) -> None:
        """Open the root, by its path or by that of a descriptor in /proc/self/fd, `opened`; or take the O_PATH
        descriptor `fd` of it, which is closed with this object. `has_xattrs`: False if no file in it has extended
        attributes. Raises OSError as open(2) does; ENOTDIR if it is not a directory."""
        self.path = path  # as the user named it, for messages only; changed by core.freeze only
        self.fds = fds  # immutable
        self.writable = writable  # changed by core.freeze only
        self.was_upper = False  # set once by core.freeze: its files may not be on the device yet
        self.root = BranchDir(self, None, b"")
        if fd < 0:
            fd = os.open(opened or path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.root.held = FileFd(fd)  # never in the cache: the path may be gone by now (a detached mount)
        st = os.fstat(fd)
        self.dev = st.st_dev  # immutable
        self.ino = st.st_ino  # immutable: of the root directory
        self.fsid = b"%x" % os.fstatvfs(fd).f_fsid  # immutable: survives a reboot where the filesystem has a UUID
        self.has_xattrs = has_xattrs  # immutable: else no file is asked for its attributes
        self.fs_index = 0  # set once by core.inodes: which of the union's filesystems this is
        self.number = 0  # set once by UnionState: of all branches that the union has had as lowers
        if writable:
            frozen_names.forget(fd)
        elif has_xattrs:
            self.root.recorded = frozen_names.read(fd)
        self.masks: Mask | None = None  # changed by `hide` only
        self.private: FileFd | None = None  # a private copy of its mount; changed by core.backing and core.handover
        self.overrides: Overrides | None = None  # set once by core.overrides
        self.has_flags: bool | None = None  # set once by core.inode_flags: whether the filesystem has inode flags

    def hide(self, components: tuple[bytes, ...]) -> None:
        """Seal the directory at `components` below the root: it is shown as empty and never accessed."""
        if not components:
            return
        if self.masks is None:
            self.masks = Mask()
        here = self.masks
        for name in components:
            here = here.below.setdefault(name, Mask())
        here.leaf = True
        self.root.mask = self.masks

    def hidden_places(self) -> list[tuple[bytes, ...]]:
        """Return the components of all directories that are sealed."""
        found: list[tuple[bytes, ...]] = []
        pending: list[tuple[Mask, tuple[bytes, ...]]] = [] if self.masks is None else [(self.masks, ())]
        while pending:
            mask, above = pending.pop()
            if mask.leaf:
                found.append(above)
            pending += [(below, (*above, name)) for name, below in mask.below.items()]
        return found


class BranchDir:
    """A directory of a branch."""

    __slots__ = (
        "branch",
        "parent",
        "name",
        "held",
        "mask",
        "sealed",
        "has_xattr_whiteouts",
        "inheritable",
        "flags_mark",
        "recorded",
    )

    def __init__(self, branch: Branch, parent: BranchDir | None, name: bytes) -> None:
        self.branch = branch  # immutable
        self.parent = parent  # None for the root; changed by a rename of an upper directory only
        self.name = name  # likewise
        self.held: FileFd | None = None  # an O_PATH descriptor; belongs to the cache, except the root's
        self.mask: Mask | None = None  # sealed places below
        self.sealed = False  # set once: this directory may not be accessed and is shown as empty
        self.has_xattr_whiteouts = False  # set by core.marks: empty files here may be whiteouts by attribute
        self.flags_mark = -1  # belongs to core.marks and core.inode_flags; -1: not read yet, -2: there is none
        self.inheritable = -1  # belongs to core.inode_flags: flags that new entries may inherit; -1: not read yet
        self.recorded: RecordedDir | None = None  # set once: this directory in the record of the branch's names

    def fd(self) -> int:
        """Return an O_PATH descriptor of the directory. The cache may close it: use it at once.

        Raises: ENOENT if the directory has gone, ENOTDIR or ELOOP if it was replaced.
        """
        held = self.held
        if held is not None:
            held.used = True
            return held.fd
        return self._open().fd

    def _open(self) -> FileFd:
        names: list[bytes] = []
        at: BranchDir = self
        while at.held is None:
            names.append(at.name)
            assert at.parent is not None, "the root is always held"
            at = at.parent
        start = at.held
        assert start is not None
        if len(names) == 1:
            held = FileFd(os.open(names[0], _DIR_FLAGS, dir_fd=start.fd))
        else:
            names.reverse()
            with start:
                held = FileFd(open_beneath(start.fd, b"/".join(names), os.O_PATH | os.O_DIRECTORY))
        self.branch.fds.keep(self, held)
        return held

    def child(self, name: bytes) -> BranchDir:
        """Return the directory `name` below this one, without opening or checking it."""
        child = BranchDir(self.branch, self, name)
        if self.recorded is not None:
            child.recorded = self.recorded.below.get(name)
        mask = self.mask
        if mask is not None:
            child.mask = mask.below.get(name)
            child.sealed = child.mask is not None and child.mask.leaf
        return child

    def lacks(self, name: bytes) -> bool:
        """Whether the record of the branch says that there is no entry `name`, marks included."""
        return self.recorded is not None and name not in self.recorded.names

    def has_directories(self) -> bool:
        """Whether there are directories in this one, on filesystems that count them in st_nlink."""
        return self.stat().st_nlink != 2 if self.recorded is None else bool(self.recorded.below)

    def is_sealed(self, name: bytes) -> bool:
        """Whether `name` in this directory must not be accessed."""
        mask = self.mask
        if mask is None:
            return False
        below = mask.below.get(name)
        return below is not None and below.leaf

    def stat(self) -> Stat:
        """Return the attributes of the directory itself, overrides applied."""
        if self.sealed:
            return self.sealed_stat()
        if self.branch.overrides is not None:
            return self.branch.overrides.shown_stat_of_fd(self.fd())
        held = self.held
        if held is not None:
            held.used = True
            return _fstat(held.fd)
        assert self.parent is not None
        return os.stat(self.name, dir_fd=self.parent.fd(), follow_symlinks=False)

    def stat_entry(self, name: bytes) -> Stat:
        """Return the attributes of the entry `name`, overrides applied. Raises as lstat(2) does."""
        if self.lacks(name):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        st = _stat(name, dir_fd=self.fd(), follow_symlinks=False)
        overrides = self.branch.overrides
        return st if overrides is None else overrides.shown_stat(self, name, st)

    def sealed_stat(self) -> MadeStat:
        """Return the attributes of a sealed directory. The inode number is a hash of the place, with bit 54 set so that
        it does not collide with a real one."""
        assert self.parent is not None
        ino = (1 << 54) | (hash((id(self.branch) & 0xFFFF, self.name)) & ((1 << 53) - 1))
        root = self.branch.root.stat()
        return MadeStat(
            stat.S_IFDIR | 0o755, ino, self.branch.dev, 2, 0, 0, 0, 0, 0, 4096,
            root.st_mtime_ns, root.st_mtime_ns, root.st_mtime_ns, sealed=True,
        )  # fmt: skip

    def is_elsewhere(self, st: Stat, name: bytes) -> bool:
        """Whether the directory `name` with attributes `st` belongs to another mount than the branch does.

        A different st_dev alone does not say so: a btrfs subvolume has its own.
        """
        if st.st_dev == self.branch.dev:
            return False
        try:
            os.close(files.openat2(self.fd(), name, os.O_PATH | os.O_NOFOLLOW, files.RESOLVE_NO_XDEV))
        except OSError:
            return True
        return False

    def scan(self) -> list[tuple[bytes, int, int]]:
        """List (name, S_IFMT bits, inode number) of the entries as readdir(3) gives them, marks included, without "."
        and "..".

        A scan is no read by a user, so the directory's atime is left alone if permitted (open(2), O_NOATIME).
        """
        if self.sealed:
            return []
        if self.recorded is not None:
            return [(name, (code & 0xF) << 12, code >> 4) for name, code in self.recorded.names.items()]
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            fd = os.open(b".", flags | os.O_NOATIME, dir_fd=self.fd())
        except PermissionError:
            fd = os.open(b".", flags, dir_fd=self.fd())
        try:
            with os.scandir(fd) as entries:
                return [(entry.name.encode(_ENCODING, _ERRORS), kind_of(entry), entry.inode()) for entry in entries]
        finally:
            os.close(fd)

    def path_components(self) -> tuple[bytes, ...]:
        """Return the path components from the branch's root down to this directory."""
        names: list[bytes] = []
        at: BranchDir | None = self
        while at is not None and at.parent is not None:
            names.append(at.name)
            at = at.parent
        return tuple(reversed(names))
