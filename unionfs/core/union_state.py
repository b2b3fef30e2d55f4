"""The state of one union, which every operation works on: its branches, its nodes, its caches.

Opens and closes the branches. Has no semantics except those that all operations share (attributes of a node,
descriptors of its data).
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from typing import TYPE_CHECKING, Any, Final, NoReturn

from unionfs.core import handover, mountpoints, overrides
from unionfs.core.attrs import Attrs, make
from unionfs.core.backing import Backing
from unionfs.core.branch import Branch, BranchDir, Stat
from unionfs.core.data_files import DataFiles
from unionfs.core.fds import FdCache
from unionfs.core.handle_table import HandleTable, Nameless
from unionfs.core.handover import OpenBranches
from unionfs.core.hardlinks import HardLinks
from unionfs.core.inodes import Inodes
from unionfs.core.ledger import Ledger
from unionfs.core.lower import LowerTree
from unionfs.core.marks import proc_path, read_dir_marks
from unionfs.core.namecache import NameCache
from unionfs.core.node import DirNode, FileNode, Node
from unionfs.core.node_table import NodeTable
from unionfs.core.options import OptionError, Options, check_branches
from unionfs.core.owner_override import OwnerOverride
from unionfs.core.staging import RunLater, Staging, frozen_lowers
from unionfs.syscalls import mountinfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from unionfs.core.watching import Watcher

_fstat: Final = os.fstat
_stat: Final = os.stat  # compiled code has no need to look it up at each call
_FDS_MOST: Final = 16384
_PROBE_XATTR: Final = "user.unionfs.probe"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)  # a full upper can still be mounted, to read it and to free space


def refuse(code: int, name: bytes = b"") -> NoReturn:
    """Raise the OSError for `code`."""
    raise OSError(code, os.strerror(code), os.fsdecode(name))


def _with_frozen(options: Options) -> Options:
    """Return the options with the lowers that were the upper once (core.freeze), unless these are named already."""
    if options.upper is None or options.work is None:
        return options
    try:
        frozen = frozen_lowers(options.upper, options.work)
    except OSError:
        return options  # a work directory that cannot be opened is reported later
    if not frozen:
        return options
    named = {os.path.realpath(lower) for lower in options.lowers}
    return options._replace(lowers=(*(path for path in frozen if path not in named), *options.lowers))


class Leaving:
    """A lower that was removed and is still in use."""

    def __init__(self, branch: Branch, users: set[int]) -> None:
        self.branch = branch  # immutable
        self.users = users  # ids of nodes whose objects are in it; changed by UnionState._dispose

    def has(self, owner: object) -> bool:
        """Whether the owner of a cached descriptor is a directory of the branch."""
        return isinstance(owner, BranchDir) and owner.branch is self.branch and owner.parent is not None


class UnionState(DataFiles):
    """All state of one union. Used on one thread only."""

    def __init__(self, options: Options, viewed: UnionState | None = None, given: OpenBranches | None = None) -> None:
        """Open all branches; a view shares the branches of its union `viewed`. With `given` use the branches of a
        daemon that still serves them: nothing is written, and `read_links` must follow when that daemon has ended.
        Raises OptionError."""
        if viewed is None and given is None:
            options = _with_frozen(options)
            check_branches(options)
        self.options = options  # its lowers are changed by core.branches only
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        free = max(64, soft - len(options.lowers) - 64)
        self.fds: FdCache = FdCache(options.fds_limit or min(_FDS_MOST, free // 2)) if viewed is None else viewed.fds
        self.cache: NameCache = NameCache(options.names_limit) if viewed is None else viewed.cache
        self.ledger = Ledger()
        self.upper: Branch | None = None  # changed by core.freeze only
        self._staging: Staging | None = None  # immutable
        self._links: HardLinks | None = None  # replaced by read_links and set_links only
        self.viewed_lowers: list[Branch] = []  # the lowers of its view, which stay; set once, by its view or `given`
        self.change: handover.Change | None = None  # of the branches, pending; core.unfinished_change only
        lowers: list[Branch] = []
        # All lowers so far, by Branch.number; core.branches adds to it.
        self.opened: list[Branch] = lowers if viewed is None else viewed.opened
        if given is not None:
            taken = handover.take(options, given, self.fds)
            lowers, self.opened, self.upper, self._staging = taken.lowers, taken.opened, taken.upper, taken.staging
            self.change, self.viewed_lowers = taken.change, taken.viewed
        elif viewed is None:
            lowers += [self._open_branch("a lower", path, writable=False) for path in options.lowers]
            for number, branch in enumerate(lowers):
                branch.number = number
        if options.upper is not None and given is None:
            self.upper = self._open_branch("the upper", options.upper, writable=True)
            self._staging = self._open_staging(self.upper)
            self._links = HardLinks(self._staging, self.upper.root)
            self._links.sweep()
        if viewed is None:
            if given is None:
                self._find_overrides(lowers)
            numbering = given.numbering if given is not None else None
            self.inodes = Inodes([*self.opened, *([self.upper] if self.upper else [])], numbering)
            if self._staging is not None and self.upper is not None:
                self._staging.branch.fs_index = self.upper.fs_index
            if given is None:
                for branch in lowers:
                    mountpoints.hide_paths(branch, options.hidden)
                mountpoints.hide_mounts(lowers)
            self.lowers = LowerTree(lowers, self.cache, skip_unreadable=options.skip_unreadable)
        else:
            self.inodes = viewed.inodes.marked()
            self.lowers = viewed.lowers
            if viewed.viewed_lowers and viewed.viewed_lowers != list(viewed.lowers.branches):
                skips = options.skip_unreadable
                self.lowers = LowerTree(viewed.viewed_lowers, self.cache, skip_unreadable=skips)
            viewed.viewed_lowers = list(self.lowers.branches)
        self.is_restacked = given is not None and given.is_restacked
        """Set by core.branches and core.freeze: directories that were known keep their inode numbers."""
        self.leaving: list[Leaving] = []  # removed lowers that are in use; changed by core.branches and `_dispose`
        self.backing = Backing(lowers, self.upper, atime=options.atime) if options.passthrough else None
        self.nodes = NodeTable()
        self.overflow_ids = mountpoints.overflow_ids() if options.unmapped_as_root else None  # immutable
        self.owners = options.owners  # immutable
        self.euid = os.geteuid()  # immutable: the owner of files made in place
        self.egid = os.getegid()  # immutable
        self.is_strict = options.durability == "strict"  # immutable
        self.writes_blocks = bool(options.partial_from) and not options.passthrough  # immutable: partial copy-ups
        self.whole_until = 0.0  # time.monotonic: until then all files are copied up whole; see core.complete
        self.growing: set[int] = set()  # node ids of partial files that have got blocks; see fill.begin_idle
        self.when_growing: Callable[[], None] | None = None  # set once, by Union.when_growing
        self.unshareable: set[int] = set()  # st_dev of lowers whose data the upper's filesystem cannot share
        self.noatime_flag: int = 0 if options.atime else os.O_NOATIME  # immutable: added to open(2) of upper files
        self.rename_whiteout: bool | None = None  # whether RENAME_WHITEOUT works in the upper; None: not tried
        self.watcher: Watcher | None = None  # set once, by Union.watch
        self.recent_stat: tuple[FileNode, Stat] | None = None  # the stat of copyup.begin, for the next `ensure`
        self._umask = -1  # the process's umask as last set by `set_umask`; -1: unknown
        self.root = self._make_root()

    def _find_overrides(self, lowers: list[Branch]) -> None:
        """Detect which branches have overrides, and enable them in the upper if the options ask. Raises OptionError."""
        root_values = [value for value in map(overrides.detect, lowers) if value is not None]
        if self.upper is None or self._staging is None:
            return
        wanted = {"user": overrides.USER, "privileged": overrides.PRIVILEGED}.get(self.options.overrides)
        if wanted is None:
            overrides.detect(self.upper)
        else:
            floor = overrides.SHARED if self.options.overrides_shared else overrides.PRIVATE
            try:
                overrides.mark(self.upper, wanted, floor, root_values[0] if root_values else None)
            except OSError as exc:
                code = exc.errno or errno.EPERM
                if code not in _FULL:
                    why = f"owners cannot be kept in {wanted[0]}: {os.strerror(code)}"
                    raise OptionError(code, f"cannot use {self.upper.path} as the upper: {why}") from None
        found = self._staging.branch.overrides = self.upper.overrides
        if found is not None:
            found.stands_in = not overrides.can_give_away(self._staging.here, self._staging.new_name())

    def hand_over(self) -> OpenBranches:
        """Return the values with which another process can continue with the branches. The descriptors stay ours."""
        staging = self._staging.opened() if self._staging is not None else None
        return handover.branches(
            list(self.lowers.branches), self.upper, staging, self.opened, self.inodes,
            is_restacked=self.is_restacked, viewed=self.viewed_lowers, change=self.change,
        )  # fmt: skip

    def _open_branch(self, role: str, path: str, *, writable: bool) -> Branch:
        try:
            has_xattrs = writable or path not in self.options.without_xattrs
            return Branch(path, self.fds, writable=writable, has_xattrs=has_xattrs)
        except OSError as exc:
            raise OptionError(exc.errno or errno.EINVAL, f"cannot use {path} as {role}: {exc.strerror}") from None

    def _open_staging(self, upper: Branch) -> Staging:
        work = self.options.work
        assert work is not None
        if os.stat(work).st_dev != upper.dev or mountinfo.mount_id(work) != mountinfo.mount_id(upper.path):
            raise OptionError(
                errno.EXDEV,
                f"work directory {work} is not on the same filesystem as the upper {upper.path}: "
                "files are renamed from one to the other",
            )
        try:
            staging = Staging(work, self.fds, upper)
        except OSError as exc:
            code = exc.errno or errno.EIO
            raise OptionError(code, f"cannot write in the work directory {work}: {exc.strerror}") from None
        path = proc_path(staging.fd())
        try:
            os.setxattr(path, _PROBE_XATTR, b"y")
            os.removexattr(path, _PROBE_XATTR)
        except OSError as exc:
            code = exc.errno or errno.EOPNOTSUPP
            if code in _FULL:
                return staging
            staging.close()
            why = (
                "has no user extended attributes" if code == errno.EOPNOTSUPP else f"refuses them: {os.strerror(code)}"
            )
            raise OptionError(
                code,
                f"cannot use {upper.path} as the upper: its filesystem {why}; "
                "put upper and work on ext4, xfs, btrfs or tmpfs",
            ) from None
        try:
            if not os.access(proc_path(upper.root.fd()), os.W_OK, effective_ids=True):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            probe = staging.new_name()
            os.symlink(".", probe, dir_fd=staging.fd())  # a directory takes ext4 up to 5 ms to remove
            os.unlink(probe, dir_fd=staging.fd())
        except OSError as exc:
            code = exc.errno or errno.EIO
            if code in _FULL:
                return staging
            staging.close()
            raise OptionError(code, f"cannot write in the upper {upper.path}: {os.strerror(code)}") from None
        return staging

    def _make_root(self) -> DirNode:
        low = self.lowers.root
        upper = self.upper.root if self.upper is not None else None
        opaque = upper is not None and read_dir_marks(upper).opaque
        top = low.stack[-1]  # the bottom stays the same when branches are stacked on it
        ino = self.inodes.shown(top.branch.fs_index, top.branch.ino)
        root = DirNode(self.nodes.new_id(), None, b"", upper, None if opaque else low, ino)
        self.nodes.add(root)
        return root

    @property
    def staging(self) -> Staging:
        """The work directory. Raises EROFS when the union has no upper."""
        if self._staging is None:
            refuse(errno.EROFS)
        return self._staging

    @property
    def links(self) -> HardLinks:
        """The hard-link index. Raises EROFS when the union has no upper."""
        if self._links is None:
            refuse(errno.EROFS)
        return self._links

    @property
    def links_or_none(self) -> HardLinks | None:
        """The hard-link index, or None when the union has no upper."""
        return self._links

    def set_links(self, links: HardLinks) -> None:
        """Replace the hard-link index, which must have the keys of all nodes that are left in it."""
        self._links = links

    def read_links(self) -> None:
        """Read the hard-link index again, without dropping entries: a daemon that has died has changed it, and files
        in it may be open."""
        if self._staging is not None and self.upper is not None:
            self._links = HardLinks(self._staging, self.upper.root)

    def set_run_later(self, run: RunLater) -> None:
        """See Union.set_run_later."""
        if self._staging is not None:
            self._staging.run_later = run

    @property
    def upper_in_use(self) -> bool:
        """Whether another running daemon uses the same work directory."""
        return self._staging is not None and self._staging.upper_in_use

    def close(self) -> None:
        """Empty this daemon's work directory and close the branches. The state cannot be used afterwards."""
        if self.watcher is not None:
            self.watcher.close()
        branches = list(self.opened)
        if self._staging is not None and self.upper is not None:
            self._staging.close()
            branches += [self.upper, self._staging.branch]
        self.fds.clear()
        if self.backing is not None:
            self.backing.close()
        for branch in branches:
            branch.root.held = None

    # -- attributes ------------------------------------------------------------------------------------------------

    def stat(self, node: Node) -> Stat:
        """Return the attributes of the node's object, as its branch has them."""
        if isinstance(node, FileNode):
            home = node.home
            try:
                st = _stat(node.leaf, dir_fd=home.fd(), follow_symlinks=False)
            except FileNotFoundError:
                if node.leaf:
                    raise
                return self._stat_lost(node)
            except PermissionError:
                if self.euid == 0 or not home.branch.writable:
                    raise
                with OwnerOverride(home, with_parents=True):  # it was looked up by another name, in another directory
                    return home.stat_entry(node.leaf)
            return st if home.branch.overrides is None else home.branch.overrides.shown_stat(home, node.leaf, st)
        if node.upper is not None:
            return node.upper.stat()
        assert node.low is not None
        return node.low.stat()

    def stat_changed(self, node: Node) -> Stat:
        """As `stat`, for a node just changed: an open file of the upper is its object, so fstat(2) needs no name."""
        if isinstance(node, FileNode):
            held = node.held
            if held is not None and held.writable and node.home.branch.overrides is None:
                return _fstat(held.fd)
        return self.stat(node)

    @staticmethod
    def _stat_lost(node: FileNode) -> Stat:
        """Return the attributes of a file that was removed externally, by its open descriptor. ESTALE without one."""
        if node.held is None:
            refuse(errno.ESTALE, node.name)
        overrides = node.home.branch.overrides
        return os.fstat(node.held.fd) if overrides is None else overrides.shown_stat_of_fd(node.held.fd)

    def record_own_change(self, node: Node) -> None:
        """Tell the watcher that the daemon itself has changed the node, so that it is not reported as external."""
        if self.watcher is not None:
            with contextlib.suppress(OSError):
                self.watcher.record_own_change(node, self.stat(node))

    def owner(self, st: Stat, *, lower: bool) -> tuple[int, int]:
        """Return the owner and group, with unmapped ids of lowers shown as root's if the options ask."""
        uid, gid = st.st_uid, st.st_gid
        if lower and self.overflow_ids is not None:
            if uid == self.overflow_ids[0]:
                uid = 0
            if gid == self.overflow_ids[1]:
                gid = 0
        return uid, gid

    def chown(self, dir_fd: int, name: bytes, uid: int, gid: int) -> None:
        """Change the owner of an object, in ids as stored; -1 leaves an id as it is. EPERM, EINVAL; ignored if all
        files are shown as one user's."""
        try:
            os.chown(name, uid, gid, dir_fd=dir_fd, follow_symlinks=False)
        except OSError as exc:
            if self.owners is None or not self.owners.squashed or exc.errno not in (errno.EPERM, errno.EINVAL):
                raise

    def attrs(self, node: Node, st: Stat) -> Attrs:
        """Return the node's attributes as users see them, given `st` from its branch.

        A copy-up changes the ctime, and perhaps the size, of its directory on disk: the earlier values are shown until
        a user changes the directory, or the kernel forgets it.
        """
        if self.watcher is not None:
            self.watcher.track(node, st)
        before: Any = st
        blocks = -1
        if isinstance(node, FileNode):
            node.no_xattrs = False  # the remembered list is as old as the attributes that the kernel has
            lower = not node.home.branch.writable
            nlink = st.st_nlink if node.links is None else self._nlink(node, st)
            if node.links is not None and node.links.data is not None:
                if lower:
                    nlink = st.st_nlink
                elif node.links.partial is not None:
                    blocks = max(st.st_blocks, min(node.links.partial.lower_blocks, -(-st.st_size >> 12) << 3))
        else:
            node.no_xattrs = False
            lower = node.upper is None
            nlink = 0 if node.dead else self._dir_nlink(node, st)
            if node.shown_as is not None:
                before = node.shown_as
        same: Any = st  # `Any`: its values are passed on unconverted; compiled code would unbox and box each int
        uid, gid = same.st_uid, same.st_gid
        if lower and self.overflow_ids is not None:
            uid, gid = self.owner(st, lower=True)
        if self.owners is not None:
            uid, gid = self.owners.users.shown(uid), self.owners.groups.shown(gid)
        return make(Attrs, (
            node.ino, same.st_mode, nlink, uid, gid, same.st_rdev, before.st_size,
            before.st_blocks if blocks < 0 else blocks, same.st_blksize,
            same.st_atime_ns, same.st_mtime_ns, before.st_ctime_ns,
        ))  # fmt: skip

    def name_count(self, node: FileNode) -> int:
        """Return the number of a file's names in the union."""
        st = self.stat(node)
        return st.st_nlink if node.links is None else self._nlink(node, st)

    def _nlink(self, node: FileNode, st: Stat) -> int:
        """Return the number of a file's names in the union, without links in the index and the work directory."""
        links = node.links
        assert links is not None
        if not node.is_up:
            if links.key is not None and self._links is not None:
                return self._links.remaining(links.key, st.st_nlink)
            return 0 if links.dead else st.st_nlink
        nlink = st.st_nlink
        if self._staging is not None and node.home is self._staging.here:
            nlink -= 1
        if links.key is not None and self._links is not None:
            nlink += self._links.remaining(links.key, 0) - 1
        return max(0, nlink)

    def _dir_nlink(self, node: DirNode, st: Stat) -> int:
        if self.options.static_nlink:
            return 1
        if node.low is None:
            return st.st_nlink
        if node.upper is None:
            return node.low.nlink(st)
        if st.st_nlink < 2:
            return st.st_nlink
        if node.subdirs < 0:
            low_count = node.low.nlink(node.low.stat()) - 2
            if low_count <= 0 and node.up_names is None:
                return st.st_nlink
            if low_count >= 0 and node.up_names is not None and not node.up_names and not node.hidden:
                node.subdirs = low_count  # just copied up
            else:
                node.subdirs = sum(1 for _, kind, _ in self.visible(node) if kind == stat.S_IFDIR)
        return 2 + node.subdirs

    # -- names of a directory --------------------------------------------------------------------------------------

    def up_names(self, node: DirNode) -> dict[bytes, int]:
        """Return the upper's real entries of a directory: name -> ino << 4 | kind >> 12. Also fills `node.hidden`."""
        names = node.up_names
        if names is not None:
            node.cached_use = True
            return names
        hidden: list[bytes] = []
        names = {}
        if node.upper is not None:
            with OwnerOverride(node.upper):
                for name, kind, ino in self.lowers.entries(node.upper, hidden):
                    names[name] = (ino << 4) | (kind >> 12)
        node.up_names, node.hidden = names, set(hidden)
        self.cache.add(node, len(names))
        return names

    def visible(self, node: DirNode) -> list[tuple[bytes, int, int]]:
        """List (name, kind, ino as shown, or 0 if that needs a lookup) of a directory's visible entries."""
        names = self.up_names(node)
        shown = [(name, (code & 0xF) << 12, 0) for name, code in names.items()]
        low = node.low
        if low is not None:
            hidden = node.hidden
            for name, kind, ino in low.listing():
                if name not in names and name not in hidden:
                    shown.append((name, kind, ino))
        return shown

    def visible_names(self, node: DirNode) -> list[bytes]:
        """List the names of `visible`."""
        names, low = self.up_names(node), node.low
        shown = list(names)
        if low is not None:
            hidden = node.hidden
            if not shown and not hidden:
                return list(low.load())
            shown += [name for name in low.load() if name not in names and name not in hidden]
        return shown

    def low_ino(self, node: DirNode, place: BranchDir, name: bytes, code: int) -> int:
        """Return the inode number to show in a listing for a name of a lower, which is packed in `code`."""
        child = node.children.get(name) if self.is_restacked else None
        if child is not None:
            return child.ino
        return self.inodes.shown(place.branch.fs_index, (code >> 4) & 0xFFFFFFFFFFFFFFFF)

    def has_lowers_to_copy(self, node: DirNode) -> bool:
        """Whether entries of the upper's directory may have been copied up, so that they show their origins' inode
        numbers."""
        return self.upper is not None and bool(self.lowers.branches)

    def set_umask(self, umask: int) -> None:
        """Set the process's umask for the objects created next: the branch's filesystem applies it (default ACLs
        override it)."""
        if self._umask != umask and not self.options.keeps_umask:
            os.umask(umask)
            self._umask = umask

    def clear_umask(self, mode: int) -> bool:
        """Set the umask to 0 if it would clear bits of `mode` in the objects created next. Returns False if the umask
        may not be changed (`keeps_umask`)."""
        if self.options.keeps_umask:
            return False
        if self._umask & mode:
            self.set_umask(0)
        return True

    def drop_unused(self, node: Node | None) -> None:
        """Drop a node if it is unused, with its object in the staging directory."""
        for dropped in self.nodes.remove_unused(node):
            self._dispose(dropped)

    def _dispose(self, node: Node) -> None:
        if self.watcher is not None:
            self.watcher.forget(node.nodeid)
        if self.leaving:
            for leaving in list(self.leaving):
                leaving.users.discard(node.nodeid)
                if not leaving.users:
                    self.close_lower(leaving)
        staging = self._staging
        if staging is None:
            return
        if isinstance(node, FileNode):
            if node.is_dead and self.nodes.handle_table is not None:
                self._remember_nameless(node, self.nodes.handle_table)
            if node.is_dead and node.home is staging.here:
                staging.dispose(node.leaf, large=node.links is not None and node.links.large)
        elif node.dead and node.upper is not None:
            staging.dispose(node.upper.name)
            node.upper.held = None

    def close_lower(self, leaving: Leaving) -> None:
        """Close a removed lower that nothing uses any more."""
        self.leaving.remove(leaving)
        self.fds.drop_if(leaving.has)
        leaving.branch.root.held = None

    def _remember_nameless(self, node: FileNode, table: HandleTable) -> None:
        """Remember the place of a file that has lost all names that the kernel knew, if it has others."""
        from unionfs.syscalls import file_handles  # imported late, since the mount would wait for the import

        try:
            if self.name_count(node):
                handle = file_handles.handle_of(node.home.fd(), node.leaf) if node.is_up else b""
                table.add(node.nodeid, 0, b"", node.ino, True, Nameless(node.home, node.leaf, handle))
        except OSError:
            pass  # it is gone, or its filesystem has no handles: then the node's own is stale

    def hold_times(self, node: DirNode, st: Stat) -> None:
        """Record the times of a directory that is about to be changed, so that the next daemon restores them if this
        one dies before `restore_times`."""
        record = self.nodes.record
        if record is not None:
            record.hold_times(node.nodeid, st.st_atime_ns, st.st_mtime_ns)

    def restore_times(self, fd: int, st: Stat) -> None:
        """Set the times of the directory `fd` back to those of `st`, since a copy-up into it is no change by a user.

        Errors are ignored: the copied-up file is in place already.
        """
        try:  # contextlib.suppress would be three calls of Python's
            os.utime(b".", ns=(st.st_atime_ns, st.st_mtime_ns), dir_fd=fd)
        except OSError:
            pass
        if self.nodes.record is not None:
            self.nodes.record.release_times()
