"""Nodes: the files and directories that the kernel knows, by the numbers it uses for them.

Owns nodeid, nlookup and the tree of known names. Knows where a node's object is (a place in a branch), not how to
find, change or copy it. A node lives while the kernel remembers it or a known child needs it; an id is
never given to another object within a mount.
"""

from __future__ import annotations

import errno
import os

from unionfs.core.attrs import IFMT, IFREG, ROOT
from unionfs.core.branch import BranchDir, Stat
from unionfs.core.fds import FileFd
from unionfs.core.handle_table import HandleTable
from unionfs.core.listing import Listing
from unionfs.core.lower import LowDir

InodeKey = tuple[int, int]
"""(st_dev, st_ino) of the object that holds a file's data now."""


class Links:
    """Fields that few files need: further names, the key in the hard-link index, metacopy data, removed state."""

    __slots__ = ("key", "inode", "others", "data", "dead", "large")

    def __init__(self) -> None:
        self.key: bytes | None = None  # its entry in the hard-link index, once copied up; changed by copyup/remove
        self.inode: InodeKey | None = None  # under which it stands in NodeTable.by_inode
        self.others: list[tuple[DirNode, bytes]] = []  # known names besides (parent, name)
        self.data: tuple[BranchDir, bytes] | None = None  # a metacopy file's data, until it is copied up
        self.large = False  # set when the last name goes: its space takes long to give back
        self.dead = False  # no name is left: it lives in the staging directory or in a lower until it is forgotten


class FileNode:
    """Anything that is not a directory."""

    __slots__ = (
        "nodeid", "parent", "name", "nlookup", "home", "leaf", "ino", "held", "links", "has_data", "no_xattrs",
    )  # fmt: skip

    def __init__(
        self, nodeid: int, parent: DirNode, name: bytes, home: BranchDir, leaf: bytes, ino: int, mode: int
    ) -> None:
        self.nodeid = nodeid  # immutable
        self.parent = parent  # one of its names (the last one it had, if dead); changed by rename and remove
        self.name = name  # likewise
        self.nlookup = 0  # changed by NodeTable and lookup only: +1 per Entry given out, -n per forget
        self.home = home  # where the object is; copyup.commit moves it to the upper, rename and remove move it along
        self.leaf = leaf  # its name there
        self.ino = ino  # immutable: st_ino as users see it
        self.held: FileFd | None = None  # belongs to the descriptor cache
        self.links: Links | None = None
        self.has_data = mode & IFMT == IFREG  # immutable; opening a device of a branch would act on this machine
        # A list had none that users see, since the kernel last got the attributes; changed by metadata and with `home`.
        self.no_xattrs = False

    @property
    def is_up(self) -> bool:
        """Whether the object is in the upper (or its work directory)."""
        return self.home.branch.writable

    @property
    def is_dead(self) -> bool:
        """Whether the last name was removed."""
        return self.links is not None and self.links.dead

    def rare(self) -> Links:
        """Return the rarely needed fields, which are made on first use."""
        if self.links is None:
            self.links = Links()
        return self.links


class DirNode:
    """A directory: its upper directory, its merged lower directory, and the children the kernel knows."""

    __slots__ = (
        "nodeid", "parent", "name", "nlookup", "ino", "upper", "low", "children", "dead",
        "up_names", "hidden", "order", "subdirs", "wasted", "cached_use", "shown_as", "no_xattrs",
    )  # fmt: skip

    def __init__(
        self, nodeid: int, parent: DirNode | None, name: bytes, upper: BranchDir | None, low: LowDir | None, ino: int
    ) -> None:
        self.nodeid = nodeid  # immutable
        self.parent = parent  # None for the root; changed by rename
        self.name = name  # changed by rename
        self.nlookup = 0  # as in FileNode
        self.ino = ino  # immutable
        self.upper = upper  # set once by copyup; its name and parent are changed by rename, its branch by remove
        self.low = low  # the merged lowers beneath; None: nothing shows through. Cut off by rename only (full copy-up)
        self.children: dict[bytes, FileNode | DirNode] = {}  # known names; each keeps this node alive
        self.dead = False  # removed: it lives in the staging directory or in a lower until it is forgotten
        self.up_names: dict[bytes, int] | None = None  # the upper's entries: name -> ino << 4 | kind; None: not scanned
        self.hidden: set[bytes] = set()  # names that the upper hides from below; right only while up_names is not None
        self.order: Listing | None = None  # visible names; made by a listing, kept right while it exists
        self.subdirs = -1  # visible subdirectories of a merged directory; -1: not counted
        self.wasted = 0  # system calls that knowing up_names would have saved
        self.cached_use = False  # belongs to the name cache
        self.shown_as: Stat | None = None  # attributes before a copy-up changed it on disk; None after a user's change
        self.no_xattrs = False  # as in FileNode

    def name_count(self) -> int:
        """Return the number of remembered names."""
        count = len(self.up_names) if self.up_names is not None else 0
        return count + (len(self.order.names) if self.order is not None else 0)

    def forget_names(self) -> None:
        """Drop the remembered names; the directory can be scanned again."""
        self.up_names = None
        self.hidden = set()
        self.order = None
        self.subdirs = -1
        self.wasted = 0


Node = FileNode | DirNode


class NodeTable:
    """All nodes of a union by id, and files with several names by inode."""

    def __init__(self) -> None:
        self._next: int = ROOT  # only ever grows
        self._nodes: dict[int, Node] = {}
        self._former: dict[int, list[int]] = {}  # id -> ids that its node had before and that lead to it, too
        self.by_inode: dict[InodeKey, FileNode] = {}
        self.handle_table: HandleTable | None = None  # set once, if file handles are wanted

    def __len__(self) -> int:
        return len(self._nodes)

    def new_id(self) -> int:
        """Return an id that no node has had."""
        nodeid = self._next
        self._next += 1
        return nodeid

    def id_for(self, parent: DirNode, name: bytes, ino: int, is_file: bool = False) -> int:
        """Return the id that the object `ino` at this place had before it was forgotten; else a new one. `is_file`: it
        may have had several names, and be known by another."""
        if self.handle_table is not None:
            known = self.handle_table.take(parent.nodeid, name, ino, is_file)
            if known:
                return known
        return self.new_id()

    def add(self, node: Node) -> None:
        """Add a new node, and make it its parent's child unless it has no name (root, unnamed file)."""
        self._nodes[node.nodeid] = node
        if node.parent is not None and not (isinstance(node, FileNode) and node.is_dead):
            node.parent.children[node.name] = node

    def get(self, nodeid: int) -> Node:
        """Return the node of an id. Raises ESTALE for an unknown or forgotten id."""
        try:
            return self._nodes[nodeid]
        except KeyError:
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

    def all(self) -> list[Node]:
        """Return all nodes; one that was renumbered more than once."""
        return list(self._nodes.values())

    def renumber(self, node: Node) -> None:
        """Give a node a new id. Its former ids lead to it, too, until the node is dropped."""
        former = [*self._former.pop(node.nodeid, ()), node.nodeid]
        node.nodeid = self.new_id()
        self._nodes[node.nodeid] = node
        self._former[node.nodeid] = former

    def _remove(self, node: Node) -> None:
        del self._nodes[node.nodeid]
        for former in self._former.pop(node.nodeid, ()):
            del self._nodes[former]

    def discard(self, node: Node) -> None:
        """Remove a node that the kernel does not know."""
        self._remove(node)
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

    def remove_unused(self, node: Node | None) -> list[Node]:
        """Drop `node` if it is unused, and then each parent that only its children kept. Returns the dropped nodes."""
        dropped: list[Node] = []
        pending: list[Node] = [node] if node is not None else []
        while pending:
            at = pending.pop()
            if at.nlookup > 0 or at.nodeid == ROOT or at.nodeid not in self._nodes:
                continue
            if isinstance(at, DirNode) and at.children:
                continue
            self._remove(at)
            dropped.append(at)
            if self.handle_table is not None and at.parent is not None:
                gone = at.dead if isinstance(at, DirNode) else at.is_dead
                if not gone:
                    linked = isinstance(at, FileNode) and at.links is not None and at.links.inode is not None
                    self.handle_table.add(at.nodeid, at.parent.nodeid, at.name, at.ino, linked)
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


def _close(directory: DirNode) -> None:
    """Close the descriptors of a directory that the kernel has forgotten; a later use opens them again.

    In the cache they would stay open until it is full, and keep the space of removed directories in use.
    """
    places = directory.low.stack if directory.low is not None else ()
    for place in (*places, directory.upper) if directory.upper is not None else places:
        if place.parent is not None:  # a branch's root cannot be opened again by name
            place.held = None


def names_of(node: Node) -> list[tuple[DirNode, bytes]]:
    """Return every known (parent, name) of a node, the primary one first."""
    names = [(node.parent, node.name)] if node.parent is not None else []
    if isinstance(node, FileNode) and node.links is not None:
        names.extend(node.links.others)
    return names
