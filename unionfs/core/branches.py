"""Replace the lowers of a union that is in use: read-only branches are added, removed and moved.

Afterwards the union shows the same as a new union over the new lowers. Directories are moved to the new stack one after
the other, from the root down, in slices between requests: each shows the old stack or the new one, never some names of
one and some of the other. A known object keeps its node if its names still lead to it. An object to which no name leads
any more is treated as removed while in use: processes that have it open can read and write it. A directory keeps its
node and its inode number as long as there is a directory under its name.

Knows everything in the core except requests. The kernel gets invalidations, as for external changes. The upper is not
touched.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic
from typing import Final, NamedTuple

from unionfs import markers
from unionfs.core import inodes, lookup, marks, mountpoints, overrides
from unionfs.core.attrs import IFDIR, Invalidation
from unionfs.core.branch import Branch, BranchDir
from unionfs.core.external_changes import detach_name
from unionfs.core.lower import Found, LowDir, LowerTree
from unionfs.core.marks import proc_path
from unionfs.core.node import DirNode, FileNode, Node
from unionfs.core.options import LOWERS_MAX, OptionError
from unionfs.core.staging import log_warning
from unionfs.core.union import Union
from unionfs.core.union_state import Leaving

SLICE_S: Final = 0.002
"""Seconds that requests may have to wait while directories are moved to the new stack."""

Lower = Branch
"""A lower, for modules that only pass it on."""

Tell = Callable[[list[Invalidation]], None]

_NO_NODE: Final = 0  # no node has this id
_TOLD_AT_ONCE: Final = 256  # names that a slice tells the kernel of; thousands would take longer than a slice


class _Looked(NamedTuple):
    """The result of looking a child up in the new stack, before its directory is moved."""

    child: Node
    found: Found | None  # the new stack's object under its name
    place: BranchDir | None  # where the child was then
    leads: bool  # the result of `_leads_to`
    stays: bool  # that result stays right while the child is where it was


def lowers(union: Union) -> list[Branch]:
    """Return the lowers of a union, top first."""
    return list(union._tree.lowers.branches)


def descriptors(union: Union, lower: Branch) -> tuple[int, int, int] | None:
    """Return new descriptors of the roots of the upper, of the hard-link index and of a lower, for `core.pointers`;
    None without an upper. The caller closes them."""
    tree = union._tree
    if tree.upper is None:
        return None
    upper, index, root = [os.dup(place.fd()) for place in (tree.upper.root, tree.staging.index, lower.root)]
    return upper, index, root


def writable(union: Union) -> list[tuple[str, int]]:
    """Return the roles and root descriptors (O_PATH) of the upper and the work directory, which belong to the union."""
    tree = union._tree
    if tree.upper is None:
        return []
    return [("upper", tree.upper.root.fd()), ("work directory", tree.staging.branch.root.fd())]


def open_lower(union: Union, fd: int, path: str, hidden: tuple[tuple[bytes, ...], ...] = ()) -> Branch:
    """Open the directory behind the descriptor `fd` as a lower, for `Restack`. `path` is its name in messages;
    `hidden`: paths below it, as components, that show as empty directories. Does not close `fd`. Raises OptionError."""
    tree = union._tree
    if len(tree.opened) >= LOWERS_MAX:
        raise OptionError(errno.E2BIG, f"cannot use {path} as a lower: the union has had {LOWERS_MAX} lowers already")
    try:
        branch = Branch(path, tree.fds, writable=False, opened=proc_path(fd))
        if not os.access(proc_path(branch.root.fd()), os.R_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        overrides.detect(branch)
        if tree.backing is not None:
            tree.backing.add(branch)
    except OptionError:
        raise
    except OSError as exc:
        raise OptionError(exc.errno or errno.EINVAL, f"cannot use {path} as a lower: {exc.strerror}") from None
    for components in hidden:
        branch.hide(components)
    mountpoints.hide_paths(branch, tree.options.hidden)
    mountpoints.hide_mounts([branch])
    return branch


class Restack:
    """One replacement of the lowers in progress. Only one at a time, on the union's thread."""

    def __init__(self, union: Union, branches: list[Branch], tell: Tell) -> None:
        """`branches`: the lowers from now on, top first, those that stay and those of `open_lower`. `tell` gets the
        invalidations for the kernel."""
        self._tree = union._tree  # immutable
        self._branches = branches  # immutable
        self._tell = tell  # immutable
        self._steps = self._run()
        self._lost: list[DirNode] = []  # directories that have lost their name; their children lose theirs next

    def work(self) -> bool:
        """Go on for some milliseconds. Returns whether more is to be done. Raises OSError, with nothing changed, if
        the new lowers' roots cannot be read."""
        until = monotonic() + SLICE_S
        return any(monotonic() > until for _ in self._steps)

    def _run(self) -> Iterator[None]:
        tree = self._tree
        for nodeid in list(tree.nodes.recorded):  # nodes that the dead daemon has left are found in the old stack only
            with suppress(OSError):
                tree.nodes.known(nodeid)
            yield
        lowers = LowerTree(self._branches, tree.cache, skip_unreadable=tree.lowers.skip_unreadable)
        for branch in self._branches:
            if branch not in tree.opened:
                branch.number = len(tree.opened)
                tree.opened.append(branch)
                tree.inodes.add(branch)
        before, tree.lowers, tree.is_restacked = tree.lowers, lowers, True  # from here on nothing fails
        tree.options = tree.options._replace(lowers=tuple(branch.path for branch in self._branches))
        yield from self._below(tree.root)
        while stale := self._stale():  # renamed from a directory not yet moved into one that had been moved
            for node in stale:
                yield from self._below(node)
        tree.cache.forget_if(self._is_outdated)
        yield
        for branch in before.branches:
            if branch not in self._branches:
                yield from self._leave(branch)

    def _is_outdated(self, directory: object) -> bool:
        return isinstance(directory, LowDir) and directory.tree is not self._tree.lowers

    def _stale(self) -> list[DirNode]:
        lowers = self._tree.lowers
        return [
            node
            for node in self._tree.nodes.all()
            if isinstance(node, DirNode) and not node.dead and node.low is not None and node.low.tree is not lowers
        ]

    def _below(self, top: DirNode) -> Iterator[None]:
        """Move a directory and all known ones below it to the new stack. Its parent has been moved already."""
        pending = [top]
        while pending:
            node = pending.pop()
            yield from self._directory(node)
            while self._lost:
                gone = self._lost.pop()
                for name, child in list(gone.children.items()):
                    self._lose_name(child, gone, name)
                    yield
            if not node.dead:
                pending += [child for child in node.children.values() if isinstance(child, DirNode)]
            yield

    def _directory(self, node: DirNode) -> Iterator[None]:
        """Move one directory: look its children up in its new stack, in slices, and then replace the stack at once."""
        tree = self._tree
        while not node.dead and tree.nodes.find(node.nodeid) is node:
            if node.low is not None and node.low.tree is tree.lowers:
                return
            known: dict[bytes, _Looked] = {}
            names: set[bytes] = set()
            low = self._new_low(node)
            if not _is_same(node.low, low):
                for name, child in list(node.children.items()):
                    known[name] = self._look(node, name, child, low)
                    yield
                yield from _names_that_may_appear(node.low, low, names)
                if not _is_same(low, self._new_low(node)):
                    continue  # it was renamed meanwhile
            if node.low is not None and node.low.tree is tree.lowers:
                return
            if low is not None or node.upper is not None:
                lost = self._switch(node, low, known)
                yield from self._follow(node, lost)
                names.difference_update(name for name, _ in lost)
                yield from self._tell_of_names(node, names)
            elif node.parent is not None:
                self._tell([self._lose_name(node, node.parent, node.name)])
            return

    def _new_low(self, node: DirNode) -> LowDir | None:
        """Return the merged lowers of a directory in the new stack; None: nothing shows through."""
        tree, parent = self._tree, node.parent
        try:
            if parent is None:
                opaque = node.upper is not None and marks.read_dir_marks(node.upper).opaque
                low = None if opaque else tree.lowers.root
            elif node.upper is not None:
                low = lookup.merged_with(tree, parent, node.name, node.upper)
            else:
                found = _find(parent.low, node.name)
                low = found.low if found is not None else None
        except OSError as exc:
            log_warning("%r cannot be read in the new stack: %s", node.name, exc)
            return None
        if low is not None and node.low is not None and parent is not None:
            known = {_key(place): place for place in node.low.stack}  # the places that have descriptors open
            low.stack = tuple([known.get(_key(place), place) for place in low.stack])
        return low

    def _look(self, node: DirNode, name: bytes, child: Node, low: LowDir | None) -> _Looked:
        """Find out whether a name will lead to its child in the new stack, as far as that can be known now."""
        found = _find(low, name)
        if isinstance(child, FileNode) and child.links is not None:
            return _Looked(child, found, None, leads=False, stays=False)
        return _Looked(child, found, _place_of(child), self._leads_to(node, name, child, found), stays=True)

    def _tell_of_names(self, node: DirNode, names: set[bytes]) -> Iterator[None]:
        """Have the kernel look up again names that may have appeared in a directory."""
        pending = [name for name in names if name not in node.children]
        for first in range(0, len(pending), _TOLD_AT_ONCE):
            self._tell([Invalidation(node.nodeid, name) for name in pending[first : first + _TOLD_AT_ONCE]])
            yield

    def _switch(self, node: DirNode, low: LowDir | None, known: dict[bytes, _Looked]) -> list[tuple[bytes, Node]]:
        """Let a directory show its new stack from now on. `known`: the results for its children. Returns the
        children that have lost their names, for `_follow`.

        Done at once for all children, so as little as possible is done here for each.
        """
        tree, old = self._tree, node.low
        if old is not None and low is not None and _is_same(old, low):
            old.tree, old.parent = tree.lowers, low.parent  # it keeps its remembered names
            if node.parent is None:
                tree.lowers.root = old
            return []
        if node.order is not None:
            tree.cache.grow(node, -len(node.order.names))
        node.low, node.order, node.subdirs, node.shown_as, node.no_xattrs = low, None, -1, None, False
        lost: list[tuple[bytes, Node]] = []
        for name, child in list(node.children.items()):
            looked = known.get(name)
            if looked is None or looked.child is not child:
                leads = self._leads_to(node, name, child, _find(low, name))
            elif looked.stays and looked.place is _place_of(child):
                leads = looked.leads
            else:
                leads = self._leads_to(node, name, child, looked.found)
            if not leads:
                self._cut(child, node, name)
                lost.append((name, child))
        if tree.watcher is not None:
            tree.watcher.seen.pop(node.nodeid, None)
            tree.watcher.watch(node)
        self._tell([Invalidation(node.nodeid, b"", data=True)])
        return lost

    def _follow(self, node: DirNode, lost: list[tuple[bytes, Node]]) -> Iterator[None]:
        """Do what remains to be done for children that were cut from their names, in slices."""
        tree = self._tree
        for first in range(0, len(lost), _TOLD_AT_ONCE):
            yield
            some = lost[first : first + _TOLD_AT_ONCE]
            self._tell([Invalidation(node.nodeid, name, child.nodeid) for name, child in some])
            for _, child in some:
                if tree.nodes.find(child.nodeid) is child:  # it may have been forgotten since
                    tree.nodes.renamed(child)
                    tree.drop_unused(child)

    def _leads_to(self, parent: DirNode, name: bytes, child: Node, found: Found | None) -> bool:
        """Whether the name still leads to the child, given what the new stack of `parent` has under it."""
        tree = self._tree
        if isinstance(child, DirNode):
            return child.upper is not None or (found is not None and found.kind == IFDIR)
        up = parent.upper
        if up is not None and (
            (child.home is up and child.leaf == name) or lookup.upper_entry(tree, parent, name) is not None
        ):
            if child.links is not None and child.links.data is not None:
                with suppress(OSError):  # its data are gone: programs that have it open go on reading them
                    lookup.relocate_data(tree, child)
            return True
        if found is None or found.kind == IFDIR:
            return False
        if child.home is found.place and child.leaf == found.name:
            return self._has_same_data(child)
        links = child.links
        if links is None or links.inode is None:
            return False
        try:
            st = found.place.stat_entry(found.name)
        except OSError:
            return False
        if child.is_up:  # a name of the lowers that the hard-link index leads to the copy
            return links.key is not None and links.key == inodes.link_key(found.place.branch, st)
        if links.inode != (st.st_dev, st.st_ino):
            return False
        if child.home.branch not in self._branches:
            child.home, child.leaf = found.place, found.name
        return True

    def _has_same_data(self, child: FileNode) -> bool:
        """Whether the data of a lower file, which may be a metacopy file, are at the same place as before."""
        data = child.links.data if child.links is not None else None
        if data is None:
            return True
        low = child.parent.low
        try:
            place, leaf = self._tree.lowers.data_place(low, child.home, child.leaf) if low is not None else data
        except OSError:
            return False
        return leaf == data[1] and _key(place) == _key(data[0])

    def _lose_name(self, node: Node, parent: DirNode, name: bytes) -> Invalidation:
        """Take a name from its node, since it now leads to another object or to none. Returns the invalidation for the
        kernel."""
        stale = Invalidation(parent.nodeid, name, node.nodeid)
        self._cut(node, parent, name)
        self._tree.nodes.renamed(node)
        self._tree.drop_unused(node)
        return stale

    def _cut(self, node: Node, parent: DirNode, name: bytes) -> None:
        """Take a name from its node, which no request finds by it from now on."""
        tree = self._tree
        if isinstance(node, FileNode) and (node.links is None or not node.links.others):
            tree.nodes.unregister_inode(node)
            if not node.is_up:
                node.rare().key = None  # its copy in the upper will have no name
            node.rare()
        detach_name(node, parent, name)
        if isinstance(node, DirNode):
            node.dead = True
            self._lost.append(node)
        if tree.watcher is not None and (isinstance(node, DirNode) or node.is_dead):
            tree.watcher.forget(node.nodeid)

    def _leave(self, branch: Branch) -> Iterator[None]:
        """Close a removed branch, now or when the last node that is in it is forgotten."""
        tree = self._tree
        if branch in tree.viewed_lowers:
            return  # the view still shows it
        if tree.nodes.handle_table is not None:
            tree.nodes.handle_table.drop_in(branch)
        leaving = Leaving(branch, {_NO_NODE})  # so that it is not closed before all its users are known
        tree.leaving.append(leaving)
        for node in tree.nodes.all():
            if _uses(node, branch) and tree.nodes.find(node.nodeid) is node:
                leaving.users.add(node.nodeid)
            yield
        leaving.users.discard(_NO_NODE)
        if not leaving.users:
            tree.close_lower(leaving)


def _uses(node: Node, branch: Branch) -> bool:
    """Whether an object of the node is in a branch."""
    if isinstance(node, DirNode):
        return node.low is not None and any(place.branch is branch for place in node.low.stack)
    if node.home.branch is branch:
        return True
    return node.links is not None and node.links.data is not None and node.links.data[0].branch is branch


def _place_of(node: Node) -> BranchDir | None:
    """Where a file with one name, or the part of a directory in the upper, is."""
    if isinstance(node, DirNode):
        return node.upper
    return node.home if node.links is None else None


def _find(low: LowDir | None, name: bytes) -> Found | None:
    """Find a name in one directory of the lowers without reading all of it; None also if the directory cannot be
    searched."""
    if low is None:
        return None
    try:
        return low.tree.walk_one(low, low.stack, name)[0]
    except OSError:
        return None


def _key(place: BranchDir) -> tuple[int, tuple[bytes, ...]]:
    return place.branch.number, place.path_components()


def _is_same(one: LowDir | None, other: LowDir | None) -> bool:
    """Whether two merged directories consist of the same places."""
    if one is None or other is None:
        return one is other
    return len(one.stack) == len(other.stack) and all(
        here is there or _key(here) == _key(there) for here, there in zip(one.stack, other.stack, strict=True)
    )


def _names_that_may_appear(old: LowDir | None, new: LowDir | None, names: set[bytes]) -> Iterator[None]:
    """Add to `names` those that the kernel may have cached as missing and the new stack may show: the names in an added
    place, and those that a removed or moved place hid."""
    before = [_key(place) for place in old.stack] if old is not None else []
    after = [_key(place) for place in new.stack] if new is not None else []
    has_moved = [key for key in before if key in after] != [key for key in after if key in before]
    places = [*(new.stack if new is not None else ()), *(old.stack if old is not None else ())]
    for place in places:
        key = _key(place)
        if place.sealed or (key in before and key in after and not has_moved):
            continue
        with suppress(OSError):
            fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place.fd())
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        name = os.fsencode(entry.name)
                        names.add(markers.hidden_name(name) or name if markers.is_reserved(name) else name)
                        yield
            finally:
                os.close(fd)
