"""Read files and directories of branches without changing them: attributes, marks, links, data.

Everything is opened from a branch's root descriptor by its relative path, in pieces shorter than PATH_MAX, through no
symlink and into no other mount. A directory that is mounted over, or hidden from the union, is *sealed*: it shows as an
empty directory of root's and is never read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from unionfs import markers
from unionfs.changes.ids import ShownIds
from unionfs.syscalls import files
from unionfs.trees import walk
from unionfs.trees.open_beneath import open_beneath

UPPER: Final = 0
"""Index of the upper among the branches; the lowers follow, top first."""

_OVERRIDES: Final = (markers.OVERRIDE_PRIVILEGED_XATTR, markers.OVERRIDE_XATTR, markers.OVERRIDE_OLD_XATTR)
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TARGET_MAX: Final = 4096  # bytes of a symlink (symlink(2))
_FDS_KEPT: Final = 64  # directories kept open; more only saves reopening in a union of very many lowers
_USERS_OWN: Final = ("security.capability",)  # the only attribute of the class security. that belongs to the file


class BranchPath(NamedTuple):
    """A path in one branch: the branch's index, and the path below its root (empty for the root itself)."""

    branch: int
    rel: bytes


class Object(NamedTuple):
    """A file or directory of a branch. `mode` holds the type bits too; owners are as the union shows them.

    `dev`, `ino` and `ctime_ns` identify this very state of the object. `data` is where a regular file's bytes are: the
    object's own place, or another branch for a file of which only the attributes were copied up.
    """

    place: BranchPath
    mode: int
    uid: int
    gid: int
    size: int
    space: int  # bytes really taken
    mtime_ns: int
    ctime_ns: int
    rdev: int
    dev: int
    ino: int
    nlink: int
    sealed: bool
    data: BranchPath

    @property
    def kind(self) -> int:
        """The S_IFMT bits."""
        return stat.S_IFMT(self.mode)

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def rel(self) -> bytes:
        return self.place.rel


class ObjectState(NamedTuple):
    """Identifies a file or directory and its state, to detect a later change of the path."""

    dev: int
    ino: int
    mode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, found: os.stat_result | Object) -> ObjectState:
        if isinstance(found, Object):
            return cls(found.dev, found.ino, found.mode, found.size, found.mtime_ns)
        return cls(found.st_dev, found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns)

    def same_object(self, other: ObjectState) -> bool:
        """The size and time of a directory change with its entries, so it counts as the same while it exists."""
        if stat.S_ISDIR(self.mode):
            return self[:2] == other[:2]
        return self == other


Entry = walk.Entry[BranchPath, Object]
"""The entry of one branch directory under a name."""

_entry: Final = walk.Entry  # called for each file: it takes a microsecond less than Entry, which is an alias
_NOTHING: Final = Entry()


class Branches(walk.Reader[BranchPath, Object]):
    """The upper and the lowers of one union, opened for reading only. Close it after use."""

    def __init__(
        self,
        upper: str | bytes,
        lowers: Sequence[str | bytes],
        *,
        ids: ShownIds | None = None,
        hidden: Iterable[str | bytes] = (),
        skip_unreadable: bool = False,
        is_whole: bool = False,
        has_upper: bool = True,
        frozen: int = 0,
    ) -> None:
        """`frozen`: how many of the first lowers hold changes, too, since they were the upper once (core.freeze).
        Raises OSError if a branch cannot be opened."""
        self.is_whole = is_whole  # immutable: the upper has the whole tree, and nothing of the lowers shows through
        self._first_lower = UPPER + 1 if has_upper else UPPER  # immutable; without upper, the first is a lower, too
        self.own = self._first_lower + frozen  # immutable: branches before this index hold the changes
        self.ids = ids or ShownIds()  # immutable
        self.skip_unreadable = skip_unreadable  # immutable: directories of lowers that may not be read count as missing
        self.paths = [os.path.realpath(os.fsencode(path)) for path in (upper, *lowers)]  # immutable
        self._hidden = frozenset(os.path.realpath(os.fsencode(path)) for path in hidden)  # immutable
        self._dirs: OrderedDict[BranchPath, int] = OrderedDict()  # O_PATH descriptors, least recently used first
        self._overridden: dict[int, bool] = {}  # branch -> whether it has overrides; filled by the first question
        self._root_devs: dict[int, int] = {}  # st_dev of the branches' roots
        self._xattr_whiteouts: dict[
            BranchPath, bool
        ] = {}  # directories in which empty files with an attribute are whiteouts
        for index in range(len(self.paths)):
            self.dir_fd(BranchPath(index, b""))

    def __enter__(self) -> Branches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor; the object can be used again and opens them again."""
        while self._dirs:
            os.close(self._dirs.popitem()[1])

    # -- opening ---------------------------------------------------------------------------------------------------

    def dir_fd(self, place: BranchPath) -> int:
        """An O_PATH descriptor of a directory. Use it at once: the cache may close it.

        Raises: ENOENT, ENOTDIR, ELOOP when the tree changed; EACCES; EXDEV where another mount begins.
        """
        fd = self._dirs.get(place)
        if fd is not None:
            self._dirs.move_to_end(place)
            return fd
        if place.rel:
            fd = open_beneath(self._root_fd(place.branch), place.rel, os.O_PATH | os.O_DIRECTORY)
        else:
            fd = os.open(self.paths[place.branch], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._root_devs[place.branch] = os.fstat(fd).st_dev
        self._dirs[place] = fd
        while len(self._dirs) > _FDS_KEPT:
            os.close(self._dirs.popitem(last=False)[1])
        return fd

    def _root_fd(self, branch: int) -> int:
        return self.dir_fd(BranchPath(branch, b""))

    def parent_fd(self, place: BranchPath) -> int:
        """As `dir_fd`, of the directory that an object is in."""
        return self.dir_fd(BranchPath(place.branch, place.rel.rpartition(b"/")[0]))

    def open_data(self, place: BranchPath) -> int:
        """A descriptor for reading a regular file. Raises OSError; ELOOP or ENXIO if it is none."""
        above, _, name = place.rel.rpartition(b"/")
        return os.open(name, _READ, dir_fd=self.dir_fd(BranchPath(place.branch, above)))

    def open_path(self, place: BranchPath) -> int:
        """An O_PATH descriptor of the object at `place`, which may be a symlink."""
        if not place.rel:
            return os.dup(self.dir_fd(place))
        parent, _, name = place.rel.rpartition(b"/")
        return os.open(
            name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.dir_fd(BranchPath(place.branch, parent))
        )

    def readlink(self, place: BranchPath) -> bytes:
        """The target of a symlink."""
        parent, _, name = place.rel.rpartition(b"/")
        dir_fd = self.dir_fd(BranchPath(place.branch, parent))
        try:
            return os.readlink(name, dir_fd=dir_fd)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd), "rb") as stand_in:
            return stand_in.read(_TARGET_MAX)

    # -- reading ---------------------------------------------------------------------------------------------------

    def names(self, place: BranchPath) -> list[bytes]:
        """All names in a directory, marks included; none if it may not be read and such are skipped."""
        try:
            return os.listdir(b"/proc/self/fd/%d" % self.dir_fd(place))
        except OSError as exc:
            if self._is_skipped(place.branch, exc):
                return []
            path = os.path.join(self.paths[place.branch], place.rel)
            raise OSError(exc.errno, exc.strerror, os.fsdecode(path)) from exc

    def entry(self, parent: BranchPath, name: bytes) -> Entry:
        """The entry `name` of the directory `parent`, with its marks. Precondition: `name` is not a mark itself."""
        place = child(parent, name)
        try:
            dir_fd = self.dir_fd(parent)
            st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return Entry(whiteout="aufs") if self._has_aufs_whiteout(parent, name) else _NOTHING
        except OSError as exc:
            if self._is_skipped(parent.branch, exc):
                return _NOTHING
            raise
        if markers.is_whiteout_device(st):
            return Entry(whiteout="device")
        if stat.S_ISDIR(st.st_mode):
            whiteout = "aufs" if self._has_aufs_whiteout(parent, name) else ""
            return self._directory(place, st)._replace(whiteout=whiteout)
        if not stat.S_ISREG(st.st_mode):
            found = self._object(place, st)
            return _entry(place, found, found.kind)
        marks = self.xattrs(place, private=True)
        if not marks:
            found = self._object(place, st)
            return _entry(place, found, found.kind)
        if (
            st.st_size == 0
            and any(mark in marks for mark in markers.WHITEOUT_XATTRS)
            and self._counts_xattr_whiteouts(parent)
        ):
            return Entry(whiteout="xattr")
        metacopy = any(mark in marks for mark in markers.METACOPY_XATTRS)
        if metacopy and markers.is_partial(marks):
            raise incomplete(place)
        found = self._object(place, st, marks=marks)
        redirect = markers.sane_redirect(marks) if metacopy else None
        return Entry(place, found, found.kind, redirect=redirect, metacopy=metacopy)

    def plain_files(self, parent: BranchPath, names: Iterable[bytes]) -> dict[bytes, Object]:
        """The objects under some names of a directory, without directories and what has marks. Faster than `entry`,
        which reads the others, and raises the errors of those that cannot be read."""
        found = {}
        dir_fd = self.dir_fd(parent)
        prefix = b"/proc/self/fd/%d/" % dir_fd
        for name in names:
            try:
                st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
                kind = stat.S_IFMT(st.st_mode)
                if kind in (stat.S_IFDIR, stat.S_IFCHR):  # a whiteout may be such a device
                    continue
                if kind == stat.S_IFREG:
                    marks = os.listxattr(prefix + name, follow_symlinks=False)
                    if marks and any(map(markers.is_private_xattr, marks)):
                        continue
            except OSError:
                continue
            found[name] = self._object(child(parent, name), st)
        return found

    def root(self, branch: int) -> Entry:
        """The root directory of a branch. Its own redirect means nothing."""
        place = BranchPath(branch, b"")
        entry = self._directory(place, os.fstat(self.dir_fd(place)))._replace(redirect=None)
        return entry._replace(opaque="whole") if self.is_whole and branch == UPPER else entry

    def roots(self) -> tuple[BranchPath, ...]:
        """The roots of the lowers, top first, down to the first opaque one."""
        found = []
        for index in range(self._first_lower, len(self.paths)):
            found.append(BranchPath(index, b""))
            if self.root(index).opaque:
                break
        return tuple(found)

    def bases(self) -> tuple[BranchPath, ...]:
        """The roots of the branches that hold no changes, as `roots`."""
        return tuple(root for root in self.roots() if root.branch >= self.own)

    def branch_of(self, path: BranchPath) -> int:
        """The index of the branch: see BranchPath."""
        return path.branch

    def _directory(self, place: BranchPath, st: os.stat_result) -> Entry:
        if place.branch != UPPER and self._is_sealed(place, st):
            return Entry(place, self._object(place, st, sealed=True), stat.S_IFDIR, sealed=True)
        marks = self.xattrs(place, private=True)
        opaque = "xattr" if any(marks.get(mark) == b"y" for mark in markers.OPAQUE_XATTRS) else ""
        if not opaque:
            try:
                os.stat(markers.OPAQUE_NAME, dir_fd=self.dir_fd(place), follow_symlinks=False)
                opaque = "aufs"
            except FileNotFoundError:
                pass
            except OSError as exc:
                if exc.errno not in (errno.EACCES, errno.EXDEV):
                    raise
        found = self._object(place, st, marks=marks)
        return Entry(place, found, stat.S_IFDIR, opaque=opaque, redirect=markers.sane_redirect(marks))

    def xattrs(self, place: BranchPath, *, private: bool = False) -> dict[str, bytes]:
        """The extended attributes that users see, or the union's own ones; those that may not be read are left out.

        Labels and signatures of security modules are no users' attributes: they belong to the machine.
        """
        path = b"/proc/self/fd/%d" % self.parent_fd(place)  # the *xattr calls have no *at form before Linux 6.13
        if place.rel:
            path += b"/" + place.rel.rpartition(b"/")[2]
        found = _xattrs(path, private=private, follow=not place.rel)
        if not private and self.has_overrides(place.branch):
            aside = _xattrs(path, private=True, follow=not place.rel)
            shown = {markers.shown_xattr(name): value for name, value in aside.items()}
            found |= {name: value for name, value in shown.items() if name is not None and _is_users(name)}
        return found

    def has_overrides(self, branch: int) -> bool:
        """Whether a branch stores owners, modes and types in attributes (core.overrides), as its root's attribute
        says."""
        known = self._overridden.get(branch)
        if known is None:
            marks = fd_xattrs(self.dir_fd(BranchPath(branch, b"")), private=True)
            known = self._overridden[branch] = any(name in marks for name in _OVERRIDES)
        return known

    def _counts_xattr_whiteouts(self, parent: BranchPath) -> bool:
        """Whether whiteouts in the form of extended attributes count in this directory (overlayfs.rst, "Nesting")."""
        known = self._xattr_whiteouts.get(parent)
        if known is None:
            marks = self.xattrs(parent, private=True)
            known = self._xattr_whiteouts[parent] = any(marks.get(mark) == b"x" for mark in markers.OPAQUE_XATTRS)
        return known

    def _has_aufs_whiteout(self, parent: BranchPath, name: bytes) -> bool:
        mark = markers.whiteout_name(name)
        if mark is None:
            return False
        try:
            os.stat(mark, dir_fd=self.dir_fd(parent), follow_symlinks=False)
        except OSError as exc:
            if isinstance(exc, FileNotFoundError) or self._is_skipped(parent.branch, exc):
                return False
            raise
        return True

    def _is_sealed(self, place: BranchPath, st: os.stat_result) -> bool:
        if self._hidden and os.path.join(self.paths[place.branch], place.rel) in self._hidden:
            return True
        self.dir_fd(BranchPath(place.branch, b""))
        if st.st_dev == self._root_devs[place.branch]:
            return False
        # A different st_dev alone does not mean another mount: a btrfs subvolume has its own, too.
        try:
            os.close(open_beneath(self._root_fd(place.branch), place.rel, os.O_PATH, files.RESOLVE_NO_XDEV))
        except OSError:
            return True
        return False

    def _is_skipped(self, branch: int, exc: OSError) -> bool:
        if exc.errno in (errno.ENOTDIR, errno.ELOOP):
            return True  # it was replaced meanwhile
        return self.skip_unreadable and branch != UPPER and exc.errno in (errno.EACCES, errno.EPERM)

    def _object(
        self, place: BranchPath, st: os.stat_result, sealed: bool = False, marks: dict[str, bytes] | None = None
    ) -> Object:
        uid, gid = self.ids.shown_owner(st.st_uid, st.st_gid, of_lower=place.branch != UPPER)
        mode, rdev = st.st_mode, st.st_rdev
        value = next((marks[name] for name in _OVERRIDES if name in marks), None) if marks else None
        override = markers.read_override(value) if value is not None and self.has_overrides(place.branch) else None
        if override is not None:  # its ids are in the user namespace of the union, as ours are
            uid, gid, mode = override.uid, override.gid, stat.S_IFMT(mode) | override.mode
            if stat.S_ISREG(mode) and override.kind not in (0, stat.S_IFDIR, stat.S_IFREG):
                mode, rdev = override.kind | override.mode, os.makedev(*override.device)
        return Object(
            place, mode, uid, gid, st.st_size, st.st_blocks * 512, st.st_mtime_ns, st.st_ctime_ns, rdev,
            st.st_dev, st.st_ino, st.st_nlink, sealed, place,
        )  # fmt: skip


def child(parent: BranchPath, name: bytes) -> BranchPath:
    """The place of `name` in the directory `parent`."""
    return BranchPath(parent.branch, parent.rel + b"/" + name if parent.rel else name)


def incomplete(place: BranchPath) -> OSError:
    """Return the EIO for a partial file, or for one whose data are missing at the place that its marks name."""
    why = "it lacks data (`unionfs complete` copies them from the lower), or its lower file is missing"
    return OSError(errno.EIO, why, os.fsdecode(place.rel))


def fd_xattrs(fd: int, *, private: bool = False) -> dict[str, bytes]:
    """The extended attributes of the object behind `fd`, which may be O_PATH; see Branches.xattrs."""
    return _xattrs(b"/proc/self/fd/%d" % fd, private=private)


def _xattrs(path: bytes, *, private: bool, follow: bool = True) -> dict[str, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.EACCES, errno.EPERM):
            return {}
        raise
    found = {}
    for name in names:
        if markers.is_private_xattr(name) != private or not (private or _is_users(name)):
            continue
        try:
            found[name] = os.getxattr(path, name, follow_symlinks=follow)
        except OSError as exc:
            if exc.errno not in (errno.ENODATA, errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.EOVERFLOW):
                raise  # EOVERFLOW: capabilities of another user namespace
    return found


def _is_users(name: str) -> bool:
    return not name.startswith("security.") or name in _USERS_OWN
