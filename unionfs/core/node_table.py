"""The nodes of a union, by the numbers that the kernel uses for them.

Owns nodeid, nlookup and the tree of known names. A node lives while the kernel remembers it or a known child needs it;
an id is never given to another object within a mount. Where another daemon is to continue when this one dies, the
nodes are recorded (core.node_record).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from struct import Struct
from typing import Final

from unionfs.core.attrs import ROOT
from unionfs.core.branch import Stat
from unionfs.core.handle_table import HandleTable
from unionfs.core.node import DirNode, FileNode, InodeKey, Node, names_of
from unionfs.core.node_record import (
    DEAD,
    FORGOTTEN,
    IN_INDEX,
    IN_LOWER,
    IN_LOWERS,
    LINKED,
    NAMES_MOST,
    NodeRecord,
)
from unionfs.core.recorded_listing import SHORT
from unionfs.core.recorded_node import RecordedNode

_SHOWN: Final = Struct("=QQq")
"""The fields of a directory's `shown_as` in the record: size, blocks, ctime."""


class NodeTable:
    """All nodes of a union by id, and files with several names by inode."""

    def __init__(self) -> None:
        self._next: int = ROOT  # only ever grows
        self._nodes: dict[int, Node] = {}
        self._former: dict[int, list[int]] = {}  # id -> ids that its node had before and that lead to it, too
        self.by_inode: dict[InodeKey, FileNode] = {}
        self.handle_table: HandleTable | None = None  # set once, if file handles are wanted
        self.record: NodeRecord | None = None  # set once, where another daemon is to continue when this one dies
        self._listed: list[Node] = []  # looked up for a listing; emptied by `record_listed`
        self.recorded: dict[int, RecordedNode] = {}
        """Recorded nodes of the daemon before, by id, until they are made again; see core.takeover."""
        self.recorded_nameless: list[RecordedNode] = []  # forgotten ones; emptied by core.takeover
        self.recorded_ids: dict[tuple[int, bytes], int] = {}  # place (id of the parent, name) -> id of such a node
        self._recorded_below: dict[int, int] = {}  # id -> number of such nodes of which it is the parent
        self._recorded_former: dict[int, int] = {}  # id that such a node had before -> its id
        self.remake: Callable[[int], Node] | None = None  # makes such a node; set once, by core.takeover
        self.forget_recorded: Callable[[int, int], None] | None = None  # handles a FORGET of one; set once, likewise

    def __len__(self) -> int:
        return len(self._nodes)

    def new_id(self) -> int:
        """Return an id that no node has had."""
        nodeid = self._next
        self._next += 1
        if self.record is not None:
            self.record.give_id(nodeid)
        return nodeid

    def id_for(self, parent: DirNode, name: bytes, ino: int, is_file: bool = False) -> int:
        """Return the id that the object `ino` at this place had before it was forgotten; else a new one. `is_file`: it
        may have had several names, and be known by another."""
        if self.recorded_ids:
            there = self.recorded.get(self.recorded_ids.get((parent.nodeid, name), 0))
            if there is not None and there.ino == ino:
                return there.nodeid
        if self.handle_table is not None:
            known = self.handle_table.take(parent.nodeid, name, ino, is_file)
            if known:
                return known
        return self.new_id()

    def add(self, node: Node) -> None:
        """Add a new node, and make it its parent's child unless it has no name (root, unnamed file)."""
        self._nodes[node.nodeid] = node
        there: RecordedNode | None = None
        if self.recorded:
            there = self.take_recorded(node.nodeid)
            if there is not None:
                node.nlookup, node.slot = there.nlookup, there.slot
                if there.shown and isinstance(node, DirNode):
                    node.shown_as = _shown(there.shown)
                if there.former:
                    self._former[node.nodeid] = there.former
                    for former in there.former:
                        self._nodes[former] = node
        if node.parent is not None and not (isinstance(node, FileNode) and node.is_dead):
            node.parent.children[node.name] = node
            if there is not None and there.names[0] != (node.parent.nodeid, node.name):
                self.renamed(node)  # its first name may be gone, and nothing keeps the directory of that
        if self.handle_table is not None and self.handle_table.taken and not node.slot:
            node.slot = self.handle_table.taken.pop(node.nodeid, 0)
            self.renamed(node)

    def get(self, nodeid: int) -> Node:
        """Return the node of an id. Raises ESTALE for an unknown or forgotten id."""
        try:
            return self._nodes[nodeid]
        except KeyError:
            now = self.recorded_id(nodeid)
            if now in self.recorded and self.remake is not None:
                return self.remake(now)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    def file(self, nodeid: int) -> FileNode:
        """Return the node of an id, which must not be a directory. Raises ESTALE, EISDIR."""
        node = self.get(nodeid)
        if isinstance(node, DirNode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return node

    def directory(self, nodeid: int) -> DirNode:
        """Return the node of an id, which must be a directory. Raises ESTALE, ENOTDIR."""
        node = self.get(nodeid)
        if isinstance(node, FileNode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node

    def find(self, nodeid: int) -> Node | None:
        """Return the node of an id, or None."""
        return self._nodes.get(nodeid)

    def known(self, nodeid: int) -> Node | None:
        """Return the node of an id, made again if the daemon before has left it; else None."""
        node = self._nodes.get(nodeid)
        if node is None and self.recorded_id(nodeid) in self.recorded and self.remake is not None:
            try:
                return self.remake(self.recorded_id(nodeid))
            except OSError:
                return None
        return node

    def all(self) -> list[Node]:
        """Return all nodes; a renumbered one stands in the result more than once."""
        return list(self._nodes.values())

    def renumber(self, node: Node) -> None:
        """Give a node a new id. Its former ids lead to it, too, until the node is dropped."""
        former = [*self._former.pop(node.nodeid, ()), node.nodeid]
        node.nodeid = self.new_id()
        self._nodes[node.nodeid] = node
        self._former[node.nodeid] = former
        self.renamed(node)

    def _remove(self, node: Node) -> None:
        del self._nodes[node.nodeid]
        for former in self._former.pop(node.nodeid, ()):
            del self._nodes[former]

    def keep(self, record: NodeRecord) -> None:
        """Record all nodes from now on. To be called while the root alone is known."""
        self.record = record
        record.put_again = self._put_again
        record.give_id(self._next - 1)

    # -- the record ------------------------------------------------------------------------------------------------

    def count_lookup(self, node: Node, is_listed: bool = False) -> None:
        """Count a lookup of a node, and record it; `is_listed`: `record_listed` records it. To be called before the
        kernel knows."""
        if isinstance(node, FileNode):  # compiled code adds to a field of either class by its name otherwise
            node.nlookup += 1
        else:
            node.nlookup += 1
        record = self.record
        if record is not None and is_listed:
            self._listed.append(node)
        elif record is not None and not self._record_new(record, node):
            self._record_count(record, node)
            record.note(node.nodeid)

    def _record_new(self, record: NodeRecord, node: Node) -> bool:
        """Record a node and note its first lookup by one entry. Returns False without an entry if the node is recorded
        already or has more than one name, if its directory is not recorded, or as `put_looked_up` says."""
        above = node.parent
        if node.slot or above is None or self._former or not (above.slot or above.nodeid == ROOT):
            return False
        if not _has_name_alone(node) or node.nlookup != 1:
            return False
        record.compact_if_due()
        slot = record.put_looked_up(above.nodeid, node.nodeid, node.ino, node.name)
        if isinstance(node, FileNode):  # see `count_lookup`
            node.slot = slot
        else:
            node.slot = slot
        return slot != 0

    def record_listed(self) -> None:
        """Record the lookups of a listing, those of new nodes together. To be called before the kernel knows."""
        listed, record = self._listed, self.record
        if record is None or not listed:
            return
        self._listed = []
        record.compact_if_due()
        new: list[Node] = []
        ids: list[int] = []
        inos: list[int] = []
        names: list[bytes] = []
        longest = 0
        others: list[Node] = []
        above = listed[0].parent
        if above is None or self._former or not (above.slot or above.nodeid == ROOT):
            others = listed
        else:
            for node in listed:
                is_new = not node.slot and node.nlookup == 1 and node.parent is above
                if is_new and _has_name_alone(node):
                    new.append(node)
                    ids.append(node.nodeid)
                    inos.append(node.ino)
                    names.append(node.name)
                    longest = max(longest, len(node.name))
                else:
                    others.append(node)
            slot = record.put_listed(above.nodeid, ids, inos, names, longest) if new else 0
            if slot:
                for node in new:
                    if isinstance(node, FileNode):  # see `count_lookup`
                        node.slot = slot
                    else:
                        node.slot = slot
                    slot += SHORT
            else:
                others = listed
        if others:
            for node in others:
                self._record_count(record, node)
            record.note_all([node.nodeid for node in others])

    def _record_count(self, record: NodeRecord, node: Node) -> None:
        if node.slot:
            record.count(node.slot, node.nlookup)
        elif node.nodeid != ROOT:
            self._write(record, node)

    def taken_back(self, nodeid: int) -> None:
        """Record that the last lookup of the request in hand, of this node, is no longer counted in a moment."""
        if self.record is not None:
            self.record.unnote(nodeid)

    def forgotten(self, node: Node) -> None:
        """Record that the kernel has forgotten lookups of a node."""
        if node.slot and self.record is not None:
            self.record.count(node.slot, node.nlookup)

    def renamed(self, node: Node) -> None:
        """Record that the names of a node have changed, or the place of a node without a name."""
        record = self.record
        if record is not None and node.slot:
            slot = node.slot
            self._write(record, node)
            record.drop(slot)

    def _write(self, record: NodeRecord, node: Node) -> None:
        for above, _ in names_of(node):
            if not above.slot and above.nodeid != ROOT:  # known for its children only
                self._write(record, above)
        self._put(record, node)
        record.compact_if_due()

    def _put(self, record: NodeRecord, node: Node) -> None:
        flags, names = _entry_of(node)
        if self._former:
            names += [(former, b"") for former in self._former.get(node.nodeid, ())]
        if isinstance(node, DirNode) and node.shown_as is not None:
            names.append((0, _SHOWN.pack(node.shown_as.st_size, node.shown_as.st_blocks, node.shown_as.st_ctime_ns)))
        node.slot = record.put(flags, node.nodeid, node.nlookup, node.ino, names)

    def put_recorded(self, there: RecordedNode) -> None:
        """Put the entry of a node that the daemon before has left into the record again."""
        if self.record is not None:
            names = there.names + [(former, b"") for former in there.former]
            if there.shown:
                names.append((0, there.shown))
            there.slot = self.record.put(there.flags, there.nodeid, there.nlookup, there.ino, names)

    def _put_again(self) -> None:
        """Put all entries into a new area of the record."""
        record = self.record
        assert record is not None
        for there in self.recorded.values():
            self.put_recorded(there)
        if self.handle_table is not None:
            self.handle_table.put_again(record)
        for nodeid, node in self._nodes.items():
            if node.slot and nodeid == node.nodeid:
                self._put(record, node)

    def load(self) -> None:
        """Continue with the nodes in the record. Raises: DamagedError."""
        record = self.record
        assert record is not None
        self._next, found = record.load()
        forgotten = [there for there in found if there.flags & FORGOTTEN]
        for there in found:
            before = self.recorded.pop(there.nodeid, None)
            if before is not None:
                record.drop(before.slot)
            if not there.flags & FORGOTTEN:
                self.recorded[there.nodeid] = there
        for there in list(self.recorded.values()):
            for former in there.former:
                self._recorded_former[former] = there.nodeid
                before = self.recorded.pop(former, None)
                if before is not None:  # it had just been renumbered
                    record.drop(before.slot)
        for there in self.recorded.values():
            self.place_recorded(there)
        if record.has_handles:
            self.handle_table = HandleTable(record=record)
        for there in forgotten:
            if there.nodeid in self.recorded:
                record.drop(there.slot)
            else:
                self._remember_recorded(there)
        for there in reversed(
            list(self.recorded.values())
        ):  # made for their children only, or for a lookup that came to nothing
            if not there.nlookup:
                self.subtract_recorded(there.nodeid, 0)

    def _remember_recorded(self, there: RecordedNode) -> None:
        """Remember a forgotten node for file handles, if they are wanted."""
        assert self.record is not None
        if self.handle_table is not None and there.flags & FORGOTTEN and there.flags & DEAD:
            self.recorded_nameless.append(there)
            return
        if self.handle_table is None or there.flags & DEAD:
            self.record.drop(there.slot)
            return
        parent, name = there.names[0]
        self.handle_table.add(there.nodeid, parent, name, there.ino, bool(there.flags & LINKED), slot=there.slot)

    def recorded_id(self, nodeid: int) -> int:
        """Return the present id of a node that the daemon before has left, if it had another one before."""
        return self._recorded_former.get(nodeid, nodeid) if self._recorded_former else nodeid

    def place_recorded(self, there: RecordedNode) -> None:
        """Let the names of a recorded node lead to its id."""
        if there.flags & DEAD:
            return
        for place in there.names:
            self.recorded_ids[place] = there.nodeid
        above = there.names[0][0]
        self._recorded_below[above] = self._recorded_below.get(above, 0) + 1

    def take_recorded(self, nodeid: int) -> RecordedNode | None:
        """Remove a node from those that the daemon before has left; None: it is not there."""
        there = self.recorded.pop(nodeid, None)
        if there is None:
            return None
        for former in there.former:
            self._recorded_former.pop(former, None)
        if there.flags & DEAD:
            return there
        for place in there.names:
            if self.recorded_ids.get(place) == nodeid:
                del self.recorded_ids[place]
        above = there.names[0][0]
        left = self._recorded_below.get(above, 0) - 1
        if left > 0:
            self._recorded_below[above] = left
        else:
            self._recorded_below.pop(above, None)
        return there

    def subtract_recorded(self, nodeid: int, count: int) -> RecordedNode | None:
        """Subtract `count` from the lookup count of a node that the daemon before has left. Returns it if that is zero
        now: it is removed."""
        nodeid = self.recorded_id(nodeid)
        there = self.recorded.get(nodeid)
        if there is None or self.record is None:
            return None
        there.nlookup -= count
        if there.nlookup > 0:
            self.record.count(there.slot, there.nlookup)
            return None
        if nodeid in self._recorded_below:
            there.nlookup = 0
            self.record.count(there.slot, 0)
            return None
        self.take_recorded(nodeid)
        self._remember_recorded(there)
        return there

    def discard(self, node: Node) -> None:
        """Remove a node that the kernel does not know."""
        self._remove(node)
        if node.slot and self.record is not None:
            self.record.drop(node.slot)
            node.slot = 0
        if isinstance(node, FileNode):
            self.unregister_inode(node)

    def unregister_inode(self, node: FileNode) -> None:
        """Undo `register_inode`: other names of the inode no longer lead to `node`."""
        links = node.links
        if links is not None and links.inode is not None and self.by_inode.get(links.inode) is node:
            del self.by_inode[links.inode]

    def register_inode(self, node: FileNode, key: InodeKey) -> None:
        """Register `node` by its inode, so that other names of the inode lead to it."""
        self.unregister_inode(node)
        node.rare().inode = key
        self.by_inode[key] = node
        if node.slot and self.record is not None:
            self.record.mark(node.slot, LINKED)

    def remove_unused(self, node: Node | None) -> list[Node]:
        """Drop `node` if it is unused, and then each parent that only its children kept. Returns the dropped nodes."""
        dropped: list[Node] = []
        pending: list[Node] = [node] if node is not None else []
        while pending:
            at = pending.pop()
            if at.nlookup > 0 or at.nodeid == ROOT or at.nodeid not in self._nodes:
                continue
            if isinstance(at, DirNode) and (at.children or at.nodeid in self._recorded_below):
                continue
            self._remove(at)
            dropped.append(at)
            slot, at.slot = at.slot, 0
            if self.handle_table is not None and at.parent is not None:
                gone = at.dead if isinstance(at, DirNode) else at.is_dead
                if not gone:
                    linked = isinstance(at, FileNode) and at.links is not None and at.links.inode is not None
                    self.handle_table.add(at.nodeid, at.parent.nodeid, at.name, at.ino, linked, slot=slot)
                    slot = 0
            if slot and self.record is not None:
                self.record.drop(slot)
            for parent, name in names_of(at):
                if parent.children.get(name) is at:
                    del parent.children[name]
                pending.append(parent)
            if isinstance(at, FileNode):
                at.held = None
                self.unregister_inode(at)
            else:
                _close(at)
        return dropped


def _has_name_alone(node: Node) -> bool:
    """Whether the entry of a node in the record has one name, and neither flags nor more."""
    return node.links is None if isinstance(node, FileNode) else node.shown_as is None and not node.dead


def _shown(packed: bytes) -> Stat:
    """Return attributes of which size, blocks and ctime are those that a record has."""
    size, blocks, ctime_ns = _SHOWN.unpack(packed)
    return os.stat_result((0, 0, 0, 0, 0, 0, size, 0, 0, 0, 0.0, 0.0, 0.0, 0, 0, ctime_ns, 0, blocks, 0))


def _entry_of(node: Node) -> tuple[int, list[tuple[int, bytes]]]:
    """Return the flags and names of a node's entry in the record."""
    if isinstance(node, DirNode):
        if node.dead:
            if node.upper is not None or node.low is None:
                return DEAD, [(0, b"")]
            return DEAD | IN_LOWERS, [(0, b"/".join(node.low.path_components()))]
        assert node.parent is not None
        return 0, [(node.parent.nodeid, node.name)]
    links = node.links
    if links is None:
        return 0, [(node.parent.nodeid, node.name)]
    flags = LINKED if links.inode is not None else 0
    if links.dead:
        home = node.home
        if not home.branch.writable:
            path = b"/".join((*home.path_components(), node.leaf))
            return flags | DEAD | IN_LOWER, [(0, b"%d/%s" % (home.branch.number, path))]
        if links.key is not None and node.leaf == links.key:
            return flags | DEAD | IN_INDEX, [(0, links.key)]
        return flags | DEAD, [(0, b"")]
    return flags, [(above.nodeid, name) for above, name in names_of(node)[:NAMES_MOST]]


def _close(directory: DirNode) -> None:
    """Close the descriptors of a directory that the kernel has forgotten; a later use opens them again.

    In the cache they would stay open until it is full, and keep the space of removed directories in use.
    """
    places = directory.low.stack if directory.low is not None else ()
    for place in (*places, directory.upper) if directory.upper is not None else places:
        if place.parent is not None:  # a branch's root cannot be opened again by name
            place.held = None
