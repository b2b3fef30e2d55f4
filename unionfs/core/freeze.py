"""Make the upper of a union in use a lower, with an empty upper on top of it, in one moment.

The shown tree stays the same, so nothing is invalidated. On disk it is one rename (RENAME_EXCHANGE): the directory
of the upper and an empty one beside it change places. The work directory lists the frozen ones (core.staging), from
before that rename on, so the union has the same stack when it is opened again, also after a crash: an empty directory
in it changes nothing. Data written before the freeze are in the lower, which nothing changes afterwards; files that are
changed later are copied up from it.

Open files stay usable; those that were open for writing are copied up at their next write. Knows everything in the core
except requests. Precondition: no other thread changes a file of the upper meanwhile.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from itertools import count
from typing import Final

from unionfs import markers
from unionfs.core import complete, inodes, lookup, marks, overrides
from unionfs.core.branch import Branch, BranchDir
from unionfs.core.fds import FileFd
from unionfs.core.hardlinks import HardLinks
from unionfs.core.lower import LowDir, LowerTree
from unionfs.core.marks import proc_path
from unionfs.core.node import DirNode, FileNode, names_of
from unionfs.core.options import OptionError, Options
from unionfs.core.staging import Staging
from unionfs.core.union import Union
from unionfs.core.union_state import UnionState
from unionfs.syscalls import files
from unionfs.trees.remove import remove_tree

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_INDEX: Final = b"index"  # the name in the staging directory of the former hard-link index
_SHOWN: Final = (markers.OVERRIDE_PREFIX, markers.OVERRIDE_OLD_XATTR, markers.OVERRIDE_PRIVILEGED_XATTR)
"""Of the union's own attributes, those that say how an object is shown."""


class Freeze:
    """One freeze. `prepare` may run in any thread; then `commit` on the union's thread, and `close` in any."""

    def __init__(self, union: Union, name: bytes) -> None:
        """`name`: of the directory beside the upper that the former upper becomes. Raises OptionError."""
        self._tree = union._tree  # immutable
        self._name = name  # immutable
        self._parent_fd = -1  # the parent directory of the upper; set once by prepare
        self._upper_name = b""  # likewise: its name there
        self._fresh_fd = -1  # the empty directory; likewise
        self._is_listed = False  # in the work directory; changed by prepare and close
        self._is_done = False  # set once by commit
        self._old_index = b""  # likewise: the former hard-link index, in the staging directory
        self._staging_fd = -1  # likewise: of that directory
        options = self._tree.options
        if options.upper is None:
            raise OptionError(errno.EROFS, "the union has no upper")
        if options.whiteout == marks.FUSE_OVERLAYFS:
            raise OptionError(errno.EOPNOTSUPP, "it was mounted for another program, which knows one upper only")
        if options.passthrough:
            raise OptionError(errno.EOPNOTSUPP, "with passthrough the kernel itself writes to the upper's files")
        if self._tree.watcher is not None:
            raise OptionError(errno.EOPNOTSUPP, "the upper is watched for changes by others (--watch)")
        if self._tree.staging.has_partial():
            raise OptionError(
                errno.EBUSY, "data of files of the upper are still in the lowers: `unionfs complete` brings them"
            )
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name or len(name) > markers.NAME_MAX:
            raise OptionError(errno.EINVAL, f"{os.fsdecode(name)!r} is no name for a directory")

    def prepare(self) -> None:
        """Make the empty directory, with the attributes of the upper's root, and list it as a lower in the work
        directory. Raises OSError, OptionError."""
        upper = self._tree.upper
        assert upper is not None
        root_fd = upper.root.fd()
        self._parent_fd = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
        self._upper_name = self._name_of(upper)
        os.mkdir(self._name, 0o700, dir_fd=self._parent_fd)
        self._fresh_fd = os.open(self._name, _DIRECTORY, dir_fd=self._parent_fd)
        copy_attributes(root_fd, self._fresh_fd)
        staging = self._tree.staging
        with _alone(staging):
            staging.add_frozen(self._name)
            self._is_listed = True

    def _name_of(self, upper: Branch) -> bytes:
        """Find the upper's name in the directory above it: not by its path, which may be another one in this mount
        namespace."""
        names = [os.path.basename(os.path.normpath(os.fsencode(upper.path)))]
        with suppress(OSError):
            fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._parent_fd)
            try:
                names += [os.fsencode(name) for name in os.listdir(fd)]
            finally:
                os.close(fd)
        for name in names:
            with suppress(OSError):
                st = os.stat(name, dir_fd=self._parent_fd, follow_symlinks=False)
                if (st.st_dev, st.st_ino) == (upper.dev, upper.ino) and name not in (b"", b".", b".."):
                    return name
        raise OptionError(errno.EXDEV, f"the upper {upper.path} is a mountpoint, and cannot change places with another")

    def described(self) -> tuple[bytes, bytes, int]:
        """Return the description for `take_back`. After `prepare`."""
        return self._upper_name, self._name, os.fstat(self._fresh_fd).st_ino

    def close(self) -> None:
        """Remove the remains of `commit`, or without a `commit` all that `prepare` has made."""
        if self._staging_fd >= 0:
            with suppress(OSError):  # the end of the daemon removes it
                remove_tree(self._staging_fd, self._old_index)
            os.close(self._staging_fd)
            self._staging_fd = -1
        if self._is_listed and not self._is_done:
            with suppress(OSError), _alone(self._tree.staging):  # an empty directory in the list changes nothing
                self._tree.staging.drop_frozen(self._name)
                self._is_listed = False
        if self._fresh_fd >= 0:
            if not self._is_done and not self._is_listed:
                with suppress(OSError):
                    os.rmdir(self._name, dir_fd=self._parent_fd)
            os.close(self._fresh_fd)
        if self._parent_fd >= 0:
            os.close(self._parent_fd)
        self._parent_fd = self._fresh_fd = -1

    def commit(self) -> str:
        """Freeze the upper. Returns the path of the directory that is a lower now. Raises OSError, OptionError with
        nothing changed."""
        tree = self._tree
        staging, frozen = tree.staging, tree.upper
        assert frozen is not None
        for nodeid in list(tree.nodes.recorded):  # nodes that the dead daemon has left are found in the old stack only
            with suppress(OSError):
                tree.nodes.known(nodeid)
        if not complete.complete(tree):
            raise OptionError(errno.EBUSY, "the upper lacks names of hard links, or another daemon uses it")
        with _alone(staging):
            _find_homes(tree)
            path = os.path.join(os.path.dirname(os.path.normpath(frozen.path)), os.fsdecode(self._name))
            fresh = self._open_fresh(frozen)
            try:
                lowers = LowerTree(
                    [frozen, *tree.lowers.branches], tree.cache, skip_unreadable=tree.lowers.skip_unreadable
                )
                index, links = self._change_places(fresh)
            except BaseException:
                fresh.root.held = None  # branch and root refer to each other
                raise
            self._is_done, self._old_index, self._staging_fd = True, index, os.dup(staging.fd())
            _switch(tree, frozen, fresh, lowers, links, path)
        return path

    def _change_places(self, fresh: Branch) -> tuple[bytes, HardLinks]:
        """Make the changes on disk. Returns the name of the old hard-link index in the staging directory, and the new
        one."""
        staging = self._tree.staging
        index = staging.renew_index(_INDEX)
        try:
            links = HardLinks(staging, fresh.root)
            parent = self._parent_fd
            files.renameat2(parent, self._upper_name, parent, self._name, files.RENAME_EXCHANGE)
        except BaseException:
            staging.restore_index(index)
            raise
        return index, links

    def _open_fresh(self, frozen: Branch) -> Branch:
        fresh = Branch(frozen.path, self._tree.fds, writable=True, opened=proc_path(self._fresh_fd))
        fresh.fs_index, fresh.has_flags = frozen.fs_index, frozen.has_flags
        if frozen.overrides is not None:
            overrides.detect(fresh)
            if fresh.overrides is None:
                raise OptionError(errno.EOPNOTSUPP, "owners cannot be kept beside a directory")
            fresh.overrides.floor = frozen.overrides.floor
            fresh.overrides.stands_in = frozen.overrides.stands_in
        return fresh


def take_back(tree: UnionState, described: tuple[bytes, bytes, int]) -> None:
    """Undo the steps of a freeze that a dead daemon had begun; no program has seen them. Can be repeated. Raises
    OSError."""
    upper_name, name, ino = described
    staging, upper = tree.staging, tree.upper
    assert upper is not None
    lock = staging.lock_out_others()  # held to the end
    parent_fd = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=upper.root.fd())
    try:
        if os.stat(upper_name, dir_fd=parent_fd, follow_symlinks=False).st_ino == ino:
            files.renameat2(parent_fd, upper_name, parent_fd, name, files.RENAME_EXCHANGE)
        with suppress(FileNotFoundError):  # it was not moved
            staging.restore_index(_INDEX)
        with suppress(OSError):  # an empty directory in the list changes nothing
            staging.drop_frozen(name)
            os.rmdir(name, dir_fd=parent_fd)
    finally:
        os.close(parent_fd)
        del lock


def freeze_unmounted(options: Options, name: bytes = b"") -> str:
    """Freeze the upper of a union that is not mounted; b"": under its own name with a number. Returns the path of the
    directory that is a lower now. Raises OptionError, OSError; EEXIST for a `name` that exists."""
    union = Union(options._replace(keeps_umask=True))
    try:
        upper = os.path.basename(os.path.normpath(os.fsencode(options.upper or "")))
        for number in count(1):
            job = Freeze(union, name or b"%s.%d" % (upper, number))
            try:
                job.prepare()
                return job.commit()
            except FileExistsError:
                if name:
                    raise
            finally:
                job.close()
        raise AssertionError  # numbers do not end
    finally:
        union.close()


def _alone(staging: Staging) -> FileFd:
    """Keep other daemons from using the work directory while the result is open. Raises OptionError if one uses it
    already."""
    lock = staging.lock_out_others()
    if lock is None or not staging.was_alone():
        raise OptionError(errno.EBUSY, "another daemon uses the upper")
    return lock


def copy_attributes(source_fd: int, target_fd: int) -> None:
    """Give a directory the owner, mode, times and attributes of another, but not its marks."""
    source, target = proc_path(source_fd), proc_path(target_fd)
    st = os.stat(source)
    os.chown(target, st.st_uid, st.st_gid)
    os.chmod(target, st.st_mode & 0o7777)
    for name in os.listxattr(source):
        if markers.is_private_xattr(name) and not name.startswith(_SHOWN):
            continue
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except PermissionError:
            if not name.startswith("security."):  # a label that is not ours to set
                raise
    os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))


def _find_homes(tree: UnionState) -> None:
    """Have each node that reaches its file through the hard-link index reach it by a name in the upper. Raises
    OptionError for removed files that are in use and have other names: through the node such a file must stay writable,
    through the names it must not."""
    index, here = tree.links.place, tree.staging.here
    linked = set(tree.nodes.by_inode.values())  # all that have a key in the index, or had several names
    orphans = [tree.nodes.find(int(name[1:], 16)) for name, _, _ in here.scan() if name.startswith(b"o")]
    for node in {*linked, *(node for node in orphans if isinstance(node, FileNode))}:
        if not node.is_up:
            continue
        if node.home is index and not node.is_dead:
            for parent, name in names_of(node):
                if parent.upper is not None and lookup.upper_entry(tree, parent, name) is not None:
                    node.home, node.leaf = parent.upper, name
                    break
        if node.home is index or (node.home is here and tree.stat(node).st_nlink > 1):
            why = f"{os.fsdecode(node.name)!r} is removed, in use, and has other names: try again when it is closed"
            raise OptionError(errno.EBUSY, why)


def _switch(tree: UnionState, frozen: Branch, fresh: Branch, lowers: LowerTree, links: HardLinks, path: str) -> None:
    """Record that the nodes, whose objects have not moved, are in a lower now. Nothing in here fails."""
    frozen.writable, frozen.was_upper, frozen.path, frozen.number = False, True, path, len(tree.opened)
    tree.opened.append(frozen)
    tree.options = tree.options._replace(lowers=(path, *tree.options.lowers))
    replaced: set[object] = {tree.lowers.root}
    before, tree.lowers, tree.upper = tree.links, lowers, fresh
    tree.staging.branch.overrides = fresh.overrides
    tree.staging.set_upper(fresh)
    links.on_change = before.on_change
    tree.set_links(links)
    for file in list(tree.nodes.by_inode.values()):
        if file.home.branch is frozen:
            _own_names(tree, file, before)
    directories = [node for node in tree.nodes.all() if isinstance(node, DirNode) and not node.dead]
    for node in directories:
        replaced.add(node.low)
        _switch_directory(tree, node, frozen)
    for node in directories:
        if node.parent is not None and node.low is not None:
            node.low.parent = node.parent.low
    tree.root.upper = fresh.root
    assert tree.root.low is not None
    lowers.root = tree.root.low
    tree.cache.forget_if(replaced.__contains__)
    tree.is_restacked = True
    if tree.nodes.handle_table is not None:
        tree.nodes.handle_table.drop_handles()


def _switch_directory(tree: UnionState, node: DirNode, frozen: Branch) -> None:
    stack: tuple[BranchDir, ...] = node.low.stack if node.low is not None else ()
    up = node.upper
    if up is not None and up.branch is frozen:
        stack = (up, *stack)
        node.upper = None
    if node.up_names is not None:
        tree.cache.grow(node, -len(node.up_names))
        node.up_names, node.hidden = None, set()
    node.subdirs = -1
    node.low = LowDir(tree.lowers, None, node.name, stack)


def _own_names(tree: UnionState, node: FileNode, before: HardLinks) -> None:
    """Record that a file is a lower's now, with several names if it has them. `before`: the index that it was in."""
    links = node.links
    assert links is not None
    is_indexed = links.key is not None and before.upper_ino(links.key) is not None
    if links.inode is None and not is_indexed:
        return
    try:
        st = node.home.stat_entry(node.leaf)
    except OSError:
        return
    if st.st_nlink - is_indexed > 1:
        links.key = inodes.link_key(node.home.branch, st)
    else:
        tree.nodes.unregister_inode(node)
        links.key = links.inode = None
