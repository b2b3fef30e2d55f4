"""The public interface of the core: one short method for each verb that a transport needs.

Node ids and names in, values out, OSError for failures. All methods run on one thread and never wait for anything but
the branches' filesystems. Names are bytes without a slash. Every method may raise ESTALE for a node id it does not
know, and EIO when a branch fails; further errnos are listed at each method.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, TypeVar

from unionfs import markers
from unionfs.core import (
    complete,
    content,
    copyup,
    create,
    emulated_owners,
    external_changes,
    fill,
    inode_flags,
    lookup,
    metadata,
    mountpoints,
    readdir,
    remove,
)
from unionfs.core import rename as rename_operation
from unionfs.core.attrs import ROOT, WHOLE, AttrChange, Attrs, Caller, DirEntry, Entry, FsStats, Invalidation, make
from unionfs.core.fds import FileFd
from unionfs.core.fill import Fill
from unionfs.core.handle_table import HandleTable
from unionfs.core.handover import OpenBranches
from unionfs.core.ledger import Ledger
from unionfs.core.lookup import Resolved
from unionfs.core.node import DirNode, FileNode, Node, names_of
from unionfs.core.options import OptionError, Options
from unionfs.core.owner_override import OwnerOverride
from unionfs.core.staging import RunLater
from unionfs.core.union_state import UnionState, refuse
from unionfs.core.watching import Watcher
from unionfs.syscalls import files
from unionfs.syscalls.statx import ExtendedStat

P = ParamSpec("P")
R = TypeVar("R")


def _as_owner(method: Callable[Concatenate[Union, int, P], R]) -> Callable[Concatenate[Union, int, P], R]:
    """Wrap a method so that it reaches its node even if a directory above it has lost its search permission.

    The kernel checked permissions when the file was opened, so such requests come for open files only. Root never needs
    the override. The verbs of the commonest requests have the same written out: their calls stay native when they are
    compiled, which saves a thousand instructions each.
    """

    @functools.wraps(method)
    def guarded(self: Union, nodeid: int, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, nodeid, *args, **kwargs)
        except PermissionError as exc:
            with self._override_for(nodeid, exc):
                return method(self, nodeid, *args, **kwargs)

    return guarded


class Union:
    """A union of any number of lowers and at most one upper, as one tree."""

    def __init__(self, options: Options, given: OpenBranches | None = None) -> None:
        """Open the branches; or take those `given`, see UnionState. Raises OptionError with a message for the user."""
        self._tree = UnionState(options, given=given)
        self._nodes = self._tree.nodes
        self._partial_search = complete.PartialSearch()

    @property
    def options(self) -> Options:
        """The options that the union was made from."""
        return self._tree.options

    @property
    def upper_in_use(self) -> bool:
        """Whether another running daemon was using the upper's work directory when this one started."""
        return self._tree.upper_in_use

    @property
    def ledger(self) -> Ledger:
        """The counts of copy-ups so far."""
        return self._tree.ledger

    @property
    def node_count(self) -> int:
        """The number of nodes known now."""
        return len(self._nodes)

    def _override_for(self, nodeid: int, refused: PermissionError) -> OwnerOverride:
        """Return a context in which the node's upper object is reachable. Raises `refused` for root, for other errnos
        than EACCES and for lower objects: there no mode of the upper is the cause."""
        node = self._nodes.find(nodeid) if refused.errno == errno.EACCES and self._tree.euid != 0 else None
        place = node.home if isinstance(node, FileNode) else node.upper if node is not None else None
        if place is None or not place.branch.writable:
            try:
                raise refused
            finally:
                del refused  # its traceback holds this frame: a cycle, which would keep descriptors open
        return OwnerOverride(place, with_parents=True)

    def close(self) -> None:
        """Give the upper the names of hard links that it lacks and remove this daemon's part of the work directory.
        No method may be called afterwards."""
        is_complete = complete.complete(self._tree)
        was_alone = is_complete or self._tree.staging.was_alone()
        self._tree.close()
        if not was_alone:  # this union's memory is outdated; the upper itself is right
            with contextlib.suppress(OSError, OptionError):  # a path may lead nowhere in this mount namespace by now
                complete.complete_upper(self.options, patience_s=0)

    def learn_mounts(self) -> None:
        """Hide mountpoints inside the lowers, by the mount table. To be called once the union itself is mounted."""
        mountpoints.hide_mounts(self._tree.lowers.branches)

    # -- external changes to the branches ----------------------------------------------------------------------------

    def watch(self, invalidate: Callable[[list[Invalidation]], None], shorten_timeouts: Callable[[int], None]) -> int:
        """Start to watch the branches for external changes, in directories that the kernel knows. Returns the
        descriptor that is readable when there is an event to process.

        `invalidate` is called with the invalidations for the kernel; `shorten_timeouts`, once, with the errno for which
        some directories cannot be watched: their entries are checked at every request, so the kernel should ask often.
        Raises OSError with EMFILE.
        """
        watcher = self._tree.watcher = Watcher(invalidate, shorten_timeouts)
        self._tree.attrs(self._tree.root, self._tree.stat(self._tree.root))
        return watcher.fd

    def process_events(self) -> bool:
        """Process external changes for some milliseconds. Returns whether more are pending. Never raises."""
        watcher = self._tree.watcher
        return watcher is not None and external_changes.process_events(self._tree, watcher)

    @property
    def watched(self) -> tuple[int, int] | None:
        """The number of watched branch directories, and of union directories that cannot be watched; None: no watch."""
        watcher = self._tree.watcher
        return (len(watcher), len(watcher.unwatched)) if watcher is not None else None

    # -- names -----------------------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Entry:
        """Look up `name` in `parent`. ENOENT, ENOTDIR, ENAMETOOLONG, EACCES."""
        entry = self.find(parent, name)
        if entry is None:
            refuse(errno.ENOENT, name)
        return entry

    def find(self, parent: int, name: bytes, is_listed: bool = False) -> Entry | None:
        """As `lookup`, but None for a missing name, since raising costs more than all else. ENOENT only if the name is
        removed externally meanwhile. `is_listed`: the record gets the lookup by `record_listed`."""
        directory = self._nodes.directory(parent)
        if self._tree.watcher is not None and self._tree.watcher.unwatched:
            external_changes.refresh_unwatched(self._tree, self._tree.watcher, directory, name)
        found = lookup.find(self._tree, directory, name)
        if found is None:
            return None
        node, st = found.node, found.st
        if self._tree.watcher is not None and node.nodeid in self._tree.watcher.unwatched:
            external_changes.refresh_unwatched(self._tree, self._tree.watcher, node)
        self._nodes.count_lookup(node, is_listed)
        return make(Entry, (node.nodeid, self._tree.attrs(node, st)))

    def record_listed(self) -> None:
        """Record the lookups by `find` with `is_listed`. To be called before the kernel knows of them."""
        self._nodes.record_listed()

    def keep_handles(self) -> None:
        """Start to remember the ids of forgotten nodes (`handle_table.LIMIT` of them), for `lookup_handle`."""
        self._nodes.handle_table = self._nodes.handle_table or HandleTable(record=self._nodes.record)

    def lookup_handle(self, nodeid: int, parent: bool = False) -> Entry:
        """Look up a node by its id, even if forgotten; with `parent`, its directory instead. Raises ESTALE."""
        from unionfs.core import handles  # not at the start, which a mount waits for

        node = handles.find(self._tree, nodeid)
        if parent:
            above = node.parent
            if above is None or (node.dead if isinstance(node, DirNode) else node.is_dead):
                refuse(errno.ESTALE)
            node.nlookup += 1  # so that the parents live until `above` has its own count
            entry = self._entry(above)
            self.forget(nodeid)
            return entry
        return self._entry(node)._replace(nodeid=nodeid)  # a former one too: the kernel takes no other

    def forget(self, nodeid: int, count: int = 1) -> bool:
        """Subtract `count` from a node's lookup count, as the kernel's FORGET asks. Returns whether it is zero now, so
        that the kernel does not know the node. Never raises."""
        node = self._nodes.find(nodeid)
        if node is None or nodeid == ROOT:
            if self._nodes.forget_recorded is not None:
                self._nodes.forget_recorded(nodeid, count)
            return False
        node.nlookup = max(0, node.nlookup - count)
        if not node.nlookup:
            self._tree.drop_unused(node)
        self._nodes.forgotten(node)
        return not node.nlookup

    def take_back(self, nodeid: int) -> None:
        """Undo a lookup that the request in hand has made for itself."""
        self._nodes.taken_back(nodeid)
        self.forget(nodeid)

    def readdir(self, nodeid: int, cookie: int) -> Iterator[DirEntry]:
        """List the entries of a directory after `cookie` (0: from the start), "." and ".." first. EACCES if a branch
        may not be read.

        The directory must not be changed while the iterator is in use; start again at the last cookie that fitted.
        """
        return readdir.entries(self._tree, self._listed(nodeid), cookie)

    def names(self, nodeid: int, cookie: int, most: int) -> list[tuple[int, bytes]]:
        """List (cookie, name) of a directory's entries after `cookie`, for callers that look each name up. About `most`
        entries, of which some may be gone; none only at the end. EACCES if a branch may not be read."""
        return readdir.names(self._tree, self._listed(nodeid), cookie, most)

    def _listed(self, nodeid: int) -> DirNode:
        """Return the directory `nodeid`, checked for external changes if it is unwatched. ESTALE, ENOTDIR."""
        node = self._nodes.directory(nodeid)
        if self._tree.watcher is not None and self._tree.watcher.unwatched:
            external_changes.refresh_unwatched(self._tree, self._tree.watcher, node)
        return node

    def dot_ino(self, nodeid: int, cookie: int) -> int:
        """Return the inode number of "." (cookie 1) or ".." (2) in a listing. ESTALE, ENOTDIR."""
        node = self._nodes.directory(nodeid)
        return node.ino if cookie == 1 or node.parent is None else node.parent.ino

    def readlink(self, nodeid: int) -> bytes:
        """Return the target of a symlink. EINVAL for anything else."""
        node = self._nodes.get(nodeid)
        if isinstance(node, DirNode):
            refuse(errno.EINVAL)
        return copyup.read_target(node)

    def _entry(self, node: Node) -> Entry:
        return self._new_entry(Resolved(node, self._tree.stat(node)))

    def _new_entry(self, made: Resolved) -> Entry:
        node, st = made.node, made.st
        self._nodes.count_lookup(node)
        return make(Entry, (node.nodeid, self._tree.attrs(node, st)))

    def _as_stored(self, caller: Caller) -> Caller:
        """Translate the caller's ids to those that the upper stores."""
        if self._tree.options.owners_kept:
            return emulated_owners.maker(caller)
        owners = self._tree.owners
        if owners is None:
            return caller
        return caller._replace(uid=owners.users.stored(caller.uid), gid=owners.groups.stored(caller.gid))

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        """Create a file, fifo, socket or device. EEXIST, EROFS, EPERM, EINVAL for reserved names, ENOSPC."""
        return self._new_entry(
            create.make_file(self._tree, self._nodes.directory(parent), name, mode, rdev, self._as_stored(caller))
        )

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Entry:
        """Create a directory. Errors as `mknod`."""
        return self._new_entry(
            create.make_directory(self._tree, self._nodes.directory(parent), name, mode, self._as_stored(caller))
        )

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Entry:
        """Create a symlink. Errors as `mknod`."""
        return self._new_entry(
            create.make_symlink(self._tree, self._nodes.directory(parent), name, target, self._as_stored(caller))
        )

    @_as_owner
    def link(self, nodeid: int, new_parent: int, new_name: bytes) -> Entry:
        """Create a hard link to a file. EMLINK, EPERM for directories; else as `mknod`."""
        node = self._nodes.get(nodeid)
        if isinstance(node, DirNode):
            refuse(errno.EPERM, new_name)
        create.make_link(self._tree, node, self._nodes.directory(new_parent), new_name)
        return self._entry(node)

    def tmpfile(self, parent: int, mode: int, caller: Caller) -> Entry:
        """Create a file without a name (O_TMPFILE)."""
        return self._entry(
            create.make_unnamed(self._tree, self._nodes.directory(parent), mode, self._as_stored(caller))
        )

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name of a file. ENOENT, EISDIR, EROFS."""
        remove.unlink(self._tree, self._nodes.directory(parent), name)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory. ENOENT, ENOTDIR, ENOTEMPTY, EROFS."""
        remove.rmdir(self._tree, self._nodes.directory(parent), name)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        """Rename a file or directory; `flags` as renameat2(2). Errors of rename(2), never EXDEV."""
        nodes = self._nodes
        rename_operation.rename(self._tree, nodes.directory(parent), name, nodes.directory(new_parent), new_name, flags)

    # -- attributes ------------------------------------------------------------------------------------------------

    def getattr(self, nodeid: int) -> Attrs:
        """Return the attributes of a node, also after its last name was removed."""
        try:
            return self._getattr(nodeid)
        except PermissionError as exc:
            with self._override_for(nodeid, exc):
                return self._getattr(nodeid)

    def _getattr(self, nodeid: int) -> Attrs:
        node = self._nodes.get(nodeid)
        if self._tree.watcher is not None and self._tree.watcher.unwatched:
            external_changes.refresh_unwatched(self._tree, self._tree.watcher, node)
        return self._tree.attrs(node, self._tree.stat(node))

    def place_of(self, nodeid: int) -> metadata.Place:
        """Return where a node is in the union, and in which branch. ESTALE for an unknown node."""
        return metadata.place_of(self._tree, self._nodes.get(nodeid))

    def name_of(self, nodeid: int) -> tuple[int, bytes, bool]:
        """Return one name of a node, or the last it had: the directory (node id, 0 above the root), the name in it, and
        whether the node is a directory. ESTALE for an unknown node."""
        node = self._nodes.get(nodeid)
        parent = node.parent
        return 0 if parent is None else parent.nodeid, node.name, isinstance(node, DirNode)

    @_as_owner
    def extended_stat(self, nodeid: int) -> ExtendedStat:
        """Return the statx(2) fields beyond `getattr`: birth time, and attributes such as immutable."""
        return metadata.extended_stat(self._nodes.get(nodeid))

    def setattr(self, nodeid: int, change: AttrChange) -> Attrs:
        """Change attributes and return the new ones. EROFS, EPERM, EISDIR, EINVAL, ENOSPC, EFBIG."""
        try:
            return self._setattr(nodeid, change)
        except PermissionError as exc:
            with self._override_for(nodeid, exc):
                return self._setattr(nodeid, change)

    def _setattr(self, nodeid: int, change: AttrChange) -> Attrs:
        node = self._nodes.get(nodeid)
        metadata.setattr_node(self._tree, node, change)
        return self._tree.attrs(node, self._tree.stat_changed(node))

    def getxattr(self, nodeid: int, name: bytes) -> bytes:
        """Return the value of an extended attribute. ENODATA, EOPNOTSUPP."""
        value = self.find_xattr(nodeid, name)
        if value is None:
            refuse(errno.ENODATA, name)
        return value

    def find_xattr(self, nodeid: int, name: bytes) -> bytes | None:
        """As `getxattr`, but None for a missing attribute: most requests are for missing ones (see `find`)."""
        try:
            return self._find_xattr(nodeid, name)
        except PermissionError as exc:
            with self._override_for(nodeid, exc):
                return self._find_xattr(nodeid, name)

    def _find_xattr(self, nodeid: int, name: bytes) -> bytes | None:
        node = self._nodes.get(nodeid)
        if name == markers.OWNER_XATTR and self._tree.options.owners_kept:
            return emulated_owners.get(self._tree, node)
        return metadata.find_xattr(self._tree, node, name)

    @_as_owner
    def listxattr(self, nodeid: int, privileged: bool = True) -> list[bytes]:
        """List the names of extended attributes without the union's own; those in `trusted.` only if `privileged`
        (xattr(7))."""
        listed = metadata.listxattr(self._nodes.get(nodeid))
        return listed if privileged else [name for name in listed if not name.startswith(b"trusted.")]

    @_as_owner
    def setxattr(self, nodeid: int, name: bytes, value: bytes, flags: int) -> None:
        """Set an extended attribute. EEXIST, ENODATA, EPERM, ENOSPC, EROFS."""
        node = self._nodes.get(nodeid)
        if name in emulated_owners.ATTRIBUTES and self._tree.options.owners_kept:
            emulated_owners.change(self._tree, node, name, value)
        else:
            metadata.setxattr(self._tree, node, name, value, flags)

    @_as_owner
    def removexattr(self, nodeid: int, name: bytes) -> None:
        """Remove an extended attribute. ENODATA, EPERM, EROFS."""
        metadata.removexattr(self._tree, self._nodes.get(nodeid), name)

    @_as_owner
    def get_flags(self, nodeid: int, command: int) -> bytes:
        """Return the inode's flags; `command` is in syscalls.files.FLAG_READS. ENOTTY where there are none."""
        return metadata.get_flags(self._tree, self._nodes.get(nodeid), command)

    @_as_owner
    def set_flags(self, nodeid: int, command: int, flags: bytes) -> None:
        """Set the inode's flags; `command` is in syscalls.files.FLAG_WRITES. ENOTTY, EOPNOTSUPP, EPERM, EROFS."""
        metadata.set_flags(self._tree, self._nodes.get(nodeid), command, flags)

    def statfs(self) -> FsStats:
        """Return the statistics of the upper's filesystem, else of the top lower's (statvfs(3)). Names: 255 bytes."""
        tree = self._tree
        root = tree.upper.root if tree.upper is not None else tree.lowers.root.stack[0]
        st = os.fstatvfs(root.fd())
        return FsStats(
            st.f_bsize, st.f_frsize, st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree, markers.NAME_MAX
        )

    # -- data ------------------------------------------------------------------------------------------------------

    @_as_owner
    def read(self, nodeid: int, offset: int, size: int) -> bytes:
        """Read up to `size` bytes from `offset`; fewer only at the end."""
        return content.read(self._tree, self._nodes.file(nodeid), offset, size)

    def write(self, nodeid: int, offset: int, data: bytes | memoryview, kill_priv: bool = False) -> int:
        """Write at `offset`. Returns the number of bytes written. EROFS, ENOSPC, EFBIG, EDQUOT."""
        try:
            return self._write(nodeid, offset, data, kill_priv)
        except PermissionError as exc:
            with self._override_for(nodeid, exc):
                return self._write(nodeid, offset, data, kill_priv)

    def _write(self, nodeid: int, offset: int, data: bytes | memoryview, kill_priv: bool) -> int:
        return content.write(self._tree, self._nodes.file(nodeid), offset, data, kill_priv=kill_priv)

    @_as_owner
    def write_back(self, nodeid: int, offset: int, data: bytes | memoryview, has_capability: bool = True) -> int:
        """Write pages of the page cache: as `write`, but a capability, if the file may have one, stays."""
        return content.write_back(self._tree, self._nodes.file(nodeid), offset, data, has_capability=has_capability)

    def read_fd(self, nodeid: int) -> FileFd:
        """Return a descriptor to read the node's data. After a later copy-up another one is returned."""
        try:
            return self._read_fd(nodeid)
        except PermissionError as exc:
            with self._override_for(nodeid, exc):
                return self._read_fd(nodeid)

    def _read_fd(self, nodeid: int) -> FileFd:
        return self._tree.read_fd(self._nodes.file(nodeid))

    @_as_owner
    def write_fd(self, nodeid: int, appends: bool = False) -> FileFd:
        """Return a descriptor to write the node's data. Copies a lower file up; an append-only one if it `appends`."""
        node = self._nodes.file(nodeid)
        copyup.ensure(self._tree, node, despite=inode_flags.APPEND if appends else 0)
        return self._tree.write_fd(node)

    @_as_owner
    def allocation_fd(self, nodeid: int, mode: int) -> FileFd:
        """Return a descriptor for fallocate(2) with this mode. Copies a lower file up."""
        return content.allocation_fd(self._tree, self._nodes.file(nodeid), mode)

    @_as_owner
    def check_open(self, nodeid: int, flags: int) -> bool:
        """Refuse open(2) as a file's inode flags do (EPERM). Returns whether it is append-only and to be written."""
        return inode_flags.refuse_open(self._nodes.file(nodeid), flags)

    def backing_fd(self, nodeid: int) -> FileFd:
        """Return a descriptor (O_PATH) of the file that holds the node's data now, for the kernel to open by itself.
        Preconditions: Options.passthrough; the node is copied up if the kernel is to write. EINVAL, ESTALE."""
        backing, node = self._tree.backing, self._nodes.file(nodeid)
        if backing is None:
            refuse(errno.EOPNOTSUPP)
        if not node.is_up and (node.links is None or node.links.data is None):
            self._tree.read_fd(node)  # finds the data of a metacopy file
        return backing.open(node)

    def is_former(self, nodeid: int) -> bool:
        """Whether the node has another id since `renumber`."""
        return self._nodes.get(nodeid).nodeid != nodeid

    def renumber(self, nodeid: int) -> bool:
        """Give the node another id, for the next lookup of a name of it; its former ids still lead to it. Returns
        whether more than one of its names is known."""
        node = self._nodes.get(nodeid)
        before = node.nodeid
        self._nodes.renumber(node)
        watcher = self._tree.watcher
        if watcher is not None and before in watcher.seen:
            watcher.seen[node.nodeid] = watcher.seen.pop(before)
        return len(names_of(node)) > 1

    @_as_owner
    def fallocate(self, nodeid: int, mode: int, offset: int, length: int) -> None:
        """Allocate, punch or zero a range of a file (fallocate(2)). EOPNOTSUPP, ENOSPC, EROFS."""
        content.allocate(self._tree, self._nodes.file(nodeid), mode, offset, length)

    @_as_owner
    def lseek(self, nodeid: int, offset: int, whence: int) -> int:
        """Find data or a hole by SEEK_DATA or SEEK_HOLE (lseek(2)). ENXIO, EINVAL."""
        return content.seek(self._tree, self._nodes.file(nodeid), offset, whence)

    def copy_file_range(self, src: int, src_offset: int, dst: int, dst_offset: int, length: int) -> int:
        """Copy a range between two files of the union (copy_file_range(2)). EINVAL, ENOSPC, EROFS."""
        copied = content.copy_range(*self.copy_fds(src, src_offset, dst, dst_offset), length)
        self.changed(dst)
        return copied

    @_as_owner
    def fsync(self, nodeid: int, datasync: bool) -> None:
        """Write a node through to the device, unless the union is volatile. For the root directory see `sync_fd`."""
        if (held := self.sync_fd(nodeid)) is not None:
            with held:
                (os.fdatasync if datasync else os.fsync)(held.fd)

    def syncfs(self) -> None:
        """Write the upper's whole filesystem through to its device, unless the union is volatile."""
        held = content.syncfs_fd(self._tree)
        if held is not None:
            with held:
                files.syncfs(held.fd)

    # -- data by descriptors, for transports with threads; after a change through one `changed` must be called -------

    @_as_owner
    def sync_fd(self, nodeid: int) -> FileFd | None:
        """Return a descriptor for `fsync`; None: nothing to write. For the root the upper is completed first."""
        if nodeid == ROOT:
            complete.complete(self._tree)
        return content.sync_fd(self._tree, self._nodes.get(nodeid))

    def syncfs_fd(self) -> FileFd | None:
        """Return a descriptor on the filesystem that `syncfs` would write through; None: nothing to write."""
        return content.syncfs_fd(self._tree)

    @_as_owner
    def slow_truncate_fd(self, nodeid: int, size: int) -> FileFd | None:
        """Return a descriptor to truncate in a thread before `setattr`, if truncating to `size` is slow; else None."""
        node = self._nodes.get(nodeid)
        return content.slow_truncate_fd(self._tree, node, size) if isinstance(node, FileNode) else None

    def copy_fds(self, src: int, src_offset: int, dst: int, dst_offset: int) -> tuple[FileFd, int, FileFd, int]:
        """Return source and target descriptors for `copy_range`, each with its offset. Copies the target up."""
        target = self.write_fd(dst)
        return (self.read_fd(src) if src != dst else target), src_offset, target, dst_offset

    @staticmethod
    def copy_range(source: FileFd, src_offset: int, target: FileFd, dst_offset: int, length: int) -> int:
        """Copy between the descriptors of `copy_fds`, in any thread. Returns the bytes copied. EINVAL, ENOSPC."""
        return content.copy_range(source, src_offset, target, dst_offset, length)

    def changing(self, nodeid: int) -> None:
        """Announce a change of the file's content by a descriptor: until `changed`, the watch ignores the file."""
        if self._tree.watcher is not None:
            self._tree.watcher.seen.pop(nodeid, None)

    def changed(self, nodeid: int) -> None:
        """Record that the file's content was changed through a descriptor of `write_fd`."""
        if (node := self._nodes.find(nodeid)) is not None:
            self._tree.record_own_change(node)

    def set_run_later(self, run: RunLater) -> None:
        """Set the function `run`, which gets slow work for which no request waits, and may do it in any thread."""
        self._tree.set_run_later(run)

    def next_partial(self) -> int | None:
        """Return the next file of the upper that lacks data, for `copyup_begin`; None, once, after the last one."""
        return self._partial_search.next(self._tree)

    def when_growing(self, call: Callable[[], None]) -> None:
        """Set the function that is called when a partial file gets blocks, so that `fill_begin` has work."""
        self._tree.when_growing = call

    def fill_begin(self) -> Fill | None:
        """Begin to copy more blocks of partial files in a worker thread, then call `copyup_commit` or `copyup_abort`;
        None: nothing is left. Raises OSError; the next call does not begin with the same file again."""
        return fill.begin_idle(self._tree)

    def give_up_filling(self, job: Fill) -> None:
        """Copy no more blocks of this file until a write gives it blocks again."""
        self._tree.growing.discard(job.node.nodeid)

    # -- copy-up, for transports that copy in another thread --------------------------------------------------------

    def copyup_begin(self, nodeid: int, size: int | None = None, need: int = WHOLE) -> copyup.CopyUp | Fill | None:
        """Begin a copy-up for a worker thread; None if the coming change needs none, or one quick enough to be done
        inline. `size`: the file will be truncated to this; `need`: see core.attrs. EROFS."""
        node = self._nodes.get(nodeid)
        return copyup.begin(self._tree, node, size, need) if isinstance(node, FileNode) else None

    def copyup_commit(self, job: copyup.CopyUp | Fill) -> None:
        """Replace the lower file by the finished copy. On failure the old file stays: ENOSPC, EIO."""
        copyup.commit(self._tree, job)

    def copyup_abort(self, job: copyup.CopyUp | Fill) -> None:
        """Abandon a copy-up and remove the unfinished copy."""
        copyup.abort(self._tree, job)
