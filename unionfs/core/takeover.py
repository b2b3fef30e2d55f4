"""Continue where a daemon has died or was replaced, from its record of nodes (core.node_record).

A node is made again when a request needs it, by its recorded names: the object under a name is accepted if it has the
recorded inode number. Nodes without a name are found in the staging directory, as orphans, or in the lowers. Orphans
and files of several names are made at once, since other names must lead to them. Objects that the dead daemon was
building are removed; for a rename in progress, the names at both ends show whether it was done.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from functools import partial
from typing import Final

from unionfs.core import external_changes, inodes, lookup, remove
from unionfs.core.branch import BranchDir
from unionfs.core.handle_table import Nameless
from unionfs.core.handover import OpenBranches
from unionfs.core.lookup import Resolved
from unionfs.core.lower import Found
from unionfs.core.node import DirNode, FileNode, Node
from unionfs.core.node_record import (
    DEAD,
    IN_INDEX,
    IN_LOWER,
    IN_LOWERS,
    LINKED,
    NodeRecord,
)
from unionfs.core.owner_override import OwnerOverride
from unionfs.core.recorded_node import Notes, RecordedNode
from unionfs.core.recorded_rename import Rename
from unionfs.core.staging import log_warning
from unionfs.core.union import Union
from unionfs.core.union_state import UnionState, refuse
from unionfs.syscalls import files

_ORPHAN: Final = b"o"


def keep_record(union: Union, record: NodeRecord) -> None:
    """Record all that another daemon needs to continue. To be called before the first lookup."""
    union._nodes.keep(record)
    union.ledger.kept = record.ledger


def opened(union: Union) -> OpenBranches:
    """Return the values from which another process can make the same union. The descriptors stay ours."""
    return union._tree.hand_over()


def take_over(union: Union) -> dict[int, bool]:
    """Continue from the record of a daemon that has died. Returns the changes whose requests may come again: by unique,
    whether the change is known to be done. Raises: DamagedError.

    Preconditions: nothing but the root is known. May be called again by the next daemon if this one dies meanwhile: all
    steps can be repeated.
    """
    tree = union._tree
    nodes = tree.nodes
    record = nodes.record
    assert record is not None
    nodes.load()
    tree.cache.forget(tree.root)  # the names that the keeper has read are outdated
    nodes.remake, nodes.forget_recorded = partial(remake, tree), partial(_forget, tree)
    if tree.ledger.kept is not None:
        tree.ledger.continue_()
    _remember_nameless(tree)
    orphans = _clear_staging(tree)
    changes = record.changes()
    rename = record.rename()
    if rename is not None:
        is_done = _was_done(tree, rename)
        if is_done:
            changes[rename.unique] = True
        record.end_rename(is_done)
    _set_times_back(tree, record)
    for nodeid in orphans:
        _adopt(tree, nodeid)
    for nodeid, there in list(nodes.recorded.items()):
        if there.flags & LINKED and nodeid in nodes.recorded:
            try:
                remake(tree, nodeid)
            except OSError as exc:
                log_warning("node %d %r of the daemon before is lost: %s", nodeid, there.names, exc)
    if tree.upper is not None:
        _sweep_index(tree)
    return changes


def unanswered(union: Union) -> Notes:
    """Return the lookups and opens that the dead daemon has counted for its last request: they are taken back if the
    kernel sends that request again. Nothing may have been looked up since."""
    record = union._tree.nodes.record
    return record.notes() if record is not None else Notes()


def pause_watching(union: Union) -> None:
    """End the watch for external changes; a process that this one forks calls `resume_watching`. Preconditions:
    Union.watch was called."""
    watcher = union._tree.watcher
    assert watcher is not None
    watcher.pause()


def resume_watching(union: Union, *, everything: bool, by_name: bool) -> int:
    """Watch again. `everything`: all that the kernel knows may have changed meanwhile; `by_name`: the kernel has no
    notification for all names at once. Returns the new descriptor, as Union.watch does."""
    tree = union._tree
    watcher = tree.watcher
    assert watcher is not None
    watcher.resume()
    tree.attrs(tree.root, tree.stat(tree.root))
    if everything:
        external_changes.all_changed(tree, watcher, by_name=by_name)
    return watcher.fd


def _remember_nameless(tree: UnionState) -> None:
    """Remember, for file handles, forgotten files that have lost the names by which they were known."""
    nodes, table = tree.nodes, tree.nodes.handle_table
    pending, nodes.recorded_nameless = nodes.recorded_nameless, []
    for there in pending:
        where = Nameless(tree.lowers.root.stack[-1], b"", there.names[0][1])
        if there.flags & IN_LOWER:
            branch, _, path = where.handle.partition(b"/")
            *above, leaf = path.split(b"/")
            place = tree.opened[int(branch)].root
            for name in above:
                place = place.child(name)
            where = Nameless(place, leaf, b"")
        if table is not None:
            table.add(there.nodeid, 0, b"", there.ino, True, where, there.slot)


def _clear_staging(tree: UnionState) -> list[int]:
    """Remove unfinished objects. Returns the node ids of the orphans."""
    orphans = []
    if tree.upper is not None:
        staging = tree.staging
        staging.restore_modes()
        staging.note_time()  # nothing is remembered of the upper yet
        for name, _, _ in staging.here.scan():
            if name.startswith(_ORPHAN):
                orphans.append(int(name.removeprefix(_ORPHAN), 16))
            else:
                staging.dispose(name)
        tree.read_links()
    return orphans


def _set_times_back(tree: UnionState, record: NodeRecord) -> None:
    """Restore the times of a directory that a copy-up, which is no change by a user, had changed when the daemon
    died."""
    nodeid, atime_ns, mtime_ns = record.held_times()
    if not nodeid:
        return
    with contextlib.suppress(OSError):
        node = tree.nodes.directory(nodeid)
        if node.upper is not None:
            os.utime(b".", ns=(atime_ns, mtime_ns), dir_fd=node.upper.fd())
    record.release_times()


def _sweep_index(tree: UnionState) -> None:
    """Drop the entries of the hard-link index to which no name leads. Files that are still in use become orphans."""
    used = {}
    for node in tree.nodes.by_inode.values():
        if node.links is not None and node.links.key is not None:
            used[node.links.key] = node
    for key, node in used.items():
        if node.is_dead and node.home is tree.links.place:
            remove.release_index(tree, node, key)
            tree.nodes.renamed(node)
    tree.links.sweep(used.keys())


def _adopt(tree: UnionState, nodeid: int) -> None:
    """Make the node of an orphan; remove the orphan if its node is not known, or has a name after all."""
    staging, node = tree.staging, tree.nodes.find(nodeid)
    now = tree.nodes.recorded_id(nodeid)
    try:
        if node is None and now in tree.nodes.recorded:
            node = remake(tree, now)
    except OSError:
        return  # it stays until its FORGET, or the end
    if node is None or not (node.dead if isinstance(node, DirNode) else node.is_dead):
        staging.dispose(staging.orphan_name(nodeid))


def _was_done(tree: UnionState, rename: Rename) -> bool:
    """Tell from the objects at both of its ends whether a rename has been done. If so, change the names in the
    record."""
    nodes = tree.nodes
    src = nodes.recorded.get(rename.src)
    if src is None:
        return False
    before, after = (rename.parent, rename.name), (rename.new_parent, rename.new_name)
    there, here = _ino_at(tree, *after), _ino_at(tree, *before)
    if there != src.ino or here == src.ino:
        return False
    dst = nodes.recorded.get(rename.dst) if rename.flags & files.RENAME_EXCHANGE else None
    _rename_recorded(tree, src, before, after)
    if dst is not None:
        _rename_recorded(tree, dst, after, before)
    return True


def _ino_at(tree: UnionState, parent: int, name: bytes) -> int:
    """Return the inode number of the object under a name of a directory; 0: there is none. Makes no recorded node
    again."""
    nodes = tree.nodes
    try:
        directory = nodes.directory(parent)
    except OSError:
        return 0
    ids, nodes.recorded_ids = nodes.recorded_ids, {}
    try:
        found = _find(tree, directory, name)
    except OSError:
        return 0
    finally:
        nodes.recorded_ids = ids
    if found is None:
        return 0
    ino = found.node.ino
    tree.drop_unused(found.node)
    return ino


def _rename_recorded(
    tree: UnionState, there: RecordedNode, before: tuple[int, bytes], after: tuple[int, bytes]
) -> None:
    """Change a name in the record."""
    nodes, record = tree.nodes, tree.nodes.record
    assert record is not None
    if before not in there.names:
        return
    nodes.take_recorded(there.nodeid)
    there.names = [after if place == before else place for place in there.names]
    slot = there.slot
    nodes.put_recorded(there)
    record.drop(slot)
    nodes.recorded[there.nodeid] = there
    nodes.place_recorded(there)


def remake(tree: UnionState, nodeid: int) -> Node:
    """Return the node of an id, made again. ESTALE if its object is gone."""
    nodes = tree.nodes
    chain: list[RecordedNode] = []
    at, node = nodeid, nodes.find(nodeid)
    while node is None:
        there = nodes.recorded.get(at)
        if there is None or there in chain:
            refuse(errno.ESTALE)
        chain.append(there)
        if there.flags & DEAD:
            node = tree.root
            break
        at = there.names[0][0]
        node = nodes.find(at)
    for there in reversed(chain):
        node = _named(tree, node, there) or _nameless(tree, node, there)
    return node


def _named(tree: UnionState, parent: Node, there: RecordedNode) -> Node | None:
    """Find a node by one of its recorded names; None: none of them leads to it any more."""
    if there.flags & DEAD:
        return None
    for position, (above, name) in enumerate(there.names):
        directory = parent
        if position:
            try:
                directory = tree.nodes.get(above)
            except OSError:
                continue
        if not isinstance(directory, DirNode) or directory.dead:
            continue
        try:
            found = _find(tree, directory, name)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ESTALE):
                continue
            raise
        if found is None:
            continue
        if found.node.nodeid == there.nodeid:
            return found.node
        tree.drop_unused(found.node)
    return None


def _find(tree: UnionState, directory: DirNode, name: bytes) -> Resolved | None:
    """As lookup.find, also below directories that have lost their search permission: the node was found before."""
    try:
        return lookup.find(tree, directory, name)
    except PermissionError:
        if tree.euid == 0 or directory.upper is None:
            raise
        with OwnerOverride(directory.upper, with_parents=True):
            return lookup.find(tree, directory, name)


def _nameless(tree: UnionState, parent: Node, there: RecordedNode) -> Node:
    """Make a node that has no name. ESTALE if there is no object."""
    place = there.names[0][1]
    node = _orphan(tree, there) if tree.upper is not None else None
    if node is not None:
        return node
    if there.flags & IN_INDEX:
        return _in_index(tree, there, place)
    if there.flags & IN_LOWER:
        branch, _, path = place.partition(b"/")
        return _in_lower(tree, there, tree.opened[int(branch)].root, path.split(b"/"))
    found = None
    if there.flags & IN_LOWERS:
        found = tree.lowers.walk(place.split(b"/"))
    elif not there.flags & DEAD and isinstance(parent, DirNode):  # it was hidden just before the daemon died
        found = lookup.find_low(parent, place)
    if found is None:
        refuse(errno.ESTALE)
    if found.low is not None:
        return _dead_directory(tree, there, found)
    st = found.place.stat_entry(found.name)
    if tree.inodes.shown(found.place.branch.fs_index, st.st_ino) != there.ino:
        refuse(errno.ESTALE)
    return _in_lower(tree, there, found.place, [found.name])


def _add_nameless(tree: UnionState, node: Node) -> None:
    """Add a node without a name, and record that it has none."""
    if isinstance(node, FileNode):
        node.rare().dead = True
        tree.nodes.add(node)
    else:
        node.dead = True
        parent, node.parent = node.parent, None  # it has no parent
        tree.nodes.add(node)
        node.parent = parent
    tree.nodes.renamed(node)


def _orphan(tree: UnionState, there: RecordedNode) -> Node | None:
    """Make the node of an object in the staging directory; None if there is none."""
    staging = tree.staging
    for nodeid in (there.nodeid, *there.former):
        leaf = staging.orphan_name(nodeid)
        with contextlib.suppress(FileNotFoundError):
            st = staging.here.stat_entry(leaf)
            break
    else:
        return None
    if stat.S_ISDIR(st.st_mode):
        directory = DirNode(there.nodeid, tree.root, leaf, staging.here.child(leaf), None, there.ino)
        _add_nameless(tree, directory)
        return directory
    node = FileNode(there.nodeid, tree.root, leaf, staging.here, leaf, there.ino, st.st_mode)
    if st.st_nlink > 1:
        node.rare().key = tree.links.key_of(st.st_ino)
        tree.nodes.register_inode(node, (st.st_dev, st.st_ino))
    node.rare().large = True
    lookup.find_data(tree, node, st)
    _add_nameless(tree, node)
    return node


def _in_index(tree: UnionState, there: RecordedNode, key: bytes) -> Node:
    st = tree.links.place.stat_entry(key)
    node = FileNode(there.nodeid, tree.root, key, tree.links.place, key, there.ino, st.st_mode)
    node.rare().key = key
    lookup.find_data(tree, node, st)
    tree.nodes.register_inode(node, (st.st_dev, st.st_ino))
    _add_nameless(tree, node)
    return node


def _in_lower(tree: UnionState, there: RecordedNode, place: BranchDir, path: list[bytes]) -> Node:
    """Make the node of the lower file at `path` below `place`, or of its copy in the hard-link index."""
    *above, leaf = path
    for name in above:
        place = place.child(name)
    st = place.stat_entry(leaf)
    if st.st_nlink > 1 and tree.links_or_none is not None:
        key = inodes.link_key(place.branch, st)
        if tree.links.upper_ino(key) is not None:
            return _in_index(tree, there, key)
    node = FileNode(there.nodeid, tree.root, leaf, place, leaf, there.ino, st.st_mode)
    if st.st_nlink > 1 and tree.links_or_none is not None:
        node.rare().key = inodes.link_key(place.branch, st)
        if (st.st_dev, st.st_ino) not in tree.nodes.by_inode:
            tree.nodes.register_inode(node, (st.st_dev, st.st_ino))
    _add_nameless(tree, node)
    return node


def _dead_directory(tree: UnionState, there: RecordedNode, found: Found) -> Node:
    directory = DirNode(there.nodeid, tree.root, found.name, None, found.low, there.ino)
    _add_nameless(tree, directory)
    return directory


def _forget(tree: UnionState, nodeid: int, count: int) -> None:
    """Take a FORGET of a node that was not made again."""
    there = tree.nodes.subtract_recorded(nodeid, count)
    if there is None:
        return
    if tree.upper is not None:
        for known in (there.nodeid, *there.former):
            tree.staging.dispose(tree.staging.orphan_name(known))
    if not there.flags & DEAD:
        tree.drop_unused(tree.nodes.find(there.names[0][0]))
