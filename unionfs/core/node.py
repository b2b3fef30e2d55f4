"""Nodes: the files and directories that the kernel knows, by the numbers it uses for them.

A node knows where its object is (a place in a branch), not how to find, change or copy it. `core.node_table` has the
nodes of a union.
"""

from __future__ import annotations

from unionfs.core.attrs import IFMT, IFREG
from unionfs.core.branch import BranchDir, Stat
from unionfs.core.fds import FileFd
from unionfs.core.listing import Listing
from unionfs.core.lower import LowDir
from unionfs.core.partial import Partial

InodeKey = tuple[int, int]
"""(st_dev, st_ino) of the object that holds a file's data now."""


class Links:
    """Fields that few files need: further names, the key in the hard-link index, metacopy data, removed state."""

    __slots__ = ("key", "inode", "others", "data", "partial", "dead", "large")

    def __init__(self) -> None:
        self.key: bytes | None = None  # its entry in the hard-link index, once copied up; changed by copyup/remove
        self.inode: InodeKey | None = None  # under which it stands in NodeTable.by_inode
        self.others: list[tuple[DirNode, bytes]] = []  # known names besides (parent, name)
        self.data: tuple[BranchDir, bytes] | None = None  # a metacopy file's data, until it has its own; b"": missing
        self.partial: Partial | None = None  # with `data`, for a file of the upper
        self.large = False  # set when the last name goes: its space takes long to give back
        self.dead = False  # no name is left: it lives in the staging directory or in a lower until it is forgotten


class FileNode:
    """Anything that is not a directory."""

    __slots__ = (
        "nodeid", "parent", "name", "nlookup", "home", "leaf", "ino", "held", "links", "has_data", "no_xattrs", "slot",
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
        # Whether the last list of extended attributes had none that users see; changed by metadata and with `home`.
        self.no_xattrs = False
        self.slot = 0  # of its entry in the record; belongs to NodeTable

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
        "up_names", "hidden", "order", "subdirs", "wasted", "cached_use", "shown_as", "no_xattrs", "slot",
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
        self.slot = 0  # as in FileNode

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


def names_of(node: Node) -> list[tuple[DirNode, bytes]]:
    """Return every known (parent, name) of a node, the primary one first."""
    names = [(node.parent, node.name)] if node.parent is not None else []
    if isinstance(node, FileNode) and node.links is not None:
        names.extend(node.links.others)
    return names
