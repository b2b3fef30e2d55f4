"""Process external changes to the branches: update the nodes and caches, and send invalidations to the kernel.

A changed name is resolved again from the branches and compared with its known node. The same object keeps its node,
wherever it is now; a different object gets a new node, and the old one is disconnected: it has no name, and its data
can be read only by a descriptor that is still open, as with a file removed on another machine.

Knows everything in the core. Directories that cannot be watched (see `core.watching`) are checked at each request.
"""

from __future__ import annotations

import errno
import stat
from time import monotonic
from typing import Final

from unionfs import markers
from unionfs.core import lookup, marks, names
from unionfs.core.attrs import ANY_NAME, Invalidation
from unionfs.core.branch import BranchDir, Stat
from unionfs.core.lower import LowDir
from unionfs.core.node import DirNode, FileNode, Node, names_of
from unionfs.core.node_record import DEAD
from unionfs.core.union_state import UnionState
from unionfs.core.watching import FROM_LOWER, Watcher, fingerprint
from unionfs.syscalls import inotify

_SLICE_S: Final = 0.004
"""Seconds that requests may have to wait while changes are processed."""

_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)
_NAMES_CHANGE: Final = inotify.CREATE | inotify.DELETE | inotify.MOVED_FROM | inotify.MOVED_TO
_ITSELF: Final = b""


def process_events(tree: UnionState, watcher: Watcher) -> bool:
    """Process inotify events for up to _SLICE_S. Returns whether more are pending."""
    if watcher.gather():
        watcher.invalidate([ANY_NAME, *_recheck_all(tree, watcher)])
    until = monotonic() + _SLICE_S
    due = watcher.due
    while due and monotonic() < until:
        nodeid = next(iter(due))
        node = tree.nodes.find(nodeid)
        names = due.pop(nodeid)
        if isinstance(node, DirNode) and not node.dead:
            found: list[Invalidation] = []
            while names and monotonic() < until:
                name, mask = names.popitem()
                _recheck(tree, watcher, node, name, mask, found)
            if names:
                due[nodeid] = names | due.get(nodeid, {})
            _recheck_times(tree, watcher, node, found)
            watcher.invalidate(found)
    return bool(due)


def all_changed(tree: UnionState, watcher: Watcher, *, by_name: bool) -> None:
    """Invalidate all that the kernel knows: no daemon has watched for a while, and the attributes that the kernel has
    of each node are not known any more. The kernel asks again for the names that programs use; these are watched then.
    `by_name`: the kernel has no notification for all names at once."""
    nodes = tree.nodes
    _forget_names(tree, tree.root)
    known = {node.nodeid: [(parent.nodeid, name) for parent, name in names_of(node)] for node in nodes.all()}
    known |= {there.nodeid: [] if there.flags & DEAD else there.names for there in nodes.recorded.values()}
    stale = [ANY_NAME]
    for nodeid, places in known.items():
        if by_name:
            stale += [Invalidation(parent, name) for parent, name in places]
        stale.append(Invalidation(nodeid, b"", data=True))
    watcher.invalidate(stale)


def _recheck_all(tree: UnionState, watcher: Watcher) -> list[Invalidation]:
    """Invalidate all listings and schedule a check of all known names, after lost events."""
    found = []
    for node in tree.nodes.all():
        if isinstance(node, DirNode):
            found.append(Invalidation(node.nodeid, b"", data=True))
            for name in (_ITSELF, *node.children):
                watcher.schedule_check(node.nodeid, name, FROM_LOWER)
    return found


def refresh_unwatched(tree: UnionState, watcher: Watcher, node: Node, name: bytes = _ITSELF) -> None:
    """Check `node`, or `name` in it, before it is used, if its directory cannot be watched."""
    directory = node if isinstance(node, DirNode) else node.parent
    if directory.nodeid not in watcher.unwatched or directory.dead:
        return
    found: list[Invalidation] = []
    if node is not directory:
        name = node.name
    _recheck(tree, watcher, directory, name, FROM_LOWER, found)
    if name == _ITSELF:
        _forget_names(tree, directory)
        found.append(Invalidation(directory.nodeid, b"", data=True))
    watcher.invalidate(found)


def _recheck(
    tree: UnionState, watcher: Watcher, directory: DirNode, name: bytes, mask: int, found: list[Invalidation]
) -> None:
    """Check one name of a directory, as an inotify event named it (so it may be a mark's)."""
    marked = markers.is_reserved(name)
    if marked:
        name = _ITSELF if name == markers.OPAQUE_NAME else markers.hidden_name(name) or _ITSELF
    if name != _ITSELF:
        if mask & FROM_LOWER and watcher.redirected:
            _recheck_redirected(tree, watcher, name)
        _recheck_name(tree, watcher, directory, name, mask, marked, found)
        return
    parent = directory.parent
    if parent is None:
        _recheck_root(tree, watcher, directory, mask, found)
    elif not parent.dead:
        _recheck_name(tree, watcher, parent, directory.name, mask, True, found)


def _recheck_redirected(tree: UnionState, watcher: Watcher, name: bytes) -> None:
    """Schedule checks of the redirected directories whose lower path contains `name`, which has changed in a lower."""
    for nodeid in watcher.redirected:
        node = tree.nodes.find(nodeid)
        if isinstance(node, DirNode) and node.low is not None and name in node.low.path_components():
            watcher.schedule_check(nodeid, _ITSELF, FROM_LOWER)


def _recheck_root(tree: UnionState, watcher: Watcher, root: DirNode, mask: int, found: list[Invalidation]) -> None:
    """Check the root's marks, which say which lowers show through."""
    root.no_xattrs = False
    if mask & FROM_LOWER:
        _forget_names(tree, root)
    opaque = root.upper is not None and marks.read_dir_marks(root.upper).opaque
    stack = () if opaque else tree.lowers.root_stack()
    if stack != (root.low.stack if root.low is not None else ()):
        tree.lowers.root.stack = stack or tree.lowers.root_stack()
        root.low = tree.lowers.root if stack else None
        _places_changed(tree, watcher, root, found)


def _recheck_name(
    tree: UnionState, watcher: Watcher, parent: DirNode, name: bytes, mask: int, marked: bool, found: list[Invalidation]
) -> None:
    """Resolve `name` from the branches as if it were unknown, and compare the result with the known node."""
    old = parent.children.get(name)
    if old is not None:
        old.no_xattrs = False
    if marked:
        _check_names(tree, parent, name, mask)
    ask = old is None or bool(mask & FROM_LOWER) or (marked and isinstance(old, DirNode))
    if not ask and _is_unchanged(watcher, parent, old, name):
        return  # our own change; a whiteout beside a file does not hide it
    _check_names(tree, parent, name, mask)
    if old is not None:
        detach_name(old, parent, name)
    try:
        now = lookup.resolve(tree, parent, name)
    except OSError as exc:
        if old is None:
            return
        if exc.errno in _ABSENT:
            _name_lost(tree, watcher, old, parent, name, found)
        else:
            attach_name(old, parent, name)
        return
    node, st = now.node, now.st
    if old is None:
        found.append(Invalidation(parent.nodeid, name))  # the kernel may have cached that it is missing
        tree.drop_unused(node)
    elif node is old:
        _has_changed(tree, watcher, old, st, mask, found)
    elif type(node) is type(old) and node.ino == old.ino:
        _adopt(tree, watcher, old, node, st, mask, found)
    else:
        _name_lost(tree, watcher, old, parent, name, found)
        parent.children[name] = node
        tree.drop_unused(node)


def _is_unchanged(watcher: Watcher, parent: DirNode, old: Node | None, name: bytes) -> bool:
    up = parent.upper
    if old is None or up is None or (parent.up_names is not None and name not in parent.up_names):
        return False
    try:
        st = up.stat_entry(name)
    except OSError:
        return False
    return watcher.seen.get(old.nodeid) == fingerprint(st)


def _check_names(tree: UnionState, parent: DirNode, name: bytes, mask: int) -> None:
    """Drop a directory's remembered names if they are outdated. Operations of the union itself update them."""
    if mask & FROM_LOWER:
        _forget_names(tree, parent)
        return
    up, known = parent.upper, parent.up_names
    if up is None or known is None:
        return
    code = known.get(name)
    try:
        st = up.stat_entry(name)
    except OSError:
        is_there = is_hidden = False
    else:
        is_hidden = marks.is_whiteout(up, name, st)
        is_there = not is_hidden
        if is_there and code is not None and code not in (_code(st, 0), _code(st, st.st_ino)):
            is_there = False
    is_hidden = is_hidden or marks.has_aufs_whiteout(up, name)
    if is_there != (code is not None) or is_hidden != (name in parent.hidden):
        tree.cache.forget(parent)


def _code(st: Stat, ino: int) -> int:
    return (ino << 4) | (stat.S_IFMT(st.st_mode) >> 12)


def _forget_names(tree: UnionState, directory: DirNode) -> None:
    tree.cache.forget(directory)
    if directory.low is not None:
        tree.cache.forget(directory.low)
        directory.low.weight = directory.low.subdirs = -1


# -- a name of a node ------------------------------------------------------------------------------------------------


def detach_name(node: Node, parent: DirNode, name: bytes) -> None:
    """Take this name from the node for the moment; without any name, the node is marked dead."""
    del parent.children[name]
    if isinstance(node, DirNode) or node.links is None:
        return
    links = node.links
    if (node.parent, node.name) != (parent, name):
        links.others = [pair for pair in links.others if pair != (parent, name)]
    elif links.others:
        node.parent, node.name = links.others.pop(0)
    else:
        links.dead = True


def attach_name(node: Node, parent: DirNode, name: bytes) -> None:
    """Undo `detach_name`."""
    parent.children[name] = node
    if isinstance(node, DirNode) or node.links is None:
        return
    if node.links.dead:
        node.links.dead = False
        node.parent, node.name = parent, name
    else:
        node.links.others.append((parent, name))


def _has_other_names(node: Node) -> bool:
    return isinstance(node, FileNode) and node.links is not None and not node.links.dead


def _name_lost(
    tree: UnionState, watcher: Watcher, node: Node, parent: DirNode, name: bytes, found: list[Invalidation]
) -> None:
    """Invalidate a name that its node has lost (after `detach_name`), and disconnect the node if it was the last."""
    found.append(Invalidation(parent.nodeid, name, node.nodeid))
    if isinstance(node, FileNode) and _has_other_names(node) and _find_home(tree, node):
        watcher.seen.pop(node.nodeid, None)
        found.append(Invalidation(node.nodeid, b""))
        tree.nodes.renamed(node)
    else:
        _disconnect(tree, watcher, node)
    tree.drop_unused(node)
    tree.drop_unused(parent)


def _find_home(tree: UnionState, node: FileNode) -> bool:
    """Find the object by one of the node's remaining names. Returns whether one leads to it."""
    for parent, name in names_of(node):
        try:
            if lookup.upper_entry(tree, parent, name) is not None and parent.upper is not None:
                node.home, node.leaf = parent.upper, name
                return True
            found = lookup.find_low(parent, name)
        except OSError:
            continue
        if found is not None:
            node.home, node.leaf = found.place, found.name
            return True
    return False


def _disconnect(tree: UnionState, watcher: Watcher, node: Node) -> None:
    """Cut the node off from its names and places, so that it never leads to an object that has its name now."""
    watcher.forget(node.nodeid)
    if isinstance(node, FileNode):
        tree.nodes.unregister_inode(node)
        for parent, name in names_of(node):
            if parent.children.get(name) is node:
                del parent.children[name]
        links = node.rare()
        links.dead, links.others, links.key, links.data, links.partial = True, [], None, None, None
        node.leaf = b""  # no name: stat(2) and open(2) say ENOENT
        return
    node.dead = True
    for child in list(node.children.values()):
        _disconnect(tree, watcher, child)
    node.children.clear()
    tree.cache.forget(node)
    top = tree.lowers.root.stack[-1]
    nowhere = BranchDir(top.branch, top, b"")
    nowhere.sealed = True
    node.upper, node.low = None, LowDir(tree.lowers, None, b"", (nowhere,))


# -- the same object -------------------------------------------------------------------------------------------------


def _has_changed(
    tree: UnionState, watcher: Watcher, node: Node, st: Stat, mask: int, found: list[Invalidation]
) -> None:
    now = fingerprint(st)
    before = watcher.seen.get(node.nodeid)
    if before is not None and (now != before or mask & inotify.MODIFY):
        watcher.seen[node.nodeid] = now
        if isinstance(node, DirNode):
            names.show(tree, node, None)
        found.append(Invalidation(node.nodeid, b"", data=mask & ~FROM_LOWER != inotify.ATTRIB))


def _adopt(
    tree: UnionState, watcher: Watcher, old: Node, fresh: Node, st: Stat, mask: int, found: list[Invalidation]
) -> None:
    """Move the places of `fresh`, the node just resolved for the same object, to the known node `old`."""
    parent, name = fresh.parent, fresh.name
    assert parent is not None
    tree.nodes.discard(fresh)
    attach_name(old, parent, name)
    if isinstance(old, FileNode) and isinstance(fresh, FileNode):
        moved = (old.home, old.leaf) != (fresh.home, fresh.leaf)
        old.home, old.leaf = fresh.home, fresh.leaf
        if fresh.links is not None:
            links = old.rare()
            links.key, links.data = fresh.links.key, fresh.links.data
            if links.partial is not fresh.links.partial:
                links.partial = fresh.links.partial
                tree.fds.drop(old)
            if fresh.links.inode is not None:
                tree.nodes.register_inode(old, fresh.links.inode)
        elif old.links is not None:
            old.links.key = old.links.data = old.links.partial = None
        if moved or mask & _NAMES_CHANGE:
            tree.fds.drop(old)
            mask |= inotify.MODIFY
        _has_changed(tree, watcher, old, st, mask, found)
        tree.nodes.renamed(old)
        return
    assert isinstance(old, DirNode)
    assert isinstance(fresh, DirNode)
    is_same = _same_places(_places(old), _places(fresh))
    if not is_same:
        old.upper, old.low = fresh.upper, fresh.low
    for place in _places(old):
        tree.fds.drop(place)
    if watcher.watch(old) or not is_same:
        found.append(Invalidation(parent.nodeid, name))
        _places_changed(tree, watcher, old, found)
    else:
        _has_changed(tree, watcher, old, st, mask & ~inotify.MODIFY, found)
    tree.nodes.renamed(old)


def _places(node: DirNode) -> list[BranchDir]:
    upper = [node.upper] if node.upper is not None else []
    return upper + list(node.low.stack if node.low is not None else ())


def _same_places(some: list[BranchDir], others: list[BranchDir]) -> bool:
    if len(some) != len(others):
        return False
    return all(
        one.branch is other.branch and one.name == other.name and one.path_components() == other.path_components()
        for one, other in zip(some, others, strict=True)
    )


def _places_changed(tree: UnionState, watcher: Watcher, node: DirNode, found: list[Invalidation]) -> None:
    """Invalidate a directory that is merged from other branch directories than before, and schedule its children."""
    _forget_names(tree, node)
    watcher.watch(node)
    watcher.seen.pop(node.nodeid, None)
    found.append(Invalidation(node.nodeid, b"", data=True))
    for name in node.children:
        watcher.schedule_check(node.nodeid, name, FROM_LOWER)


def _recheck_times(tree: UnionState, watcher: Watcher, directory: DirNode, found: list[Invalidation]) -> None:
    """Invalidate the directory itself if its attributes changed or a name in it was invalidated."""
    before = watcher.seen.get(directory.nodeid)
    if before is None or directory.dead:
        return
    try:
        now = fingerprint(tree.stat(directory))
    except OSError:
        return
    if now != before or any(each.nodeid == directory.nodeid and each.name for each in found):
        watcher.seen[directory.nodeid] = now
        found.append(Invalidation(directory.nodeid, b"", data=True))
