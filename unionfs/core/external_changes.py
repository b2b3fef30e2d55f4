"""Changes that others make to the branches: bring what is remembered in line, and say what the kernel must forget.

A changed name is resolved again from the branches, beside what is known of it. The same object is kept as the node it
is, wherever it is now; something else gets a new node, and the old one is lost: it has no name and no way back to its
data but a descriptor that is still open, as a file has that was removed on another machine.

Knows everything in the core. What is not watched (see `core.watching`) is looked at again when it is asked for.
"""

from __future__ import annotations

import errno
import stat
from time import monotonic
from typing import Final

from unionfs import markers
from unionfs.core import lookup, marks
from unionfs.core.attrs import ANY_NAME, Invalidation
from unionfs.core.branch import BranchDir, Stat
from unionfs.core.lower import LowDir
from unionfs.core.node import DirNode, FileNode, Node, names_of
from unionfs.core.union_state import UnionState
from unionfs.core.watching import FROM_LOWER, Watcher, print_of
from unionfs.syscalls import inotify

_SLICE_S: Final = 0.004
"""So long requests may have to wait for changes to be looked at."""

_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)
_NAMES_CHANGE: Final = inotify.CREATE | inotify.DELETE | inotify.MOVED_FROM | inotify.MOVED_TO
_ITSELF: Final = b""


def process_events(tree: UnionState, watcher: Watcher) -> bool:
    """Look at what inotify has heard of, for a moment. Whether there is more to look at."""
    if watcher.gather():
        watcher.tell([ANY_NAME, *_look_at_everything(tree, watcher)])
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
                _look_at(tree, watcher, node, name, mask, found)
            if names:
                due[nodeid] = names | due.get(nodeid, {})
            _look_at_times(tree, watcher, node, found)
            watcher.tell(found)
    return bool(due)


def _look_at_everything(tree: UnionState, watcher: Watcher) -> list[Invalidation]:
    """No listing is to be believed: names may have come and gone beneath a directory's topmost branch."""
    found = []
    for node in tree.nodes.all():
        if isinstance(node, DirNode):
            found.append(Invalidation(node.nodeid, b"", data=True))
            for name in (_ITSELF, *node.children):
                watcher.look_at(node.nodeid, name, FROM_LOWER)
    return found


def look_when_asked(tree: UnionState, watcher: Watcher, node: Node, name: bytes = _ITSELF) -> None:
    """`node`, or `name` in it, is asked for: look at it first if changes to it could not be noticed."""
    directory = node if isinstance(node, DirNode) else node.parent
    if directory.nodeid not in watcher.unwatched or directory.dead:
        return
    found: list[Invalidation] = []
    if node is not directory:
        name = node.name
    _look_at(tree, watcher, directory, name, FROM_LOWER, found)
    if name == _ITSELF:
        _forget_names(tree, directory)
        found.append(Invalidation(directory.nodeid, b"", data=True))
    watcher.tell(found)


def _look_at(
    tree: UnionState, watcher: Watcher, directory: DirNode, name: bytes, mask: int, found: list[Invalidation]
) -> None:
    """See what became of one name of a directory, given as inotify saw it."""
    marked = markers.is_reserved(name)
    if marked:
        name = _ITSELF if name == markers.OPAQUE_NAME else markers.hidden_name(name) or _ITSELF
    if name != _ITSELF:
        if mask & FROM_LOWER and watcher.redirected:
            _look_at_redirected(tree, watcher, name)
        _look_again(tree, watcher, directory, name, mask, marked, found)
        return
    parent = directory.parent
    if parent is None:
        _look_at_root(tree, watcher, directory, mask, found)
    elif not parent.dead:
        _look_again(tree, watcher, parent, directory.name, mask, True, found)


def _look_at_redirected(tree: UnionState, watcher: Watcher, name: bytes) -> None:
    """`name` has changed in a lower: so has the content of directories that were renamed from there."""
    for nodeid in watcher.redirected:
        node = tree.nodes.find(nodeid)
        if isinstance(node, DirNode) and node.low is not None and name in node.low.path_components():
            watcher.look_at(nodeid, _ITSELF, FROM_LOWER)


def _look_at_root(tree: UnionState, watcher: Watcher, root: DirNode, mask: int, found: list[Invalidation]) -> None:
    """The root has no name. Its marks say whether lowers show through."""
    if mask & FROM_LOWER:
        _forget_names(tree, root)
    opaque = root.upper is not None and marks.read_dir_marks(root.upper).opaque
    stack = () if opaque else tree.lowers.root_stack()
    if stack != (root.low.stack if root.low is not None else ()):
        tree.lowers.root.stack = stack or tree.lowers.root_stack()
        root.low = tree.lowers.root if stack else None
        _places_changed(tree, watcher, root, found)


def _look_again(
    tree: UnionState, watcher: Watcher, parent: DirNode, name: bytes, mask: int, marked: bool, found: list[Invalidation]
) -> None:
    """Resolve `name` from the branches as if it were unknown, and compare with what is known."""
    old = parent.children.get(name)
    if marked:
        _check_names(tree, parent, name, mask)
    ask = old is None or bool(mask & FROM_LOWER) or (marked and isinstance(old, DirNode))
    if not ask and _is_as_seen(watcher, parent, old, name):
        return  # our own change; and what is a file shows in spite of a whiteout beside it
    _check_names(tree, parent, name, mask)
    if old is not None:
        _take_name(old, parent, name)
    try:
        node, st = lookup.resolve(tree, parent, name)
    except OSError as exc:
        if old is None:
            return
        if exc.errno in _ABSENT:
            _name_lost(tree, watcher, old, parent, name, found)
        else:
            _give_name(old, parent, name)
        return
    if old is None:
        found.append(Invalidation(parent.nodeid, name))  # it may be known to be missing
        tree.drop_unused(node)
    elif node is old:
        _has_changed(watcher, old, st, mask, found)
    elif type(node) is type(old) and node.ino == old.ino:
        _adopt(tree, watcher, old, node, st, mask, found)
    else:
        _name_lost(tree, watcher, old, parent, name, found)
        parent.children[name] = node
        tree.drop_unused(node)


def _is_as_seen(watcher: Watcher, parent: DirNode, old: Node | None, name: bytes) -> bool:
    up = parent.upper
    if old is None or up is None or (parent.up_names is not None and name not in parent.up_names):
        return False
    try:
        st = up.look(name)
    except OSError:
        return False
    return watcher.seen.get(old.nodeid) == print_of(st)


def _check_names(tree: UnionState, parent: DirNode, name: bytes, mask: int) -> None:
    """Forget what is remembered of a directory's names if it is not so any more. Our own operations keep it right."""
    if mask & FROM_LOWER:
        _forget_names(tree, parent)
        return
    up, known = parent.upper, parent.up_names
    if up is None or known is None:
        return
    code = known.get(name)
    try:
        st = up.look(name)
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


def _take_name(node: Node, parent: DirNode, name: bytes) -> None:
    """Let the node not have this name for the moment; without any, it is as if it were removed."""
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


def _give_name(node: Node, parent: DirNode, name: bytes) -> None:
    """Take `_take_name` back."""
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
    """The name, which was taken from the node already, is not its any more."""
    found.append(Invalidation(parent.nodeid, name, node.nodeid))
    if isinstance(node, FileNode) and _has_other_names(node) and _find_home(tree, node):
        watcher.seen.pop(node.nodeid, None)
        found.append(Invalidation(node.nodeid, b""))
    else:
        _lose(tree, watcher, node)
    tree.drop_unused(node)
    tree.drop_unused(parent)


def _find_home(tree: UnionState, node: FileNode) -> bool:
    """Find the object under one of the names that the node has left."""
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


def _lose(tree: UnionState, watcher: Watcher, node: Node) -> None:
    """Nothing leads to the node's object any more. It must never lead to what has its name now."""
    watcher.forgotten(node.nodeid)
    if isinstance(node, FileNode):
        tree.nodes.unregister_inode(node)
        for parent, name in names_of(node):
            if parent.children.get(name) is node:
                del parent.children[name]
        links = node.rare()
        links.dead, links.others, links.key, links.data = True, [], None, None
        node.leaf = b""  # no name: stat(2) and open(2) say ENOENT
        return
    node.dead = True
    for child in list(node.children.values()):
        _lose(tree, watcher, child)
    node.children.clear()
    tree.cache.forget(node)
    top = tree.lowers.root.stack[-1]
    nowhere = BranchDir(top.branch, top, b"")
    nowhere.sealed = True
    node.upper, node.low = None, LowDir(tree.lowers, None, b"", (nowhere,))


# -- the same object -------------------------------------------------------------------------------------------------


def _has_changed(watcher: Watcher, node: Node, st: Stat, mask: int, found: list[Invalidation]) -> None:
    now = print_of(st)
    before = watcher.seen.get(node.nodeid)
    if before is not None and (now != before or mask & inotify.MODIFY):
        watcher.seen[node.nodeid] = now
        if isinstance(node, DirNode):
            node.shown_as = None
        found.append(Invalidation(node.nodeid, b"", data=mask & ~FROM_LOWER != inotify.ATTRIB))


def _adopt(
    tree: UnionState, watcher: Watcher, old: Node, fresh: Node, st: Stat, mask: int, found: list[Invalidation]
) -> None:
    """`fresh` is what `old` has become: it stays the node it was, where it is now."""
    parent, name = fresh.parent, fresh.name
    assert parent is not None
    tree.nodes.discard(fresh)
    _give_name(old, parent, name)
    if isinstance(old, FileNode) and isinstance(fresh, FileNode):
        moved = (old.home, old.leaf) != (fresh.home, fresh.leaf)
        old.home, old.leaf = fresh.home, fresh.leaf
        if fresh.links is not None:
            links = old.rare()
            links.key, links.data = fresh.links.key, fresh.links.data
            if fresh.links.inode is not None:
                tree.nodes.register_inode(old, fresh.links.inode)
        elif old.links is not None:
            old.links.key = old.links.data = None
        if moved or mask & _NAMES_CHANGE:
            tree.fds.drop(old)
            mask |= inotify.MODIFY
        _has_changed(watcher, old, st, mask, found)
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
        _has_changed(watcher, old, st, mask & ~inotify.MODIFY, found)


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
    """The directory is merged from other branches' directories than before: whatever is known in it may differ."""
    _forget_names(tree, node)
    watcher.watch(node)
    watcher.seen.pop(node.nodeid, None)
    found.append(Invalidation(node.nodeid, b"", data=True))
    for name in node.children:
        watcher.look_at(node.nodeid, name, FROM_LOWER)


def _look_at_times(tree: UnionState, watcher: Watcher, directory: DirNode, found: list[Invalidation]) -> None:
    """A name that came or went changes its directory, too."""
    before = watcher.seen.get(directory.nodeid)
    if before is None or directory.dead:
        return
    try:
        now = print_of(tree.stat(directory))
    except OSError:
        return
    if now != before or any(each.nodeid == directory.nodeid and each.name for each in found):
        watcher.seen[directory.nodeid] = now
        found.append(Invalidation(directory.nodeid, b"", data=True))
